"""Ratios of sums with bootstrap intervals, resampled by picture.

Questions about one picture share its difficulties, so a picture is what gets drawn, with all its
questions. Every metric here is a ratio of sums over questions (a mean divides by their number;
cIoU divides pixels by pixels), so one set of draws serves all of them, and two models that
answered the same questions are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
CHUNK = 100


def ratio(numerators: F64, denominators: F64) -> F64:
    """[S,C] and [S,C], summed over the S pictures -> [C]; NaN where a denominator is 0."""
    return _divide(numerators.sum(0), denominators.sum(0))


def draws(pictures: int, resamples: int = RESAMPLES) -> Iterator[F64]:
    """How often each picture is drawn, [r,S] at a time, the same on every run."""
    rng = np.random.default_rng(SEED)
    even = np.full(pictures, 1 / pictures)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        yield rng.multinomial(pictures, even, size=rows).astype(np.float64)


def resampled(numerators: F64, denominators: F64) -> F64:
    """The ratio of each column in each resample, [resamples,C]."""
    return np.concatenate(
        [_divide(w @ numerators, w @ denominators) for w in draws(len(numerators))]
    )


def intervals(samples: F64, pictures: NDArray[np.int64]) -> list[tuple[float, float] | None]:
    """The 95 % percentile interval of each column of [resamples,C].

    None for a column that rests on fewer than two pictures: there is no spread to measure.
    """
    tail = 100 * (1 - LEVEL) / 2
    made: list[tuple[float, float] | None] = []
    for column, count in zip(samples.T, pictures, strict=True):
        known = column[np.isfinite(column)]
        if count < 2 or not known.size:
            made.append(None)
            continue
        low, high = np.percentile(known, [tail, 100 - tail])
        made.append((float(low), float(high)))
    return made


def _divide(above: F64, below: F64) -> F64:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)
