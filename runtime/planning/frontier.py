"""What a bundle's answers are worth at each token budget, as measured and kept in the bundle.

The file `accuracy/frontier.json` travels with the bundle, because accuracy is the model's, while
latency is the machine's. `geomag-edge plan BUNDLE --data SET` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.disk.fields import listed, maybe, one_of, real, record, table, text, whole
from geomag_edge.disk.manifest_fields import BUDGET
from geomag_edge.disk.stored import read_json
from geomag_edge.errors import BudgetError, BundleError
from geomag_edge.manifest import Bundle

INSIDE = "accuracy"
FILE = f"{INSIDE}/frontier.json"
FORMAT_VERSION = 1

METRIC_OF = {"image": "answer", "region": "box IoU@0.5", "pixel": "mIoU"}
"""By which metric of `eval` a level's answers are judged."""

USUAL_ANSWER_TOKENS = {"image": 8, "region": 24, "pixel": 16}
"""How long answers are taken to be where nothing was measured."""


@dataclass(frozen=True)
class Point:
    """A budget and what it is worth: the level's metric with its 95 % interval."""

    budget: TokenBudget
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Frontier:
    """Measured budgets by level.

    Attributes:
        data: the set that was asked.
        engine, precision: what answered.
        questions: of each level.
        answer_tokens: of each level, how long nine of ten answers are at most.
        points: of each level, by visual tokens.
    """

    data: str
    engine: str
    precision: str
    questions: Mapping[str, int]
    answer_tokens: Mapping[str, int]
    points: Mapping[str, tuple[Point, ...]]

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format_version": FORMAT_VERSION,
            "data": self.data,
            "engine": self.engine,
            "precision": self.precision,
            "questions": dict(self.questions),
            "answer_tokens": dict(self.answer_tokens),
            "metric": METRIC_OF,
            "points": {
                level: [asdict(p) | {"budget": p.budget.to_json()} for p in points]
                for level, points in self.points.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Frontier:
        """Reads `to_json`'s form.

        Raises:
            BundleError: another version, or damaged.
        """
        _FRONTIER(data, FILE)
        if data["format_version"] != FORMAT_VERSION:
            raise BundleError(f"{FILE} has another format version: run `geomag-edge plan --data`")
        try:
            points = {
                level: tuple(
                    Point(TokenBudget.from_json(p["budget"]), p["value"], p["low"], p["high"])
                    for p in found
                )
                for level, found in data["points"].items()
            }
        except BudgetError as e:
            raise BundleError(f"{FILE} is damaged: {e}") from e
        return cls(
            data["data"], data["engine"], data["precision"],
            data["questions"], data["answer_tokens"], points,
        )  # fmt: skip


_COUNTS = table(whole(0, 10**9), len(LEVELS), one_of(*LEVELS))
_POINT = record({"budget": BUDGET, "value": real(), "low": maybe(real()), "high": maybe(real())})
_FRONTIER = record(
    {
        "format_version": whole(0, 10**6),
        "data": text(10_000),
        "engine": text(),
        "precision": text(),
        "questions": _COUNTS,
        "answer_tokens": _COUNTS,
        "points": table(listed(_POINT, 1000), len(LEVELS), one_of(*LEVELS)),
    }
)


def frontier_of(bundle: Bundle) -> Frontier | None:
    """What was measured for a bundle, or None.

    Raises:
        BundleError: the file fails its check or is damaged.
    """
    if FILE not in bundle.manifest.files:
        return None
    return Frontier.from_json(read_json(bundle.file(FILE)))


def candidates(budgets: Mapping[str, TokenBudget]) -> dict[str, list[TokenBudget]]:
    """The budgets worth considering at each level, cheapest first.

    Quarters of the level's global grid, no, half and all of its crops, the crops' grid whole or
    halved: from a look at a few tokens to the level's own budget.
    """
    made = {}
    for level in LEVELS:
        full = budgets[level]
        grids = {max(1, round(full.global_grid * part / 4)) for part in (1, 2, 3, 4)}
        shapes = {(0, 0)}
        if full.crops:
            counts = {max(1, full.crops // 2), full.crops}
            sides = {max(1, full.crop_grid // 2), full.crop_grid}
            shapes |= {(k, c) for k in counts for c in sides}
        every = {TokenBudget(g, k, c) for g in grids for k, c in shapes}
        made[level] = sorted(every, key=lambda b: (b.visual_tokens, b))
    return made
