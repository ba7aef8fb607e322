"""The accuracy gate: a precision is kept only if it still answers as float32 does."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from geomag_edge.errors import DatasetError, InputError

from .compare import compare
from .report import Report

MIN_QUESTIONS = 60
"""With fewer, one changed answer would decide alone."""

SAME_BOX_IOU = 0.9
"""The last digits of a box are below a pixel of its view: boxes that agree so far are the same."""

_BOX = re.compile(r"<box>\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*</box>")


@dataclass(frozen=True)
class Gate:
    """What a precision may cost.

    Attributes:
        max_miou_drop: in points of mIoU (100 points are the whole).
        min_agreement: share of answers that match float32's.
    """

    max_miou_drop: float = 0.5
    min_agreement: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.max_miou_drop <= 100:
            raise InputError(f"a mIoU drop of {self.max_miou_drop} points: give 0 to 100")
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"an agreement of {self.min_agreement}: give a share of 0 to 1")


@dataclass
class Verdict:
    """The gate's outcome.

    Attributes:
        ok: whether the precision may ship.
        engine, providers: what ran the precision.
        dataset, questions: what was asked.
        miou, reference_miou: over the questions with masks; None without any.
        drop: reference minus precision, in points; `drop_low`, `drop_high` its 95 % interval.
        agreement: share of answers that match.
        changed: up to ten questions that are answered otherwise now.
        reasons: what failed, in plain words.
    """

    ok: bool
    engine: str
    providers: dict[str, str]
    dataset: str
    questions: int
    miou: float | None
    reference_miou: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    agreement: float
    gate: Gate
    changed: list[dict[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

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
    changed = [(mine, its) for mine, its in pairs if not same_answer(mine.text, its.text)]
    agreement = 1 - len(changed) / len(pairs)
    try:
        masks = both["mIoU"]
    except KeyError:
        masks = None
    drop = None
    reasons = []
    if masks is not None and masks.difference is not None:
        drop = -100 * masks.difference
        if drop > gate.max_miou_drop:
            reasons.append(
                f"mIoU falls by {drop:.2f} points, allowed are {gate.max_miou_drop:g}"
            )  # fmt: skip
    if agreement < gate.min_agreement:
        reasons.append(
            f"{agreement:.1%} of the answers match float32's, needed are {gate.min_agreement:.1%}"
        )
    return Verdict(
        ok=not reasons,
        engine=report.engine,
        providers=report.providers,
        dataset=report.dataset,
        questions=both.questions,
        miou=masks.value if masks else None,
        reference_miou=masks.other if masks else None,
        drop=drop,
        drop_low=None if masks is None or masks.high is None else -100 * masks.high,
        drop_high=None if masks is None or masks.low is None else -100 * masks.low,
        agreement=agreement,
        gate=gate,
        changed=[
            {"question": mine.id, "prompt": mine.prompt, "was": its.text, "is": mine.text}
            for mine, its in changed[:10]
        ],
        reasons=reasons,
    )


def same_answer(text: str, other: str) -> bool:
    """Whether two answers say the same: equal words, and boxes in the same views that overlap
    with an IoU of at least `SAME_BOX_IOU`."""
    if text == other:
        return True
    if _BOX.sub("<box>", text) != _BOX.sub("<box>", other):
        return False
    return all(map(_same_box, _BOX.findall(text), _BOX.findall(other)))


def _same_box(one: tuple[str, ...], two: tuple[str, ...]) -> bool:
    view, ax0, ay0, ax1, ay1 = map(int, one)
    other_view, bx0, by0, bx1, by1 = map(int, two)
    if view != other_view:
        return False
    shared = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    area = max(0, ax1 - ax0) * max(0, ay1 - ay0) + max(0, bx1 - bx0) * max(0, by1 - by0)
    return one == two or (area > shared > 0 and shared / (area - shared) >= SAME_BOX_IOU)
