"""What a machine with a GPU is: all that is worth knowing from afar when something on it fails.

Read from the machine's own files and tools; what is not there is None or left out. Nothing here
needs a GPU, a driver or root.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.machine import versions
from geomag_edge.cores import cores, lines_of, quota
from geomag_edge.cpp_ext.cuda_image import find_fatbin, find_tool
from geomag_edge.targets.detect import TEGRA_RELEASE, look_around

PACKAGES = (
    "geomag-edge", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "cuda-core", "cuda-bindings",
    "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "tensorrt", "tensorrt-rtx-cu13", "polygraphy",
    "torch", "transformers",
)  # fmt: skip
TOOLS = ("nvcc", "compute-sanitizer", "nvidia-smi", "nvpmodel", "jetson_clocks")
ASKED = (
    "name,driver_version,memory.total,memory.free,power.limit,clocks.sm,clocks.max.sm,clocks.mem,"
    "persistence_mode,mig.mode.current"
)
MEMORY = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
NEWEST_MAJOR = 99
SYSTEM = Path("/")


def facts(root: Path = SYSTEM) -> dict[str, Any]:
    """The record.

    Args:
        root: where Linux's files are; another folder in tests.
    """
    fatbin = find_fatbin(NEWEST_MAJOR)
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": cores(),
        "quota": quota(root),
        "container": (root / ".dockerenv").exists() or (root / "run/.containerenv").exists(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "seen": look_around().to_json(),
        "nvidia_smi": _said(["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv"]),
        "l4t": _line(root / TEGRA_RELEASE.relative_to("/")),
        "jetpack_package": _said(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"]),
        "gpu_clocks_hz": _clocks(root),
        "memory_kb": _memory(root),
        "tools": {name: find_tool(name) for name in TOOLS},
        "fat_binary": fatbin and fatbin.name,
        "versions": versions(PACKAGES),
    }


def _said(command: list[str]) -> str | None:
    """What a tool prints, or None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _line(path: Path) -> str | None:
    return next((line.strip("\0\n ") for line in lines_of(path)), None)


def _clocks(root: Path) -> dict[str, dict[str, str | None]]:
    """A Jetson's GPU clocks by device: now, least and most."""
    folders = sorted((root / "sys/class/devfreq").glob("*gpu*"))
    return {
        folder.name: {kind: _line(folder / f"{kind}_freq") for kind in ("cur", "min", "max")}
        for folder in folders
    }


def _memory(root: Path) -> dict[str, int]:
    found = {}
    for line in lines_of(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name in MEMORY and value.split()[:1] and value.split()[0].isdigit():
            found[name] = int(value.split()[0])
    return found
