"""What a measurement was taken on: processor, clocks, power mode, load, versions; and its memory.

Everything is read from Linux's own files and is None, or left out, where they do not exist.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from geomag_edge.machine import machine as hardware

SYSTEM = Path("/")
PACKAGES = ("geomag-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch",
            "transformers", "tensorrt", "tensorrt-rtx-cu13")  # fmt: skip


def machine(
    threads: int | None, packages: Sequence[str] = PACKAGES, root: Path = SYSTEM
) -> dict[str, Any]:
    """What of this machine and its state decides a time.

    Args:
        threads: that were asked for.
        packages: whose versions to record, those that are installed.
        root: where Linux's files are; another folder in tests.
    """
    return hardware(root) | {
        "threads": threads,
        "memory_gb": _memory_gb(root),
        "clocks_mhz": _clocks(root),
        "governor": _first_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(packages),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def described(record: dict[str, Any]) -> str:
    """One line for the head of a table."""
    sets = " ".join(
        record.get("instruction_sets", [])
    )  # results of before they were named lack them
    cpu = f"{record['cpu']} ({sets})" if sets else record["cpu"]
    parts = [cpu, f"{record['cores']} cores"]
    if record.get("quota"):
        parts.append(f"quota of {record['quota']:g}")
    if record["threads"]:
        parts.append(f"{record['threads']} thread{'s' if record['threads'] > 1 else ''} a graph")
    parts += [g.partition(":")[2].strip() for g in record["gpus"]]
    if record.get("power_mode"):
        parts.append(f"power mode {record['power_mode']}")
    packages = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    return f"{', '.join(parts)}; {packages}; load average before {record['load_average']}"


def reset_peak() -> bool:
    """Makes `peak_mb` start anew; False where the system does not allow that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb() -> float | None:
    """The most memory that this process has had resident since `reset_peak`, in 10^6 bytes."""
    return _status_mb("VmHWM")


def resident_mb() -> float | None:
    """The memory that this process has resident now, in 10^6 bytes."""
    return _status_mb("VmRSS")


def peak_bytes_of(command: Sequence[str]) -> int:
    """Peak resident bytes of a command, read when it is reaped and so of it alone.

    Raises:
        SystemExit: the command failed.
    """
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss * 1024


def _status_mb(field: str) -> float | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e6, 1) if found else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip("\0\n ").splitlines()[0]
    except (OSError, IndexError):
        return None


def _memory_gb(root: Path) -> float | None:
    line = _first_line(root / "proc/meminfo")
    found = re.match(r"MemTotal:\s+(\d+) kB", line or "")
    return round(int(found[1]) * 1024 / 1e9, 1) if found else None


def _clocks(root: Path) -> dict[str, float] | None:
    """Lowest and highest current clock of the cores."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return None
    listed = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return {"lowest": min(listed), "highest": max(listed)} if listed else None
