"""Mask files: one band of object ids, 0 where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from geomag_edge.errors import DatasetError
from geomag_edge.runtime.images.files import open_raster
from geomag_edge.runtime.images.reading import reading
from geomag_edge.scenes.scene import Extents

from .items import Rect

IN_MEMORY_PX = 16_000_000
"""Masks of up to this many pixels are held while their picture is asked about; larger ones stay
open and are read by windows."""
MOST_PX = 4_000_000_000
STRIP_PX = 4_000_000
MAX_ID = 1_000_000


class LabelImage:
    """A mask file, opened when it is first looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def area_px(self, ids: Sequence[int]) -> int:
        """Pixels of all these objects."""
        return int(self._extents.area[list(ids)].sum())

    def sides_px(self, ids: Sequence[int]) -> list[float]:
        """The longer side of each object's tight box."""
        chosen = list(ids)
        sides = self._extents.high[chosen] - self._extents.low[chosen]
        return [float(side) for side in sides.max(axis=1)]

    def window(self, ids: Sequence[int], rect: Rect) -> NDArray[np.bool_]:
        """The union of these objects in a window, bool[h,w]."""
        return np.isin(self._read(rect), np.asarray(ids))

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """All ids that occur, ascending."""
        return tuple(int(i) for i in np.flatnonzero(self._extents.area) if i)

    def _read(self, rect: Rect) -> NDArray[np.integer]:
        row0, col0, row1, col1 = rect
        if isinstance(self._source, np.ndarray):
            return self._source[row0:row1, col0:col1]
        with reading(str(self.path)):
            return self._source.read(1, window=Window(col0, row0, col1 - col0, row1 - row0))

    @cached_property
    def _source(self) -> Any:
        """The pixels of a small file, or a large file, open until this object goes."""
        name = str(self.path)
        with reading(name):
            file = open_raster(name)
            if file.count != 1 or np.dtype(file.dtypes[0]).kind not in "ui":
                raise DatasetError(
                    f"{name} has {file.count} bands of {file.dtypes[0]}: a mask is one band of "
                    "whole numbers, 0 for the background"
                )
            if file.height * file.width > MOST_PX:
                raise DatasetError(
                    f"{name} has {file.height} x {file.width} pixels, and all of a mask are read: "
                    f"the most is {MOST_PX:,}"
                )
            return file if file.height * file.width > IN_MEMORY_PX else file.read(1)

    @cached_property
    def _extents(self) -> Extents:
        """Boxes and areas, gathered strip by strip."""
        height, width = self._source.shape
        step = max(1, STRIP_PX // width)
        rects = [(r, 0, min(r + step, height), width) for r in range(0, height, step)]
        ends = [(int(part.min()), int(part.max())) for part in map(self._read, rects)]
        low, top = min(e[0] for e in ends), max(e[1] for e in ends)
        if low < 0 or top > MAX_ID:
            raise DatasetError(
                f"{self.path} has ids from {low} to {top}: an id is 1 to {MAX_ID}, 0 is background"
            )
        extents = Extents(top, max(height, width))
        for rect in rects:
            extents.add(self._read(rect).astype(np.int64), 0, rect[0])
        return extents
