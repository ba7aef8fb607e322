"""What CUDA refuses, in one line each that says what to do."""

from __future__ import annotations

from typing import Any

from geomag_edge.errors import EngineError

_DEAD = frozenset({
    "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED", "CUDA_ERROR_ASSERT", "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_UNKNOWN",
})  # fmt: skip
"""After these every later call of the process fails with the same one."""


def value_of(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a call of the bindings, which return (status, value)."""
    status, value = result
    if int(status):
        raise refused(doing, str(getattr(status, "name", status)))
    return value


def refused(doing: str, reason: str) -> EngineError:
    """One line on what CUDA would not do."""
    dead = any(name in reason for name in _DEAD)
    lost = "; nothing runs on this GPU any more: start the process again" if dead else ""
    return EngineError(f"{doing} failed: {reason}{lost}")


def no_memory(n_bytes: int, reason: str, kind: str = "memory") -> EngineError:
    """One line on memory that the GPU does not have."""
    return EngineError(
        f"the GPU has no {max(n_bytes / 1e6, 0.1):.1f} MB of {kind} left: {reason}; use a smaller "
        "budget or precision, or close what else runs on it"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
