"""Which precisions may run together: what their gates saw them lose must leave room for all.

A recipe is judged by its answers as a whole. Graphs of several recipes in one chain are a model
that nobody has judged, so they may only be mixed where the losses of each, added up, stay within
the strictest of their gates. Float32 loses nothing. Bfloat16 runs float32's graphs in an arithmetic
that no gate has seen, so it is never mixed in. A model that was never trained has nothing to lose.
"""

from __future__ import annotations

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
    mean IoU in points of 100: each the worst over the engines that judged it.
    """

    changed: float
    points: float
    max_changed: float
    max_points: float


def loss_of(report: Mapping[str, Any]) -> Loss | None:
    """The loss that a precision's entry in the manifest's `accuracy` tells of; None where no gate
    judged it, or one refused it."""
    verdicts = list((report.get("gate") or {}).values())
    if not verdicts or not all(v.get("ok") for v in verdicts):
        return None
    return Loss(
        changed=max(1 - v["agreement"] for v in verdicts),
        points=max(max(0.0, (v["masks"] or {}).get("points", 0.0)) for v in verdicts),
        max_changed=min(1 - v["gate"]["min_agreement"] for v in verdicts),
        max_points=min(v["gate"]["max_miou_drop"] for v in verdicts),
    )


def fits(losses: Iterable[Loss]) -> bool:
    """Whether precisions of these losses may run together."""
    several = list(losses)
    return not several or (
        sum(x.changed for x in several) <= min(x.max_changed for x in several) + ROOM
        and sum(x.points for x in several) <= min(x.max_points for x in several) + ROOM
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
        if fits(judged[name] for name in names)
    ]
    widest = [one for one in allowed if one and not any(one < other for other in allowed)]
    return widest or [{name} for name in stored]
