"""A sweep: an answer's masks, looked for over the whole image at one scale.

PSC magnifies a few windows, which is enough for "the ship at the pier" and too little for "all
trees" of a large scene. What a [SEG] asks for is one vector, though, and the encoder and the mask
head can be shown any view: so a sweep takes the answer's queries as they are to a grid of views.
The language model, which costs most, is not asked again; tiling asks it once a tile.

Nor is every view looked at: PSC first sees the image at a quarter of the scale, and says of each
place whether anything of the prompt might be there. Of the views that remain the masks of those
count in which PSC still sees something, for the mask head by itself cannot say that there is
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from geomag_edge.arguments import SHOWN_BELOW, whole
from geomag_edge.errors import InputError
from geomag_edge.runtime.answers.masks import MaskMaps
from geomag_edge.views import global_box

Views = TypeVar("Views")
"""Whatever encoded views are to the caller."""

COARSER = 4
"""How much larger the views are in which PSC decides where to look."""
MAYBE, LIKELY = 0.1, 0.5
"""Relevance, 0 to 1, above which a coarse view's patch is worth a look, and a fine view's mask
counts. For 46 questions about rendered scenes of 4096 px 41 to 56 % of the views passed the first,
with 97 to 99 % of the targets' pixels, and the masks of what passed both had 2 to 5 points of mIoU
more than those of all views (`benchmarks/studies/sweep_gates.py`); "all trees" of a city passes
whole."""
MOST_VIEWS = 65_536
"""256 x 256: tens of minutes on a CPU. More is a slip of the finger."""


def sweep_boxes(height: int, width: int, side_px: int) -> NDArray[np.float32]:
    """Squares of `side_px` that cover an image, f32[n,4] px, row by row.

    They lie as evenly as they can and overlap rather than stick out, except over an image's side
    that is shorter than they are. None where the image is no larger than one of them, since the
    global view has then seen it all.

    Raises:
        InputError: a side of less than 1 px, or so small that views are beyond counting.
    """
    if whole(side_px, "sweep_px", -SHOWN_BELOW) < 1:
        raise InputError(f"a sweep in views of {side_px} px: give a side of at least 1 px")
    if max(height, width) <= side_px:
        return np.zeros((0, 4), np.float32)
    count = math.ceil(height / side_px) * math.ceil(width / side_px)
    if count > MOST_VIEWS:
        raise InputError(
            f"a sweep in views of {side_px} px has {count} of them, more than {MOST_VIEWS}: give "
            "a larger side"
        )
    rows, columns = (_starts(extent, side_px) for extent in (height, width))
    y, x = (a.reshape(-1) for a in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([x, y, x + side_px, y + side_px], axis=1).astype(np.float32)


def _starts(extent: int, side_px: int) -> NDArray[np.float64]:
    if extent <= side_px:
        return np.array([(extent - side_px) / 2])  # centred, as the global view is
    return np.rint(np.linspace(0, extent - side_px, math.ceil(extent / side_px)))


def coarse_boxes(height: int, width: int, side_px: int) -> NDArray[np.float32]:
    """The views in which PSC decides where a sweep in views of `side_px` looks, f32[n,4] px."""
    boxes = sweep_boxes(height, width, COARSER * side_px)
    return boxes if len(boxes) else global_box(height, width)[None]


def worth_a_look(
    boxes: NDArray[np.float32], coarse: NDArray[np.float32], relevance: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which of the boxes f32[n,4] touch a patch that may be relevant: bool[n].

    Args:
        boxes: px.
        coarse: f32[c,4], views that PSC has looked into, px.
        relevance: f32[c,G,G] of their patches, 0 to 1.
    """
    found = np.zeros(len(boxes), bool)
    grid = relevance.shape[-1]
    for box, patches in zip(coarse.astype(np.float64), relevance > MAYBE, strict=True):
        if not patches.any():
            continue
        sums = np.pad(patches.cumsum(0).cumsum(1), (1, 0), constant_values=0)
        places = (boxes - box[[0, 1, 0, 1]]) * grid / (box[2] - box[0])
        x0, y0 = np.clip(np.floor(places[:, :2]), 0, grid).astype(int).T
        x1, y1 = np.clip(np.ceil(places[:, 2:]), 0, grid).astype(int).T
        found |= sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0] > 0
    return found


def sweep(
    glance: Callable[[NDArray[np.float32]], tuple[Views, NDArray[np.float32]]],
    masks: Callable[[Views], MaskMaps],
    size: tuple[int, int],
    side_px: int,
    batch: int,
    on_view: Callable[[str], None] = lambda name: None,
    has_data: Callable[[NDArray[np.float32]], NDArray[np.bool_]] | None = None,
) -> tuple[list[MaskMaps], int]:
    """The mask head's word on every view that PSC finds worth a look.

    Args:
        glance: encodes views of boxes f32[n,4] px and has PSC look at them: relevance f32[n,G,G].
        masks: applies the answer's queries to encoded views.
        size: height and width of the image, px.
        side_px: of the views.
        batch: at most so many views at once.
        on_view: called with each view's corner as its turn comes, the coarse ones first, and at
            once for those that are passed over.
        has_data: which of boxes f32[n,4] show any pixel with data; the others are passed over.
            None where all do.

    Returns:
        the masks, and how many views were looked at for them.
    """
    boxes, coarse = sweep_boxes(*size, side_px), coarse_boxes(*size, side_px)
    if not len(boxes):
        return [], 0
    worth = np.zeros(len(boxes), bool)
    shown = np.ones(len(coarse), bool) if has_data is None else has_data(coarse)
    for part in _batches(coarse[shown], batch, on_view):
        worth |= worth_a_look(boxes, part, glance(part)[1])
    if has_data is not None and worth.any():
        worth[worth] = has_data(boxes[worth])
    for box in (*coarse[~shown], *boxes[~worth]):
        on_view(_name(box))
    found = []
    for part in _batches(boxes[worth], batch, on_view):
        views, relevance = glance(part)
        likely = relevance.max(axis=(1, 2)) > LIKELY
        if likely.any():
            maps = masks(views)
            found.append(MaskMaps(part[likely], maps.logits[:, likely], maps.quality[:, likely]))
    return found, int(worth.sum())


def _batches(
    boxes: NDArray[np.float32], batch: int, on_view: Callable[[str], None]
) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(boxes), batch):
        part = boxes[first : first + batch]
        for box in part:
            on_view(_name(box))
        yield part


def _name(box: NDArray[np.float32]) -> str:
    return f"{box[0]:.0f}, {box[1]:.0f}"
