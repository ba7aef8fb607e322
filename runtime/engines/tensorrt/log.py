"""TensorRT's own log: kept, searched for the cause of a failure and for the memory it reports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from geomag_edge.runtime.engines.tensorrt.flavour import Flavour

_LOGGERS: dict[str, Any] = {}


@dataclass(frozen=True)
class BuilderMemory:
    """Bytes that the builder reports of an engine.

    Attributes:
        weights: on the device, shared by all profiles.
        activations: of each profile, in order.
    """

    weights: int
    activations: list[int]


def logger_of(flavour: Flavour) -> Any:
    """The process's one logger of a flavour; TensorRT ignores every later one.

    Its `lines` are (severity name, text), from INFO up; clear them before a step.
    """
    if flavour.name in _LOGGERS:
        return _LOGGERS[flavour.name]
    base: Any = flavour.module.ILogger

    class Lines(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            name = getattr(severity, "name", str(severity))
            if name != "VERBOSE":
                self.lines.append((name, text))

    _LOGGERS[flavour.name] = Lines()
    return _LOGGERS[flavour.name]


_NOISE = ("catchCudaError", "cudaError 35")
"""Errors that only say that there is no GPU, while the build goes on without one."""


def first_error(lines: list[tuple[str, str]]) -> str | None:
    """The first real error among log lines, in one line without where TensorRT raised it."""
    errors = [t for severity, t in lines if severity.endswith("ERROR")]
    real = [t for t in errors if not is_noise(t)] or errors
    return tidy(real[0]) if real else None


def is_noise(text: str) -> bool:
    """Whether an error says no more than that there is no GPU."""
    return any(noise in text for noise in _NOISE)


def tidy(text: str) -> str:
    """One of TensorRT's messages without its source places and web addresses."""
    kept = [line for line in text.splitlines() if not any(noise in line for noise in _NOISE)]
    text = " ".join(" ".join(kept or text.splitlines()).split())
    text = re.sub(r"\(?See https?://\S+ ?(?:for [^)]*)?\)?\.?", "", text)
    text = re.sub(r"\(In [\w:]+ at /\S+?:\d+\)|\bIn [\w:]+ at /\S+?:\d+", "", text)
    text = re.sub(r"\[/?[\w/]+\.(?:cpp|h):{1,2}\w+(?::{1,2} ?\w+)?\]", "", text)
    text = re.sub(r"\b[\w/]+\.(?:cpp|h):\d+: ?", "", text)
    text = re.sub(r"^(?:I?\w+::\w+: )?(?:Error Code \d+: )?", "", text.strip())
    return re.sub(r"\s+", " ", text).strip(" :")


OUT_OF_MEMORY = (
    "out of memory", "OutOfMemory", "could not be allocated", "User allocator error",
    "insufficient memory", "memory is insufficient", "requires workspace memory",
)  # fmt: skip
"""How TensorRT says that memory ran out: 8.4 to 10.3 in public logs, and 1.7 for RTX. That a layer
found no tactic for it is only the last of several lines."""


def memory_ran_out(lines: list[tuple[str, str]]) -> bool:
    """Whether a failure with this log is for want of memory."""
    said = [text for severity, text in lines if severity.endswith("ERROR") or severity == "WARNING"]
    return any(sign in text for text in said for sign in OUT_OF_MEMORY)


_BYTES = re.compile(r"^Total (Activation|Weights) Memory: (\d+)(?: bytes)?$")


def builder_memory(lines: list[tuple[str, str]], profiles: int) -> BuilderMemory | None:
    """What the builder said of an engine's memory; None if this version does not say.

    TensorRT for RTX 1.7 prints a line of activations for each profile; others are known to print
    more of them, or fewer. Then each profile is taken to need the most that was printed.

    Args:
        lines: of one build.
        profiles: how many the engine has.
    """
    found: dict[str, list[int]] = {"Activation": [], "Weights": []}
    for _, text in lines:
        if match := _BYTES.match(text.strip()):
            found[match[1]].append(int(match[2]))
    activations = found["Activation"]
    if not found["Weights"] or not activations:
        return None
    if len(activations) != profiles:
        activations = [max(activations)] * profiles
    return BuilderMemory(found["Weights"][-1], activations)
