"""Which precisions may run together: what their gates saw them lose must leave room for all.

A recipe is judged by its answers as a whole. Graphs of several recipes in one chain are a model
that nobody has judged, so they may only be mixed where the losses of each, added up, stay within
the strictest of their gates. Float32 loses nothing. Bfloat16 runs float32's graphs in an arithmetic
that no gate has seen, so it is never mixed in. A model that was never trained has nothing to lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

FLOAT = "fp32"

ROOM = 1e-9
"""Sums of losses meet a limit exactly where the losses themselves do."""


@dataclass(frozen=True)
class Loss:
    """What one precision lost against float32, and what its gate allowed.

    `changed` is the share of answers with other words or boxes, `points` the fall of the masks'
    mean IoU in points of 100 and `box_points` that of the boxes', where they were judged: each the
    worst over the engines that judged it.
    """

    changed: float
    points: float
    box_points: float
    max_changed: float
    max_points: float


def loss_of(report: Mapping[str, Any]) -> Loss | None:
    """The loss that a precision's entry in the manifest's `accuracy` tells of; None where no gate
    judged it, one refused it, or an entry is of another version or damaged."""
    try:
        verdicts = list((report.get("gate") or {}).values())
        if not verdicts or not all(v["ok"] is True for v in verdicts):
            return None
        found = Loss(
            changed=max(1 - v["agreement"] for v in verdicts),
            points=max(_points(v["masks"]) for v in verdicts),
            box_points=max(map(_box_points, verdicts)),
            max_changed=min(1 - v["gate"]["min_agreement"] for v in verdicts),
            max_points=min(v["gate"]["max_miou_drop"] for v in verdicts),
        )
    except (KeyError, TypeError, AttributeError):
        return None
    return found if all(map(math.isfinite, vars(found).values())) else None


def _points(drop: Mapping[str, Any] | None) -> float:
    """What a metric fell by; a gain, or no question about it, is no loss."""
    return 0.0 if drop is None else max(0.0, drop["points"])


def _box_points(verdict: Mapping[str, Any]) -> float:
    """What the boxes fell by, where they were judged or a verdict of before does not say so."""
    judged = verdict.get("judged", ["box mIoU"])
    return _points(verdict["boxes"]) if "box mIoU" in judged else 0.0


def judged_by(report: Mapping[str, Any]) -> list[str]:
    """The engines whose answers the gate let pass; none where `loss_of` gives none."""
    return [] if loss_of(report) is None else list(report["gate"])


def fits(losses: Iterable[Loss]) -> bool:
    """Whether precisions of these losses may run together."""
    several = list(losses)
    return not several or (
        sum(x.changed for x in several) <= min(x.max_changed for x in several) + ROOM
        and sum(x.points for x in several) <= min(x.max_points for x in several) + ROOM
        and sum(x.box_points for x in several) <= min(x.max_points for x in several) + ROOM
    )


def mixtures(accuracy: Mapping[str, Mapping[str, Any]], stored: Sequence[str]) -> list[set[str]]:
    """The sets of precisions from which a chain's graphs may be taken.

    Args:
        accuracy: the manifest's reports by precision.
        stored: the precisions that the bundle of a trained model holds.

    Returns:
        Those that lie in no other; at least one, since a bundle's only precision may always run.
    """
    losses = {name: loss_of(accuracy.get(name, {})) for name in stored if name != FLOAT}
    judged = {name: loss for name, loss in losses.items() if loss is not None}
    floats = {FLOAT} & set(stored)
    allowed = [
        floats | set(names)
        for count in range(len(judged), -1, -1)
        for names in combinations(judged, count)
        if count <= 1 or fits(judged[name] for name in names)  # one alone is what its gate let pass
    ]
    widest = [one for one in allowed if one and not any(one < other for other in allowed)]
    return widest or [{name} for name in stored]
