"""How much scratch memory the builder may give to one layer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from geomag_edge.targets.detect import Machine

MOST_BYTES = 2 << 30
"""More than a layer of the chain needs; TensorRT's own default is the whole device's memory."""

LEAST_BYTES = 64 << 20
"""Below this builders refuse layers for want of scratch, and would not start anyway."""

SHARE = 4
"""The builder holds weights, a copy of them and the activations beside the scratch memory."""


def workspace_for(machine: Machine, free: Callable[[], int | None] | None = None) -> int:
    """Bytes of WORKSPACE: a quarter of what the device has free, and `MOST_BYTES` at most.

    Without a limit the builder tries tactics that want all of a board's memory, which CPU and GPU
    share there: minutes of skipped tactics, or the whole process is killed.

    Args:
        machine: without a GPU nothing is asked: the engine is for another machine.
        free: free bytes on the device, None where nothing says so; tests replace it.
    """
    if machine.gpu is None:
        return MOST_BYTES
    found = (free or free_bytes)()
    return MOST_BYTES if found is None else max(LEAST_BYTES, min(MOST_BYTES, found // SHARE))


def free_bytes() -> int | None:
    """Free memory of the device: the GPU's own, or the system's where they share it."""
    said = _nvidia_smi()
    own = [int(line) << 20 for line in (said or "").split("\n") if line.strip().isdigit()]
    return min(own) if own else _shared_bytes(Path("/proc/meminfo"))


def _nvidia_smi() -> str | None:
    """MiB free, a line a GPU; a board with shared memory has no figure of its own."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _shared_bytes(path: Path) -> int | None:
    """What Linux calls available, in bytes."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    except OSError:
        return None
    [kib] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")] or [""]
    return int(kib) << 10 if kib.isdigit() else None
