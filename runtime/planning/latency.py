"""What a query costs in milliseconds, stage by stage, as a function of its token budget.

Each stage is a short polynomial in what drives it (views, tokens, past tokens), with coefficients
that are never negative, so that more work never counts as less time. Coefficients come from this
machine's own measurement (`runtime/chain/probe.py`) or, for a device that is not at hand, from the
roofline of the fit check (`runtime/planning/roofline.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from geomag_edge.budgets import TokenBudget

Polynomial = tuple[float, ...]
"""Coefficients in ms, lowest power first."""

STAGES = ("crop", "encode", "select", "project", "prefill", "decode", "mask")


def fitted(x: Sequence[float], ms: Sequence[float], degree: int) -> Polynomial:
    """The polynomial with no negative coefficient that is closest to the points, relatively.

    Squares of relative errors are summed, so that a cheap point counts as much as a dear one. All
    sets of terms are tried; there are at most eight.

    Args:
        x: what was varied, at least one value.
        ms: the measured milliseconds.
        degree: highest power, at most 2.
    """
    points, times = np.asarray(x, np.float64), np.maximum(np.asarray(ms, np.float64), 1e-6)
    terms = points[:, None] ** np.arange(degree + 1) / times[:, None]  # [points, degree + 1]
    best: tuple[float, Polynomial] | None = None
    for count in range(1, min(degree + 1, len(points)) + 1):
        for used in combinations(range(degree + 1), count):
            some = np.linalg.lstsq(terms[:, used], np.ones(len(times)), rcond=None)[0]
            if (some < 0).any():
                continue
            error = float(np.square(terms[:, used] @ some - 1).sum())
            if best is None or error < best[0] - 1e-12:
                whole = np.zeros(degree + 1)
                whole[list(used)] = some
                best = error, tuple(whole.tolist())
    assert best is not None  # the constant alone is never negative
    return best[1]


def at(line: Polynomial, x: float) -> float:
    """A polynomial's value in ms."""
    return float(sum(c * x**power for power, c in enumerate(line)))


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of each stage.

    Attributes:
        crop: of n views cut out of an image in memory.
        encode: of n views in one call.
        select: of PSC's look into one view.
        project: of n visual tokens.
        prefill: of n prompt tokens, pictures included.
        step: of one decode step after n tokens.
        mask: of n views, one mask query.
        spread: what a query took at the 95th percentile over what this model says; at least 1.
        source: where the coefficients come from, in plain words.
        lost: why they are not remembered for the next time, in plain words, or None.
    """

    crop: Polynomial
    encode: Polynomial
    select: Polynomial
    project: Polynomial
    prefill: Polynomial
    step: Polynomial
    mask: Polynomial
    spread: float
    source: str
    lost: str | None = None

    def query(
        self, budget: TokenBudget, levels: int, text_tokens: int, answer_tokens: int
    ) -> dict[str, float]:
        """Milliseconds of each of `STAGES` for one query.

        Args:
            budget: visual tokens and crops.
            levels: PSC's looks, as `geomag_edge.views.useful_levels` says.
            text_tokens: prompt tokens beside the visual ones.
            answer_tokens: tokens of the answer.
        """
        calls = looks(budget.crops, levels)
        views = 1 + budget.crops
        selected = 1 + sum(calls[1:-1])
        return {
            "crop": sum(at(self.crop, n) for n in calls),
            "encode": sum(at(self.encode, n) for n in calls),
            "select": at(self.select, 1) * selected,
            "project": at(self.project, budget.visual_tokens),
        } | self.answer(budget.visual_tokens + text_tokens, answer_tokens, views)

    def answer(self, prompt_tokens: int, answer_tokens: int, views: int) -> dict[str, float]:
        """Milliseconds of prefill, decode and mask: all that follows the look at the picture."""
        middle = prompt_tokens + answer_tokens / 2
        return {
            "prefill": at(self.prefill, prompt_tokens),
            "decode": at(self.step, middle) * max(0, answer_tokens - 1),
            "mask": at(self.mask, views),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyModel:
        """Reads `to_json`'s form.

        Raises:
            KeyError, TypeError, ValueError: some other data.
        """
        lines: dict[str, Any] = {
            name: tuple(float(c) for c in data[name])
            for name in ("crop", "encode", "select", "project", "prefill", "step", "mask")
        }
        return cls(**lines, spread=float(data["spread"]), source=str(data["source"]))


def looks(crops: int, levels: int) -> list[int]:
    """Views that each call of the encoder gets: the whole, then what each of PSC's looks finds.

    The pyramid of `geomag_edge.views.choose_crops` where every look finds all that it may.
    """
    calls, left = [1], crops
    for level in range(levels):
        share = left // (levels - level)
        if share:
            calls.append(share)
            left -= share
    return calls
