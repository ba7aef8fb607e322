"""The box of an object from its mask.

A language model writes a box in digits, which say about where a thing is; the mask of the same
[SEG] says it to the pixel. So a box that follows a [SEG] is taken from that [SEG]'s mask: from its
strongest connected part, since stray pixels elsewhere would blow the box up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes

from geomag_edge.prompts import named_boxes

from .masks import Bools, Mask, MaskView

FINE = 8
"""Points along a logit's cell at which the strongest part is looked at, at most one a pixel."""

CUT = 0.5
"""What a part counts that a view's edge cuts: another view may show it wholly."""


def answer_boxes(
    text: str, view_boxes: NDArray[np.float32], masks: list[Mask], height: int, width: int
) -> list[list[float]]:
    """The boxes of an answer, [x0,y0,x1,y1] in pixels of the image.

    Args:
        text: the answer, markup included.
        view_boxes: f32[n,4], the view boxes in the order the model saw them, global first.
        masks: one for each [SEG] of the text.
        height, width: of the image.

    Returns:
        One for each box of the text: its mask's where a [SEG] stands right before it and found
        something, else as the digits say. A box that points at nothing is left out.
    """
    found = []
    for said, seg in named_boxes(text, view_boxes, height, width):
        fitted = box_around(masks[seg]) if seg is not None and seg < len(masks) else None
        box = fitted or said
        if box:
            found.append(box)
    return found


def box_around(mask: Mask) -> list[float] | None:
    """x0, y0, x1, y1 in pixels around the strongest connected part; None for an empty mask.

    Strength is the mean of the part's logits times the square root of its area in pixels, so it
    grows with certainty and with size, and not with how finely a view shows the part. Parts are
    told apart at one point a cell; only the strongest is then looked at finely.
    """
    best, found = 0.0, None
    for view in mask.views:
        for strength, box in _parts(mask, view, _inside(view, mask), 1):
            if strength > best:
                best, found = strength, (view, box)
    if found is None:
        return None
    view, (x0, y0, x1, y1) = found
    cells = view.logits.shape[0]
    wide, high = (view.x1 - view.x0) / cells, (view.y1 - view.y0) / cells
    whole = _inside(view, mask)
    near = (
        max(x0 - wide, whole[0]), max(y0 - high, whole[1]),
        min(x1 + wide, whole[2]), min(y1 + high, whole[3]),
    )  # fmt: skip
    return max(_parts(mask, view, near, FINE), default=(0.0, [x0, y0, x1, y1]))[1]


def _inside(view: MaskView, mask: Mask) -> tuple[float, float, float, float]:
    """The part of the image that a view shows, px; empty where it shows none."""
    height, width = (float(extent) for extent in mask.shape)
    return max(0.0, view.x0), max(0.0, view.y0), min(width, view.x1), min(height, view.y1)


def _parts(
    mask: Mask, view: MaskView, rect: tuple[float, float, float, float], per_cell: int
) -> Iterator[tuple[float, list[float]]]:
    """Strength and box (px) of the mask's connected parts within `rect`, a part of a view.

    It is looked at in `per_cell` points along a cell of the view.
    """
    x0, y0, x1, y1 = rect
    if x0 >= x1 or y0 >= y1:
        return
    height, width = mask.shape
    cells = view.logits.shape[0]
    along_y, along_x = (y1 - y0) / (view.y1 - view.y0), (x1 - x0) / (view.x1 - view.x0)
    rows, cols = (
        max(1, min(math.ceil(per_cell * cells * share), math.ceil(px)))
        for share, px in ((along_y, y1 - y0), (along_x, x1 - x0))
    )
    step_y, step_x = (y1 - y0) / rows, (x1 - x0) / cols
    y, x = y0 + (np.arange(rows) + 0.5) * step_y, x0 + (np.arange(cols) + 0.5) * step_x
    logits = mask.logits_at(y, x)
    labels, boxes = _label(logits > 0)
    for i, (c0, r0, c1, r1) in enumerate(boxes, 1):
        inside = logits[r0:r1, c0:c1][labels[r0:r1, c0:c1] == i]
        strength = float(inside.mean() * np.sqrt(inside.size * step_y * step_x))
        cut = (
            (c0 == 0 and x0 > 0) or (r0 == 0 and y0 > 0)
            or (c1 == cols and x1 < width) or (r1 == rows and y1 < height)
        )  # fmt: skip
        box = [x0 + c0 * step_x, y0 + r0 * step_y, x0 + c1 * step_x, y0 + r1 * step_y]
        yield strength * (CUT if cut else 1.0), box


def _label(inside: Bools) -> tuple[NDArray[np.int32], list[tuple[int, int, int, int]]]:
    """Connected parts of bool[H,W] (by edges): labels from 1, and their boxes x0, y0, x1, y1."""
    if not inside.any():
        return np.zeros(inside.shape, np.int32), []
    parts = [g for g, _ in shapes(inside.view(np.uint8), mask=inside, connectivity=4)]
    labels = rasterize(
        ((g, i) for i, g in enumerate(parts, 1)), inside.shape, dtype=np.int32
    )  # the rings run along the grid, so that each cell is in exactly one part
    boxes = []
    for part in parts:
        ring = np.asarray(part["coordinates"][0])
        (x0, y0), (x1, y1) = ring.min(0).astype(int).tolist(), ring.max(0).astype(int).tolist()
        boxes.append((x0, y0, x1, y1))
    return labels, boxes
