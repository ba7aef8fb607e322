"""A sweep: an answer's masks, looked for over the whole image at one scale.

PSC magnifies a few windows, which is enough for "the ship at the pier" and too little for "all
trees" of a large scene. What a [SEG] asks for is one vector, though, and the encoder and the mask
head can be shown any view: so a sweep takes the answer's queries as they are to a grid of views.
The language model, which costs most, is not asked again; tiling asks it once a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import InputError

from .masks import MaskMaps

MOST_VIEWS = 65_536
"""256 x 256: tens of minutes on a CPU. More is a slip of the finger."""


def sweep_boxes(height: int, width: int, side_px: int) -> NDArray[np.float32]:
    """Squares of `side_px` that cover an image, f32[n,4] px, row by row.

    They lie as evenly as they can and overlap rather than stick out; none where the image is no
    larger than one of them, since the global view has then seen it all.

    Raises:
        InputError: a side of less than 1 px, or so small that views are beyond counting.
    """
    if side_px < 1:
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


def sweep(
    look: Callable[[NDArray[np.float32]], MaskMaps],
    boxes: NDArray[np.float32],
    batch: int,
    on_view: Callable[[str], None] = lambda name: None,
) -> list[MaskMaps]:
    """The mask head's word on every view of a sweep; only masks are kept of them.

    Args:
        look: encodes views of boxes f32[n,4] and applies the answer's queries to them.
        boxes: f32[N,4] px, of all views.
        batch: at most so many views at once.
        on_view: called with each view's corner as its turn comes.
    """
    found = []
    for first in range(0, len(boxes), batch):
        part = boxes[first : first + batch]
        for x, y in part[:, :2].tolist():
            on_view(f"{x:.0f}, {y:.0f}")
        found.append(look(part))
    return found
