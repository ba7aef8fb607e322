"""Which pixels of an image hold data, and what follows for views, boxes and masks.

Nodata, masks, alpha 0, NaN and infinity all end here. An image in memory is kept as bits, and not
even as those where a whole block is alike. A file that is read by windows is looked at coarsely
once; a block of it is read when somebody looks at a mask there, through a handle of its own. So a
mask can be looked at after its scene is closed, or while another question is asked about it, and
no answer is late for pixels that nobody may want. Blocks that were read are kept: 50 MB for
20,000 x 20,000 pixels that are speckled all over, a few for a collar.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomag_edge.views_on_data import patch_shares

from .pixels import Valid
from .raster import Raster

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Place = tuple[int, int]
Rect = tuple[int, int, int, int]
Block = NDArray[np.uint8] | bool
"""Bits of one block, row by row, or what all of its pixels are."""

BLOCK_PX = 512
EXACT_PX = 1_000_000
"""Boxes of up to this many pixels are cut to the pixel."""
FINE = 2
"""Elements of the coarse look along a patch, at least, where it says how much of it is data."""


class Validity:
    """Which pixels of one image hold data. May be used from several threads, and pickled.

    Where the image is a file, methods raise ImageError if it cannot be read any more.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        source: Bools | Raster,
        coarse: tuple[Valid, tuple[float, float]] = (None, (1.0, 1.0)),
    ) -> None:
        """Takes what says it.

        Args:
            shape: H, W of the image.
            source: bool[H,W], which is not referred to afterwards, or a file that nobody else uses.
            coarse: of a file, where its elements hold any data (None: all do), and the rows and
                columns of the image to an element.
        """
        self.shape = shape
        self._lock = threading.Lock()
        self._blocks: dict[Place, Block] = {}
        self._raster = source if isinstance(source, Raster) else None
        self._coarse, self._px = coarse
        if not isinstance(source, Raster):
            for place, (row0, col0, row1, col1) in _places((0, 0, *shape)):
                self._blocks[place] = _packed(source[row0:row1, col0:col1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    def window(self, row0: int, col0: int, row1: int, col1: int) -> Valid:
        """Rows row0..row1 and columns col0..col1 (half open, inside): bool[h,w], or None where all
        of them hold data."""
        out: Valid = None
        for place, (r0, c0, r1, c1) in _places((row0, col0, row1, col1)):
            bits = self._block(place)
            if bits is None:
                continue
            if out is None:
                out = np.ones((row1 - row0, col1 - col0), bool)
            top, left = place[0] * BLOCK_PX, place[1] * BLOCK_PX
            part = bits[r0 - top : r1 - top, c0 - left : c1 - left]
            out[r0 - row0 : r1 - row0, c0 - col0 : c1 - col0] = part
        return None if out is None or out.all() else out

    def clear(self, inside: Bools, y: NDArray[Any], x: NDArray[Any]) -> None:
        """Makes `inside` bool[len(y), len(x)] False where there is no data at its image
        coordinates. y and x ascend. Only blocks in which it is True anywhere are looked at."""
        rows, cols = (np.floor(a).astype(np.int64) for a in (y, x))
        for i, down in _runs(rows, self.shape[0]):
            used = np.asarray(inside[down].any(axis=0))
            for j, along in _runs(cols, self.shape[1]):
                if used[along].any() and (bits := self._block((i, j))) is not None:
                    at = np.ix_(rows[down] - i * BLOCK_PX, cols[along] - j * BLOCK_PX)
                    part = inside[down, along]  # a view: what is cleared is cleared in `inside`
                    part &= bits[at]

    def at(self, y: NDArray[Any], x: NDArray[Any]) -> Bools:
        """Whether there is data at coordinates in the image, bool[len(y), len(x)], as finely as a
        picture of the whole needs it. y and x ascend."""
        step = min((a[-1] - a[0]) / max(len(a) - 1, 1) for a in (y, x))
        valid, (row, col), (down, along) = self._seen((x[0], y[0], x[-1] + 1, y[-1] + 1), step)
        if valid is None:
            return np.ones((len(y), len(x)), bool)
        rows, cols = (y / down).astype(np.int64) - row, (x / along).astype(np.int64) - col
        rows, cols = rows.clip(0, valid.shape[0] - 1), cols.clip(0, valid.shape[1] - 1)
        return valid[np.ix_(rows, cols)]

    def shares(self, box: F32, grid: int) -> F32 | None:
        """How much of each patch of a view of `box` is image and holds data, f32[grid,grid], 0 to
        1; None where all of the image that the view shows does."""
        valid, corner, px = self._seen(box, float(box[2] - box[0]) / grid / FINE)
        return None if valid is None else patch_shares(valid, box, grid, self.shape, corner, px)

    def has_data(self, boxes: F32) -> Bools:
        """Which of the boxes f32[n,4] show any pixel with data: bool[n]."""
        return np.array([self.box_of_data(box) is not None for box in boxes], bool)

    def box_of_data(self, box: ArrayLike) -> list[float] | None:
        """A box x0, y0, x1, y1 cut to the pixels with data in it; None where there are none.

        To the pixel, or in a large part of a file to an element of the coarse look.
        """
        x0, y0, x1, y1 = np.asarray(box, np.float64).tolist()
        x0, y0 = max(x0, 0.0), max(y0, 0.0)
        x1, y1 = min(x1, float(self.shape[1])), min(y1, float(self.shape[0]))
        for fine in (math.sqrt(max(x1 - x0, 0) * max(y1 - y0, 0)) / 100, 0):
            if x0 >= x1 or y0 >= y1:
                return None
            valid, (row, col), (down, along) = self._seen((x0, y0, x1, y1), fine)
            if valid is None:
                break
            top, left = int(y0 / down) - row, int(x0 / along) - col
            part = valid[top : math.ceil(y1 / down) - row, left : math.ceil(x1 / along) - col]
            rows, cols = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
            if not rows.size:
                return None
            row, col = row + top, col + left
            x0, x1 = max(x0, (cols[0] + col) * along), min(x1, (cols[-1] + 1 + col) * along)
            y0, y1 = max(y0, (rows[0] + row) * down), min(y1, (rows[-1] + 1 + row) * down)
            if (x1 - x0) * (y1 - y0) > EXACT_PX:
                break
        return [float(v) for v in (x0, y0, x1, y1)]

    def _seen(self, box: Any, fine: float) -> tuple[Valid, Place, tuple[float, float]]:
        """What of a box lies in the image (or more), at `fine` pixels to an element or finer: the
        elements with data, None where all are; the first one; and pixels to one (rows, columns)."""
        if self._raster is not None and (self._coarse is None or max(self._px) <= fine):
            return self._coarse, (0, 0), self._px
        return *self.around(box), (1.0, 1.0)

    def around(self, box: ArrayLike) -> tuple[Valid, Place]:
        """The window of all pixels that a box f32[4] touches, as `window` gives it, and its first
        row and column."""
        x0, y0, x1, y1 = np.asarray(box, np.float64).tolist()
        row0, row1 = (int(v) for v in np.clip([math.floor(y0), math.ceil(y1)], 0, self.shape[0]))
        col0, col1 = (int(v) for v in np.clip([math.floor(x0), math.ceil(x1)], 0, self.shape[1]))
        return self.window(row0, col0, row1, col1), (row0, col0)

    def _block(self, place: Place) -> Valid:
        """A block of the image, bool[h,w], or None where all of it holds data."""
        height, width = (
            min(BLOCK_PX, extent - first * BLOCK_PX)
            for extent, first in zip(self.shape, place, strict=True)
        )
        block = self._blocks.get(place)
        if block is None:
            assert self._raster is not None
            row0, col0 = place[0] * BLOCK_PX, place[1] * BLOCK_PX
            with self._lock:
                level = self._raster.levels[0]
                valid = self._raster.read(level, (row0, col0, row0 + height, col0 + width))[1]
            block = self._blocks[place] = True if valid is None else _packed(valid)
        if isinstance(block, bool):
            return None if block else np.zeros((height, width), bool)
        return np.unpackbits(block, count=height * width).reshape(height, width).view(bool)


def _packed(valid: Bools) -> Block:
    if valid.all():
        return True
    return np.packbits(valid) if valid.any() else False


def _places(window: Rect) -> Iterator[tuple[Place, Rect]]:
    """The blocks of a window, and the part of it that lies in each."""
    row0, col0, row1, col1 = window
    for r in range(row0 // BLOCK_PX * BLOCK_PX, row1, BLOCK_PX):
        for c in range(col0 // BLOCK_PX * BLOCK_PX, col1, BLOCK_PX):
            part = max(r, row0), max(c, col0), min(r + BLOCK_PX, row1), min(c + BLOCK_PX, col1)
            yield (r // BLOCK_PX, c // BLOCK_PX), part


def _runs(at: NDArray[np.int64], extent: int) -> Iterator[tuple[int, slice]]:
    """The blocks that ascending pixel numbers inside an extent fall into, and which of them do."""
    edges = np.minimum(np.arange(0, extent + BLOCK_PX, BLOCK_PX), extent)
    starts = np.searchsorted(at, edges)
    for i in np.flatnonzero(np.diff(starts)).tolist():
        yield i, slice(int(starts[i]), int(starts[i + 1]))
