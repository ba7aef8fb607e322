"""Timing that survives a noisy machine: forms run in turn, medians and percentiles, ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

Form = Callable[[], Any]
"""One way of doing the work that is compared; called once a round."""
Taken = dict[str, dict[str, list[float]]]
"""Name of a form -> `wall_ms` and `cpu_ms` (of the process) of each timed round, in order."""


def interleaved(
    forms: Mapping[str, Form],
    rounds: int,
    warmup: int = 1,
    progress: Callable[[str], None] = lambda name: None,
) -> Taken:
    """Runs every form once a round, so that whatever else the machine does hits all alike.

    Args:
        forms: name -> what to time.
        rounds: timed runs of each.
        warmup: untimed runs of each before.
        progress: called with a form's name before each of its runs.
    """
    taken: Taken = {n: {"wall_ms": [], "cpu_ms": []} for n in forms}
    for turn in range(warmup + rounds):
        for name, form in forms.items():
            progress(name)
            wall, cpu = time.perf_counter(), time.process_time()
            form()
            if turn >= warmup:
                taken[name]["cpu_ms"].append((time.process_time() - cpu) * 1e3)
                taken[name]["wall_ms"].append((time.perf_counter() - wall) * 1e3)
    return taken


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """`p50`, `p90` and `p99` of measured values, all of them really measured ones but p50."""
    listed = np.asarray(list(values), np.float64)
    p90, p99 = np.percentile(listed, [90, 99], method="higher").tolist()
    return {"p50": float(np.median(listed)), "p90": p90, "p99": p99}


def medians(taken: Taken, clock: str = "wall_ms") -> dict[str, float]:
    """Median milliseconds of each form by one clock."""
    return {name: median(times[clock]) for name, times in taken.items()}


def stage_medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median of each stage's own milliseconds over some runs, at least one."""
    return {stage: median(run[stage] for run in runs) for stage in runs[0]}


def spreads(taken: Taken) -> dict[str, dict[str, dict[str, float]]]:
    """`percentiles` of each form by each clock."""
    return {name: {c: percentiles(v) for c, v in times.items()} for name, times in taken.items()}


def ratio(
    slow: Sequence[float], fast: Sequence[float], paired: bool = True, resamples: int = 2000
) -> dict[str, float]:
    """How many times longer `slow` takes than `fast`: ratio of medians, 95 % bootstrap interval.

    Args:
        slow, fast: times of rounds, in any one unit.
        paired: the rounds were interleaved, so that equal ones share their noise; as many of both.
        resamples: of the bootstrap.
    """
    a, b = np.asarray(slow, np.float64), np.asarray(fast, np.float64)
    rng = np.random.default_rng(0)
    picks_a = rng.integers(len(a), size=(resamples, len(a)))
    picks_b = picks_a if paired else rng.integers(len(b), size=(resamples, len(b)))
    ratios = np.median(a[picks_a], 1) / np.median(b[picks_b], 1)
    low, high = np.percentile(ratios, [2.5, 97.5]).tolist()
    return {"ratio": float(np.median(a) / np.median(b)), "low": low, "high": high}


def ratios(
    slow: Mapping[str, Sequence[float]], fast: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float]]:
    """`ratio` of two forms of one `interleaved` by each clock."""
    return {clock: ratio(times, fast[clock]) for clock, times in slow.items()}
