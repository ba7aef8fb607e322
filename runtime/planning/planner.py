"""From a latency budget to a token budget: the best expected answer that fits in the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from geomag_edge.arguments import real, whole
from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.errors import BudgetError
from geomag_edge.manifest import Bundle, Manifest
from geomag_edge.runtime.planning.frontier import (
    METRIC_OF,
    USUAL_ANSWER_TOKENS,
    Frontier,
    candidates,
    frontier_of,
)
from geomag_edge.runtime.planning.latency import LatencyModel

USUAL_TEXT_TOKENS = 32
"""Prompt tokens beside the visual ones, where the prompt is not known yet."""


@dataclass(frozen=True)
class Option:
    """One budget of the frontier.

    Attributes:
        budget: the token budget.
        ms: predicted time of a query, `safe_ms` at the 95th percentile.
        stages_ms: predicted time by stage.
        expected: the level's metric as measured with this budget, or None.
    """

    budget: TokenBudget
    ms: float
    safe_ms: float
    stages_ms: dict[str, float]
    expected: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"budget": self.budget.to_json()}


@dataclass(frozen=True)
class Plan:
    """The choice for one level.

    Attributes:
        level: the task level.
        latency_ms: what was asked for.
        chosen: the option to run.
        fits: whether it is predicted to keep the deadline; the cheapest runs where none does.
        loss: the best option's expected metric minus the chosen one's; None without measurements.
        options: the frontier, cheapest first.
    """

    level: str
    latency_ms: float
    chosen: Option
    fits: bool
    loss: float | None
    options: list[Option]

    @property
    def metric(self) -> str:
        """The metric of `eval` that `expected` and `loss` are in."""
        return METRIC_OF[self.level]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {
            "metric": self.metric,
            "chosen": self.chosen.to_json(),
            "options": [o.to_json() for o in self.options],
        }


class Planner:
    """Chooses token budgets by this machine's latency and this bundle's accuracy."""

    def __init__(self, manifest: Manifest, model: LatencyModel, frontier: Frontier | None):
        self.manifest, self.model, self.frontier = manifest, model, frontier
        self._budgets = candidates(manifest.budgets)
        if frontier is not None:
            known = {level: [p.budget for p in pts] for level, pts in frontier.points.items()}
            self._budgets |= {level: budgets for level, budgets in known.items() if budgets}

    @classmethod
    def of(cls, bundle: Bundle, model: LatencyModel) -> Planner:
        """The planner of a bundle, with what the bundle knows of its accuracy."""
        return cls(bundle.manifest, model, frontier_of(bundle))

    def budgets(self, level: str) -> list[TokenBudget]:
        """What is considered at a level, cheapest first.

        Raises:
            BudgetError: no such level.
        """
        if level not in LEVELS:
            raise BudgetError(f"unknown level {str(level)[:40]!r}: give one of {', '.join(LEVELS)}")
        return self._budgets[level]

    def answer_tokens(self, level: str) -> int:
        """How long an answer of a level is taken to be."""
        usual = USUAL_ANSWER_TOKENS[level]
        return self.frontier.answer_tokens.get(level, usual) if self.frontier else usual

    def expected(self, level: str, budget: TokenBudget) -> float | None:
        """The level's metric as measured with a budget, or None."""
        points = self.frontier.points.get(level, ()) if self.frontier else ()
        return next((p.value for p in points if p.budget == budget), None)

    def options(
        self, level: str, levels: int, text_tokens: int = USUAL_TEXT_TOKENS
    ) -> list[Option]:
        """Every budget of a level with its prediction, cheapest first.

        Args:
            level: the task level.
            levels: PSC's looks at an image of this size (`useful_levels`).
            text_tokens: prompt tokens beside the visual ones.
        """
        for number, what in ((levels, "levels"), (text_tokens, "text_tokens")):
            whole(number, what, 0)
        made = []
        for budget in self.budgets(level):
            stages = self.model.query(budget, levels, text_tokens, self.answer_tokens(level))
            ms = sum(stages.values())
            expected = self.expected(level, budget)
            made.append(Option(budget, ms, ms * self.model.spread, stages, expected))
        return sorted(made, key=lambda o: o.ms)

    def plan(
        self, level: str, latency_ms: float, levels: int, text_tokens: int = USUAL_TEXT_TOKENS
    ) -> Plan:
        """The best option whose safe time fits; see `options` and `Plan`.

        Raises:
            BudgetError: no positive time.
        """
        check_latency(latency_ms)
        options = self.options(level, levels, text_tokens)
        fitting = [o for o in options if o.safe_ms <= latency_ms]
        chosen = best(fitting or options[:1])
        top = best(options)
        loss = None
        if top.expected is not None and chosen.expected is not None:
            loss = max(0.0, top.expected - chosen.expected)
        return Plan(level, latency_ms, chosen, bool(fitting), loss, options)


def best(options: list[Option]) -> Option:
    """The option with the best expected answer; where nothing was measured, the most tokens."""

    def worth(option: Option) -> tuple[float, float, float]:
        known = -1.0 if option.expected is None else option.expected
        tokens = option.budget.visual_tokens if option.expected is None else 0
        return known, tokens, -option.ms

    return max(options, key=worth)


def check_latency(latency_ms: float) -> float:
    """Refuses what is no time to answer in.

    Raises:
        BudgetError: not a positive finite number.
    """
    if not isinstance(latency_ms, float):
        latency_ms = real(latency_ms, "latency_ms", BudgetError)
    if not 0 < latency_ms < float("inf"):
        raise BudgetError(f"a latency of {latency_ms:g} ms is not possible: give more than 0")
    return latency_ms
