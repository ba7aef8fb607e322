"""How much of this machine's processor is this process's: its cores, its quota, its threads.

A container or a batch system gives a process a part of a machine in two ways that the number of
cores does not show: it may run on some cores only (affinity, cpusets), or for a share of the time
only (control groups' quotas). More threads than that do not compute more: they wait for one
another while the quota runs out.

Read from Linux's own files; elsewhere nothing is found, and nothing is guessed.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

from geomag_edge.arguments import whole

SYSTEM = Path("/")

MOST_THREADS = 64
"""As many threads may always be asked for, and more than that up to four a core."""


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
    for line in lines_of(root / "proc/self/cgroup"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        mounts = root / "sys/fs/cgroup"
        if not controllers:  # version 2: one file holds both numbers
            base, read = mounts, _quota_of_v2
            base = base if (base / "cgroup.controllers").exists() else mounts / "unified"
            base = base if base.exists() else mounts
        elif "cpu" in controllers.split(","):
            base, read = mounts / controllers, _quota_of_v1
            base = base if base.exists() else mounts / "cpu"
        else:
            continue
        folder = base / group.strip("/")
        # In a container the group's path may be the host's, and only its own group be in sight.
        for place in {base, folder, *(p for p in folder.parents if base in p.parents)}:
            if (share := read(place)) is not None:
                found.append(share)
    return min(found, default=None)


def default_threads(root: Path = SYSTEM) -> int | None:
    """Threads for an engine that nobody gave a number, or None where its own choice is right:
    nothing keeps this process from using the whole machine.

    Args:
        root: where Linux's files are; another folder in tests.
    """
    allowed, every = cores() or 1, os.cpu_count() or 1
    share = quota(root)
    whole = _physical(root) or allowed  # two threads of one core are in each other's way
    if allowed == every and (share is None or share >= whole):
        return None
    return max(1, min(whole, math.ceil(share or whole)))


def threads_of(asked: Any) -> int | None:
    """The threads that an engine is to use: those asked for, or `default_threads`.

    Raises:
        InputError: not a whole number from 1 to a few a core.
    """
    if asked is None:
        return default_threads()
    return whole(asked, "threads", 1, max(MOST_THREADS, 4 * (os.cpu_count() or 1)))


def may_spin(threads: int | None, root: Path = SYSTEM) -> bool:
    """Whether idle threads may wait for work by spinning: only where each has a core of its own.
    A thread that spins uses the quota up that another one needs to compute.

    Args:
        threads: of an engine; None: its own choice.
        root: where Linux's files are; another folder in tests.
    """
    share = quota(root)
    own = min(cores() or 1, math.inf if share is None else share)
    return threads is None or threads <= own


def usable_threads() -> int:
    """Threads for short work of our own: the cores this process may use, cut to its quota, which
    is read once."""
    share, own = _first_quota(), cores() or 1
    return own if share is None else max(1, min(own, math.ceil(share)))


def lines_of(path: Path) -> list[str]:
    """The lines of a file of Linux's; none where it is not there."""
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []


@functools.cache
def _first_quota() -> float | None:
    return quota()


def _physical(root: Path) -> int | None:
    """Of the cores that this process may run on, those that are not a second thread of another."""
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return None
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {" ".join(lines_of(root / topology.format(n))) or f"cpu{n}" for n in affinity(0)}
    return len(siblings)


def _quota_of_v2(folder: Path) -> float | None:
    return _share(*(" ".join(lines_of(folder / "cpu.max")).split() or ["max", "0"])[:2])


def _quota_of_v1(folder: Path) -> float | None:
    return _share(
        " ".join(lines_of(folder / "cpu.cfs_quota_us")),
        " ".join(lines_of(folder / "cpu.cfs_period_us")),
    )


def _share(quota_us: str, period_us: str = "100000") -> float | None:
    try:
        used, period = int(quota_us), int(period_us)
    except ValueError:  # "max"
        return None
    return used / period if used > 0 and period > 0 else None
