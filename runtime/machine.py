"""What of this machine decides answers and times: processor, its instruction sets, quota, GPUs.

Read from Linux's own files; elsewhere nothing is found, and nothing is guessed.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

SYSTEM = Path("/")

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
    lines = _lines(root / "proc/cpuinfo")
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
        "gpus": [line for gpu in gpus for line in _lines(gpu) if "Model" in line],
        "driver": _first_line(root / "proc/driver/nvidia/version"),
    }


def instruction_sets(root: Path = SYSTEM) -> list[str]:
    """Those of `INSTRUCTION_SETS` that this CPU has, in that order.

    Args:
        root: where Linux's files are; another folder in tests.
    """
    flags: set[str] = set()
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags.update(value.split())
    return [name for name in INSTRUCTION_SETS if name in flags]


def cores() -> int | None:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def quota(root: Path = SYSTEM) -> float | None:
    """How many cores' time this process's control groups allow it, or None where none says.

    A container with `--cpus 0.5` sees every core but gets half of one. The tightest of the
    process's own group and those around it counts.

    Args:
        root: where Linux's files are; another folder in tests.
    """
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not controllers:  # version 2: one file holds both numbers
            base, read = root / "sys/fs/cgroup", _quota_of_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup" / controllers, _quota_of_v1
            base = base if base.exists() else root / "sys/fs/cgroup/cpu"
        else:
            continue
        folder = base / group.strip("/")
        # In a container the group's path may be the host's, and only its own group be in sight.
        for place in {base, folder, *(p for p in folder.parents if base in p.parents)}:
            if (share := read(place)) is not None:
                found.append(share)
    return min(found, default=None)


def power_mode(root: Path = SYSTEM) -> str | None:
    """A Jetson's `nvpmodel` mode, from the file that it leaves its choice in."""
    line = _first_line(root / "var/lib/nvpmodel/status")
    return line.partition(":")[2] or line if line else None


def _quota_of_v2(folder: Path) -> float | None:
    return _share(*(" ".join(_lines(folder / "cpu.max")).split() or ["max", "0"])[:2])


def _quota_of_v1(folder: Path) -> float | None:
    return _share(
        " ".join(_lines(folder / "cpu.cfs_quota_us")),
        " ".join(_lines(folder / "cpu.cfs_period_us")),
    )


def _share(quota_us: str, period_us: str = "100000") -> float | None:
    try:
        used, period = int(quota_us), int(period_us)
    except ValueError:  # "max"
        return None
    return used / period if used > 0 and period > 0 else None


def _first_line(path: Path) -> str | None:
    return next((line.strip("\0\n ") for line in _lines(path)), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
