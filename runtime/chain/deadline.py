"""Keeping a deadline while a query runs: fewer tokens, fewer crops, a shorter answer.

The plan is made when the level and the image are known, with what has really been spent by then.
From there on each stage asks before it starts. What is still to come is reserved for: a look at a
crop is given up before the answer's words are, and words before the mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from geomag_edge.budgets import TokenBudget
from geomag_edge.runtime.planning.latency import at
from geomag_edge.runtime.planning.planner import Planner, best, check_latency

RESERVE_MS = 1.0
"""Kept for what comes after the last stage: the answer's text and boxes."""

LEAST_ANSWER_TOKENS = 2
"""An answer is decoded to at least so many tokens where only the number of crops is in question."""


class Deadline:
    """One query on its way.

    Attributes:
        latency_ms: from the start to the answer.
        planned: the budget that was planned, None until then.
    """

    def __init__(
        self,
        planner: Planner,
        latency_ms: float,
        started: float | None = None,
        now: Callable[[], float] = time.perf_counter,
    ):
        """Starts the clock.

        Args:
            planner: of the bundle and engine that answer.
            latency_ms: time allowed.
            started: when it began, by `now`; None is now.
            now: a clock in seconds.
        """
        self.latency_ms = check_latency(latency_ms)
        self.planner, self._now = planner, now
        self._started = now() if started is None else started
        self._crop_ms = 0.0
        self._level, self._text_tokens = "image", 0
        self._planned_ms = 0.0
        self._fits = True
        self.planned: TokenBudget | None = None

    @property
    def spent_ms(self) -> float:
        """Time since the start."""
        return (self._now() - self._started) * 1e3

    @property
    def left_ms(self) -> float:
        """Time to the deadline, as far as predictions may be trusted with it."""
        return (self.latency_ms - RESERVE_MS - self.spent_ms) / self.planner.model.spread

    def saw_crop(self, ms: float) -> None:
        """How long a view's cut took from this image, which may have to be read from a file."""
        self._crop_ms = ms

    def plan(self, level: str, levels: int, text_tokens: int) -> TokenBudget:
        """The budget to run, now that the global view is encoded.

        Args:
            level: as routed.
            levels: PSC's looks at an image of this size.
            text_tokens: prompt tokens beside the visual ones.
        """
        self._level, self._text_tokens = level, text_tokens
        done = self.planner.model
        options = self.planner.options(level, levels, text_tokens)
        first = at(done.crop, 1) + at(done.encode, 1) + at(done.select, 1)
        cost = {
            o.budget: o.ms - first + o.budget.crops * max(0.0, self._crop_ms - at(done.crop, 1))
            for o in options
        }
        left = self.left_ms
        fitting = [o for o in options if cost[o.budget] <= left]
        self._fits = bool(fitting)
        chosen = best(fitting or [min(options, key=lambda o: cost[o.budget])])
        self.planned, self._planned_ms = chosen.budget, self.spent_ms + cost[chosen.budget]
        return chosen.budget

    def views(self, wanted: int, selected: bool, crops: int) -> int:
        """How many of `wanted` more views there is time for.

        Args:
            wanted: views not encoded yet.
            selected: whether PSC looks into them.
            crops: views that the answer already counts on.
        """
        assert self.planned is not None
        model, budget = self.planner.model, self.planned
        for count in range(wanted, 0, -1):
            ms = at(model.encode, count) + max(at(model.crop, count), count * self._crop_ms)
            if selected:
                ms += count * at(model.select, 1)
            kept = TokenBudget(budget.global_grid, crops + count, budget.crop_grid)
            if ms + self._answer_ms(kept) <= self.left_ms:
                return count
        return 0

    def tokens(self, crops: int) -> TokenBudget:
        """The budget whose visual tokens are to be read, with `crops` encoded: crops go first,
        then the global grid gets coarser."""
        assert self.planned is not None
        grid, side = self.planned.global_grid, self.planned.crop_grid
        shapes = [TokenBudget(grid, k, side if k else 0) for k in range(crops, -1, -1)]
        shapes += [TokenBudget(g) for g in range(grid - 1, 0, -1)]
        for shape in shapes:
            if self._answer_ms(shape) <= self.left_ms:
                break
        return shape

    def pace(self, views: int) -> Callable[[int, bool], bool]:
        """Whether a decode step after `past` tokens leaves time for the masks of `views` views.

        The step that a [SEG] needs for its mask is always taken.
        """
        model = self.planner.model

        def go_on(past: int, closing: bool) -> bool:
            return closing or at(model.step, past) + at(model.mask, views) <= self.left_ms

        return go_on

    def closed(self, ran: TokenBudget, stopped: str) -> dict[str, Any]:
        """The report: planned against actual, what was given up, and the expected loss.

        Args:
            ran: the budget in the end.
            stopped: what ended the answer.
        """
        assert self.planned is not None
        planner, spent = self.planner, self.spent_ms
        options = [planner.expected(self._level, b) for b in planner.budgets(self._level)]
        measured = [value for value in options if value is not None]
        expected = planner.expected(self._level, self.planned)
        loss = max(measured) - expected if expected is not None and measured else None
        return {
            "latency_ms": self.latency_ms,
            "planned_ms": round(self._planned_ms, 3),
            "actual_ms": round(spent, 3),
            "kept": spent <= self.latency_ms,
            "fits": self._fits,
            "planned_budget": str(self.planned),
            "dropped_crops": self.planned.crops - ran.crops,
            "shortened": stopped == "deadline",
            "expected": expected,
            "expected_loss": None if loss is None else round(loss, 4),
            "source": planner.model.source,
        }

    def _answer_ms(self, budget: TokenBudget) -> float:
        tokens = budget.visual_tokens + self._text_tokens
        length = max(LEAST_ANSWER_TOKENS, self.planner.answer_tokens(self._level))
        model = self.planner.model
        after = sum(model.answer(tokens, length, 1 + budget.crops).values())
        return after + at(model.project, budget.visual_tokens)
