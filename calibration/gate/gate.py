"""The accuracy gate: a precision is kept only if it still answers as float32 does.

Words, boxes and masks are each judged by their own measure: words must be the same, the same boxes
must be found, masks (and boxes, where there are many) must be worth as much against the truth. The
digits of a box that the model is unsure of change with any rounding, so they are not compared as
text.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from geomag_edge.calibration.evaluation.compare import Comparison, compare
from geomag_edge.calibration.evaluation.report import Report
from geomag_edge.errors import DatasetError, InputError
from geomag_edge.machine import instruction_sets

MIN_QUESTIONS = 60
"""With fewer, one changed answer would decide alone."""

MIN_BOXES = 200
"""With fewer, one box would cost more than half a point of their mean IoU; they then count as
answers, found or not found."""

_BOX = re.compile(r"<box>[^<]*</box>")


@dataclass(frozen=True)
class Gate:
    """What a precision may cost.

    Attributes:
        max_miou_drop: in points (100 are the whole), of masks' and of boxes' mIoU.
        min_agreement: share of answers with float32's words, that find the boxes it finds.
    """

    max_miou_drop: float = 0.5
    min_agreement: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.max_miou_drop <= 100:
            raise InputError(f"a mIoU drop of {self.max_miou_drop} points: give 0 to 100")
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"an agreement of {self.min_agreement}: give a share of 0 to 1")


@dataclass(frozen=True)
class Drop:
    """A metric of the precision and of float32, and what was lost, in points.

    `low` and `high` are the loss's 95 % interval; None where too few pictures were asked.
    """

    value: float
    reference: float
    points: float
    low: float | None
    high: float | None


@dataclass
class Verdict:
    """The gate's outcome.

    Attributes:
        ok: whether the precision may ship.
        engine, providers: what ran the precision.
        dataset, questions: what was asked.
        masks: mIoU over the questions about masks; None without any.
        boxes: box mIoU over the questions about boxes; None without any.
        agreement: share of answers with the same words that find the same boxes.
        identical: share of answers that are the same to the last digit.
        changed: up to ten questions that are answered otherwise now.
        reasons: what failed, in plain words.
        judged: the metrics whose fall could refuse; boxes only where there are many.
        instruction_sets: of the CPU that ran it.
        exact_integers: whether that engine's int8 was tried there and found exact; None for an
            engine that cannot tell.
    """

    ok: bool
    engine: str
    providers: dict[str, str]
    dataset: str
    questions: int
    masks: Drop | None
    boxes: Drop | None
    agreement: float
    identical: float
    gate: Gate
    changed: list[dict[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    instruction_sets: list[str] = field(default_factory=instruction_sets)
    exact_integers: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The form kept in the manifest."""
        return asdict(self)


def judge(report: Report, reference: Report, gate: Gate) -> Verdict:
    """Weighs a precision's evaluation against float32's on the same set.

    Raises:
        DatasetError: the reports share too few questions to judge by.
    """
    both = compare(report, reference)
    if both.questions < MIN_QUESTIONS:
        raise DatasetError(
            f"{both.questions} questions are too few to judge a precision by: give a set of at "
            f"least {MIN_QUESTIONS}"
        )
    theirs = {r.id: r for r in reference.records}
    pairs = [(r, theirs[r.id]) for r in report.records if r.id in theirs]
    changed = [
        (mine, its)
        for mine, its in pairs
        if not same_words(mine.text, its.text) or mine.box != its.box
    ]
    agreement = 1 - len(changed) / len(pairs)
    masks, boxes = _drop(both, "mIoU"), _drop(both, "box mIoU")
    judged = [("mIoU", masks)]
    if sum(r.box is not None for r in report.records) >= MIN_BOXES:
        judged.append(("box mIoU", boxes))
    reasons = [
        f"{name} falls by {drop.points:.2f} points, allowed are {gate.max_miou_drop:g}"
        for name, drop in judged
        if drop is not None and drop.points > gate.max_miou_drop
    ]
    if agreement < gate.min_agreement:
        reasons.append(
            f"{len(changed)} of {len(pairs)} answers have other words or boxes than float32's "
            f"({agreement:.2%} agree, needed are {gate.min_agreement:.2%})"
        )
    return Verdict(
        ok=not reasons,
        engine=report.engine,
        providers=report.providers,
        dataset=report.dataset,
        questions=both.questions,
        masks=masks,
        boxes=boxes,
        agreement=agreement,
        identical=both.identical,
        gate=gate,
        changed=[
            {"question": mine.id, "prompt": mine.prompt, "was": its.text, "is": mine.text}
            for mine, its in changed[:10]
        ],
        reasons=reasons,
        judged=[name for name, drop in judged if drop is not None],
    )


def _drop(both: Comparison, metric: str) -> Drop | None:
    try:
        found = both[metric]
    except KeyError:
        return None
    if found.difference is None or found.value is None or found.other is None:
        return None
    return Drop(
        found.value,
        found.other,
        -100 * found.difference,
        None if found.high is None else -100 * found.high,
        None if found.low is None else -100 * found.low,
    )


def same_words(text: str, other: str) -> bool:
    """Whether two answers say the same, and name as many boxes at the same places of the text."""
    return _BOX.sub("<box>", text) == _BOX.sub("<box>", other)
