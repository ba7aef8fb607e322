"""What answers are worth at each token budget: every question asked at every budget of its level.

The result is the frontier that the planner reads (`geomag_edge.runtime.planning.frontier`); it is
kept in the bundle, because it is the model's, whatever machine runs it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.calibration.sets.items import Dataset
from geomag_edge.disk.amend import amended
from geomag_edge.errors import DatasetError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.planning.frontier import (
    FILE,
    INSIDE,
    METRIC_OF,
    USUAL_ANSWER_TOKENS,
    Frontier,
    Point,
    candidates,
)

from .evaluate import prompt_of, weigh
from .records import Record
from .report import Report

if TYPE_CHECKING:
    from geomag_edge.runtime.chain.pipeline import Pipeline

ANSWER_SHARE = 90
"""Percentile of answer lengths that a plan reckons with."""

Key = tuple[str, TokenBudget]


def measure(
    pipe: Pipeline, dataset: Dataset, progress: Callable[[str], None] = lambda name: None
) -> Frontier:
    """Asks every question at every candidate budget of its level.

    Args:
        pipe: an open pipeline, in the engine and precision whose answers count.
        dataset: the questions.
        progress: called with each picture's name.

    Raises:
        DatasetError: no question.
    """
    manifest = pipe.bundle.manifest
    budgets = candidates(manifest.budgets)
    records: dict[Key, list[Record]] = defaultdict(list)
    lengths: dict[str, list[int]] = defaultdict(list)
    for picture in dataset.pictures():
        progress(picture.name)
        with pipe.open(picture.image) as session:
            for item in picture.items:
                for budget in budgets[item.level]:
                    result = session.ask(prompt_of(item, session), budget)
                    record = weigh(picture.name, item, result, session, manifest.view.view_px)
                    records[item.level, budget].append(record)
                    lengths[item.level].append(len(result.token_ids))
    if not records:
        raise DatasetError(f"{dataset.name} has no questions: there is nothing to measure")
    return Frontier(
        data=dataset.name,
        engine=pipe.chain.engine.name,
        precision=pipe.chain.engine.precision,
        questions={
            level: len(next((r for (at, _), r in records.items() if at == level), ()))
            for level in LEVELS
        },
        answer_tokens={
            level: int(np.percentile(lengths[level], ANSWER_SHARE, method="higher"))
            if lengths[level]
            else USUAL_ANSWER_TOKENS[level]
            for level in LEVELS
        },
        points={
            level: tuple(
                point
                for budget in budgets[level]
                if (point := _point(level, budget, records[level, budget])) is not None
            )
            for level in LEVELS
        },
    )


def _point(level: str, budget: TokenBudget, records: list[Record]) -> Point | None:
    """None where the level has no question that its metric weighs."""
    if not records:
        return None
    report = Report("", "", "", "", "", {}, str(budget), records=records)
    try:
        found = report[METRIC_OF[level]]
    except KeyError:
        return None
    if found.value is None:
        return None
    return Point(budget, found.value, found.low, found.high)


def keep(bundle: Bundle, frontier: Frontier) -> None:
    """Puts a frontier into a bundle, in place of an earlier one.

    Raises:
        OutputError: the bundle cannot be written.
    """
    with amended(bundle, INSIDE) as change:
        name = FILE.removeprefix(f"{INSIDE}/")
        (change.stage / name).write_text(json.dumps(frontier.to_json(), indent=1) + "\n")
