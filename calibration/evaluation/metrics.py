"""What one answer is worth: masks, boxes, words. Pure functions of an answer and the truth.

Masks: the union of all masks of an answer against the union of all targets. Models of this family
say one [SEG] for a group ("segment the ships"), and users look at the union, so matching instances
would punish a right answer for its bookkeeping.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomag_edge.calibration.sets.items import Item, Rect
from geomag_edge.prompts import SEG_TOKEN
from geomag_edge.views import iou_with

BOX_IOU = 0.5
SMALL_PX, LARGE_PX = 16, 64
SIZES = ("<16 px", "16-64 px", ">64 px")
"""Of a target's longer side in the global view: below, from .. to, above."""

_BOX_MARKUP = re.compile(r"<box>[^<]*</box>")


class AnswerMask(Protocol):
    """What is needed of `geomag_edge.runtime.answers.masks.Mask`."""

    def blocks(self) -> Iterable[Rect]:
        """Windows outside of which the mask is empty."""
        ...

    def window(self, row0: int, col0: int, row1: int, col1: int) -> NDArray[np.bool_]:
        """A part of the mask."""
        ...


def words(text: str) -> str:
    """An answer as it is compared: no markup, lower case, no punctuation, single spaces."""
    plain = _BOX_MARKUP.sub(" ", text).replace(SEG_TOKEN, " ").casefold()
    return " ".join(re.sub(r"[^\w]+|_", " ", plain).split())


def same_words(got: str, expected: str) -> bool:
    """Whether two answers say the same words."""
    return words(got) == words(expected)


def mask_overlap(masks: Sequence[AnswerMask], item: Item) -> tuple[int, int]:
    """Pixels in both the answer and the targets, and in either.

    Only windows in which a mask may hold a pixel are looked at, so a large scene costs little.
    """
    ids, objects = item.target_ids, item.objects
    both = answered = 0
    for rect in sorted({block for mask in masks for block in mask.blocks()}):
        seen = masks[0].window(*rect)
        for mask in masks[1:]:
            seen = seen | mask.window(*rect)
        answered += int(np.count_nonzero(seen))
        if ids and objects is not None:
            both += int(np.count_nonzero(seen & objects.window(ids, rect)))
    target = objects.area_px(ids) if ids and objects is not None else 0
    return both, answered + target - both


def mask_iou(overlap: tuple[int, int], item: Item, masks: int) -> float:
    """Intersection over union; an absent target gives 1 if no mask was answered at all, else 0."""
    if item.absent:
        return float(masks == 0)
    both, either = overlap
    return both / either if either else 1.0


def box_score(answered: ArrayLike, expected: ArrayLike) -> float:
    """Share of boxes that found each other with an IoU of at least 0.5.

    Pairs are made one to one, best first, and divided by the larger number of boxes, so that
    neither a missing nor an extra box is free. One expected box and one answered: 1 or 0.

    Args:
        answered, expected: [n,4] and [m,4], x0, y0, x1, y1 in pixels; m at least 1.
    """
    ious, boxes = _paired(answered, expected)
    return sum(iou >= BOX_IOU for iou in ious) / boxes


def box_overlap(answered: ArrayLike, expected: ArrayLike) -> float:
    """Mean IoU of the same pairs: what a box is worth by degrees, as `mask_iou` is for masks."""
    ious, boxes = _paired(answered, expected)
    return sum(ious) / boxes


def _paired(answered: ArrayLike, expected: ArrayLike) -> tuple[list[float], int]:
    """IoUs of the pairs, and the larger number of boxes."""
    got = np.asarray(answered, np.float64).reshape(-1, 4)
    want = np.asarray(expected, np.float64).reshape(-1, 4)
    found: list[float] = []
    ious = np.stack([iou_with(box, got) for box in want])  # [m,n]
    while ious.size:
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        found.append(float(ious[row, column]))
        ious = np.delete(np.delete(ious, row, 0), column, 1)
    return found, max(len(got), len(want))


def size_name(side_px: float) -> str:
    """The entry of `SIZES` for a longer side in the global view, px."""
    if side_px < SMALL_PX:
        return SIZES[0]
    return SIZES[1] if side_px <= LARGE_PX else SIZES[2]
