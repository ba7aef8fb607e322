"""What of this machine decides answers and times: processor, its instruction sets, quota, GPUs.

Read from Linux's own files; elsewhere nothing is found, and nothing is guessed.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from geomag_edge.cores import SYSTEM, cores, lines_of, quota

INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip
"""Flags, as Linux spells them, of what kernels for matrices choose by."""


def machine(root: Path = SYSTEM) -> dict[str, Any]:
    """The record that measurements and verdicts carry.

    Args:
        root: where Linux's files are; another folder in tests.
    """
    lines = lines_of(root / "proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    board = _first_line(root / "proc/device-tree/model")
    gpus = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "instruction_sets": instruction_sets(root),
        "cores": cores(),
        "quota": quota(root),
        "board": board,
        "power_mode": power_mode(root),
        "gpus": [line for gpu in gpus for line in lines_of(gpu) if "Model" in line],
        "driver": _first_line(root / "proc/driver/nvidia/version"),
    }


def instruction_sets(root: Path = SYSTEM) -> list[str]:
    """Those of `INSTRUCTION_SETS` that this CPU has, in that order.

    Args:
        root: where Linux's files are; another folder in tests.
    """
    flags: set[str] = set()
    for line in lines_of(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags.update(value.split())
    return [name for name in INSTRUCTION_SETS if name in flags]


def power_mode(root: Path = SYSTEM) -> str | None:
    """A Jetson's `nvpmodel` mode, from the file that it leaves its choice in."""
    line = _first_line(root / "var/lib/nvpmodel/status")
    return line.partition(":")[2] or line if line else None


def _first_line(path: Path) -> str | None:
    return next((line.strip("\0\n ") for line in lines_of(path)), None)
