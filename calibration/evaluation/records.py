"""One record a question, and the metrics that records add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.budgets import LEVELS
from geomag_edge.errors import DatasetError

from .metrics import SIZES, size_name

ALL = "all"
IMAGE_SIDES_PX = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Record:
    """What was asked, what was answered, and what it was worth; None where it does not apply.

    Attributes:
        id, picture, level, kind, prompt, expected: of the question.
        image_px: longer side of the image.
        size_px: longer side of the target in the global view, px.
        text: the answer, markup included.
        granularity: the level that the router chose.
        visual_tokens: what the LLM read.
        ms: time of the whole answer.
        intersection_px, union_px, iou: masks.
        box, box_iou: share of boxes found at IoU 0.5, and their mean IoU.
        answer: whether the words are right.
        absent: whether an absent target got neither mask nor box.
    """

    id: str
    picture: str
    level: str
    kind: str
    prompt: str
    expected: str
    image_px: int
    size_px: float | None
    text: str
    granularity: str
    visual_tokens: int
    ms: float
    intersection_px: int | None = None
    union_px: int | None = None
    iou: float | None = None
    box: float | None = None
    box_iou: float | None = None
    answer: bool | None = None
    absent: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what does not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Reads `to_json`'s form.

        Raises:
            DatasetError: not a record.
        """
        try:
            made = cls(**{**{"size_px": None}, **data})
            for field in fields(cls):
                value = getattr(made, field.name)
                if not isinstance(value, _KINDS[str(field.type)]):
                    raise TypeError(f"{field.name} is {repr(value)[:60]}")
            if made.level not in LEVELS:
                raise TypeError(f"level is {made.level[:60]!r}")
        except TypeError as e:
            raise DatasetError(f"a record is damaged: {str(e)[:120]}") from e
        return made

    def groups(self) -> tuple[str, ...]:
        """The names of all groups that the question counts in."""
        made = [
            ALL,
            f"level: {self.level}",
            f"kind: {self.level} {self.kind}",
            f"image: {_image_size(self.image_px)}",
        ]
        if self.size_px is not None:
            made.append(f"size: {size_name(self.size_px)}")
        return tuple(made)


def _image_size(side_px: int) -> str:
    for limit in IMAGE_SIDES_PX:
        if side_px <= limit:
            return f"<= {limit} px"
    return f"> {IMAGE_SIDES_PX[-1]} px"


_KINDS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "int | None": (int, type(None)),
    "bool | None": (bool, type(None)),
}

Part = tuple[float, float]
"""What a question adds to a metric's numerator and denominator."""


def _mean(value: float | bool | None) -> Part | None:
    return None if value is None else (float(value), 1.0)


def _pixels(record: Record) -> Part | None:
    if record.intersection_px is None or record.union_px is None:
        return None
    return float(record.intersection_px), float(record.union_px)


METRICS: dict[str, Callable[[Record], Part | None]] = {
    "mIoU": lambda r: _mean(r.iou),
    "mIoU present": lambda r: _mean(r.iou) if r.absent is None else None,
    "cIoU": _pixels,
    "box IoU@0.5": lambda r: _mean(r.box),
    "box mIoU": lambda r: _mean(r.box_iou),
    "answer": lambda r: _mean(r.answer),
    "absent": lambda r: _mean(r.absent),
    "router": lambda r: _mean(r.granularity == r.level),
    "visual tokens": lambda r: _mean(r.visual_tokens),
}
"""Every metric, as a ratio of sums over questions."""

Column = tuple[str, str]
"""A metric and a group."""


@dataclass
class Sums:
    """Records added up by picture.

    Attributes:
        columns: metric and group of each column.
        above, below: f64[S,C], numerators and denominators.
        questions: i64[S,C].
    """

    columns: list[Column]
    above: NDArray[np.float64]
    below: NDArray[np.float64]
    questions: NDArray[np.int64]

    @property
    def pictures(self) -> NDArray[np.int64]:
        """i64[C], the pictures on which each column rests."""
        return np.count_nonzero(self.questions, axis=0).astype(np.int64)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Sums:
        """Adds up; pictures and columns in the order in which they first occur, metrics first."""
        rows = {name: i for i, name in enumerate(dict.fromkeys(r.picture for r in records))}
        found: dict[Column, list[tuple[int, Part]]] = {}
        for metric, part_of in METRICS.items():
            for record in records:
                part = part_of(record)
                for group in record.groups() if part is not None else ():
                    assert part is not None
                    found.setdefault((metric, group), []).append((rows[record.picture], part))
        shape = (len(rows), len(found))
        made = cls(
            sorted(found, key=_order), np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
        )
        for c, column in enumerate(made.columns):
            for row, (above, below) in found[column]:
                made.above[row, c] += above
                made.below[row, c] += below
                made.questions[row, c] += 1
        return made


_SPLITS = (ALL, "level", "kind", "size", "image")


def group_order(group: str) -> tuple[int, int, str]:
    """Sorts groups: all, levels, kinds by level, sizes, image sizes."""
    split, _, name = group.partition(": ")
    first = {"level": name, "kind": name.split(" ")[0]}.get(split)
    if first is not None:
        place = LEVELS.index(first)
    else:
        order = (*SIZES, *(_image_size(s) for s in IMAGE_SIDES_PX))
        place = order.index(name) if name in order else len(order)
    return _SPLITS.index(split), place, name


def _order(column: Column) -> tuple[int, tuple[int, int, str]]:
    return list(METRICS).index(column[0]), group_order(column[1])
