"""Pixels without data, as views see them: what counts of a patch, where PSC looks, what is shown.

Shared by the PyTorch reference and the runtime, so numpy only; coordinates are those of `views`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geomag_edge.views import F32, PscSettings, global_box, select_windows

SMALLER = 0.95
"""Share of the image's side up to which data has a global view of its own."""
LEAST_TOLD = 1 / 16
"""A pixel of a view with a smaller share of data says nothing of the pixels around it."""

ALL_DATA = 0.999
"""Share from which on a pixel of a view is all data: less than a grey level may be missing."""

Look = tuple[F32, F32, F32]
"""What PSC sees in a view: relevance f32[G,G], boxes f32[K,4] px and their scores f32[K]."""


def look_on_data(
    look: Look, view_box: F32, size: tuple[int, int], psc: PscSettings, shares: F32 | None
) -> Look:
    """PSC's look into a view, with eyes for data alone.

    The selection graph knows the image's size and not its pixels. Where all of the image that a
    view shows holds data the graph's word stands, bit for bit, unless it would look beside a thin
    image; else windows are chosen anew, by the relevance of what holds data.

    Args:
        look: the graph's.
        view_box: f32[4], what the view shows, px.
        size: height and width of the image.
        psc: as the graph was made with.
        shares: f32[G,G] of each patch that holds data, or None where all of the image does.
    """
    relevance, boxes, scores = look
    if shares is None:
        beside = (boxes[:, :2] >= size[::-1]).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
        if not (beside & (scores >= 0)).any():
            return look
        shares = patch_shares(None, view_box, len(relevance), size)
    return (relevance * (shares > 0), *select_windows(relevance, view_box, psc, shares))


def patch_shares(
    valid: NDArray[np.bool_] | None,
    box: F32,
    grid: int,
    size: tuple[int, int],
    corner: tuple[int, int] = (0, 0),
    px: tuple[float, float] = (1.0, 1.0),
) -> F32:
    """How much of each patch of a view is image and holds data: f32[grid,grid], 0 to 1.

    Args:
        valid: bool[h,w], at least all of the view that lies in the image; None where all is valid.
        box: f32[4], what the view shows, x0, y0, x1, y1 in pixels of the image.
        grid: patches along a side.
        size: height and width of the image.
        corner: row and column at which `valid` begins, counted in its elements.
        px: rows and columns of the image to one element.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    parts = (1.0, 1.0) if valid is None else px
    rows = _touched(y0, y1, grid, parts[0], corner[0], size[0])
    cols = _touched(x0, x1, grid, parts[1], corner[1], size[1])
    whole = np.outer(rows[1] - rows[0], cols[1] - cols[0])
    (top, bottom), (left, right) = rows[2:], cols[2:]
    if valid is None:
        inside = np.outer(bottom - top, right - left)
    else:
        across = np.stack([valid[a:b].sum(0) for a, b in zip(top, bottom, strict=True)])
        sums = np.pad(across.cumsum(1), ((0, 0), (1, 0)))
        inside = sums[:, np.maximum(right, left)] - sums[:, left]
    return (inside / whole).astype(np.float32)


def _touched(
    low: float, high: float, grid: int, px: float, first: int, extent: int
) -> tuple[NDArray[np.int64], ...]:
    """Elements of `px` pixels each that the parts of low..high touch: from, to; and the same cut
    to the image and counted from pixel `first` (`to` is never less than `from`)."""
    edges = (low + (high - low) * np.arange(grid + 1) / grid) / px
    # A side computed in float32 may pass a pixel's edge by a hair, which touches nothing.
    start = np.floor(edges[:-1] + 1e-3).astype(np.int64)
    stop = np.maximum(np.ceil(edges[1:] - 1e-3).astype(np.int64), start + 1)
    last = math.ceil(extent / px)
    inner = np.clip(start, 0, last)
    return start, stop, inner - first, np.clip(stop, inner, np.maximum(last, inner)) - first


def data_view(data_box: Sequence[float], height: int, width: int) -> F32:
    """The global view of an image whose data lies in `data_box` (px): the square around that, moved
    into the image where it fits; the whole image's own where it would be hardly smaller.

    A collar would otherwise cost the look at the whole its resolution.
    """
    x0, y0, x1, y1 = data_box
    side = max(x1 - x0, y1 - y0)
    if side > SMALLER * max(height, width):
        return global_box(height, width)

    def start(low: float, high: float, extent: int) -> float:
        if side >= extent:
            return (extent - side) / 2
        return min(max((low + high - side) / 2, 0.0), extent - side)

    left, top = start(x0, x1, width), start(y0, y1, height)
    return np.array([left, top, left + side, top + side], np.float32)


def fill_view(view: NDArray, shares: F32, blank: NDArray) -> NDArray:
    """A view with its pixels without data continued smoothly from those with data.

    The encoder has never seen a collar, and takes one in a single colour for a thing: masks of what
    lies beside it get much worse. Continued like this they do not (`benchmarks/studies/nodata.py`).
    Nothing that is invented counts: PSC and masks leave it out.

    Args:
        view: [3,S,S], normalised.
        shares: f32[S,S], how much of each pixel is data.
        blank: [3], what the view shows where there is none.

    Returns:
        The same shape and type; pixels that are all data are those of `view`, bit for bit.
    """
    # A sliver of a pixel tells its colour only to within a byte's rounding over the share.
    told = shares >= LEAST_TOLD
    missing = 1 - shares
    colour = np.where(told, view - missing * blank[:, None, None], 0).astype(np.float32)
    filled = _continued(colour, np.where(told, shares, 0).astype(np.float32))
    return np.where(shares < ALL_DATA, filled, view).astype(view.dtype)


def _continued(colour: F32, weight: F32) -> F32:
    """Colours [C,h,w], each times its weight [h,w]: what lacks weight comes from a picture half as
    large, in which the same has been done."""
    height, width = weight.shape
    if height == width == 1:
        return np.divide(colour, weight, out=np.zeros_like(colour), where=weight > 0)
    pad = ((0, height % 2), (0, width % 2))
    blocks = np.pad(colour, ((0, 0), *pad)).reshape(len(colour), -(-height // 2), 2, -1, 2)
    weights = np.pad(weight, pad).reshape(-(-height // 2), 2, -1, 2).sum((1, 3))
    coarse = _continued(blocks.sum((2, 4)) / np.maximum(weights, 1), np.minimum(weights, 1))
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
    for axis in (1, 2):  # without steps between the blocks
        around = np.pad(fine, [(int(i == axis),) * 2 for i in range(3)], mode="edge")
        low, high = (np.take(around, range(k, k + fine.shape[axis]), axis) for k in (0, 2))
        fine = ((low + 2 * fine + high) / 4).astype(np.float32)
    return colour + (1 - weight) * fine
