"""The outline of a mask along pixel edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine

from .masks import Mask

F64 = NDArray[np.float64]
Keep = Callable[[F64, F64], NDArray[np.bool_]]
"""Edges of columns x[w+1] and of rows y[h+1], in pixels -> which cells [h,w] count."""

POLYGON_PX = 16_000_000
"""Masks whose bounding box has more pixels are outlined on a coarser grid."""


def outline(mask: Mask, keep: Keep | None = None) -> tuple[list[list[F64]], int]:
    """Polygons of a mask along pixel edges, and the grid step in pixels (1 unless it is huge).

    A polygon is its rings [n,2] (x, y in pixels, closed), the exterior first. Seen with x to the
    right and y up, the mask lies on the left of every ring.
    """
    if mask.bbox is None:
        return [], 1
    x0, y0, x1, y1 = mask.bbox
    step = max(1, math.ceil(math.sqrt((y1 - y0) * (x1 - x0) / POLYGON_PX)))
    if step == 1:
        grid = mask.window(y0, x0, y1, x1)
    else:
        y, x = (np.arange(a, b, step) + step / 2 for a, b in ((y0, y1), (x0, x1)))
        grid = np.concatenate([mask.at(y[i : i + 256], x) for i in range(0, len(y), 256)])
    if keep is not None:
        rows, cols = (np.arange(n + 1) * float(step) for n in grid.shape)
        grid = grid & keep(x0 + cols, y0 + rows)
    place = Affine(step, 0, x0, 0, step, y0)
    found = shapes(grid.view(np.uint8), mask=grid, connectivity=4, transform=place)
    polygons = [[np.asarray(ring, np.float64) for ring in g["coordinates"]] for g, _ in found]
    return [
        [ring if (signed_area(ring) < 0) == (k > 0) else ring[::-1] for k, ring in enumerate(rings)]
        for rings in polygons
    ], step


def signed_area(ring: F64) -> float:
    """Area of a closed ring [n,2] in the plane, positive if counterclockwise (y up)."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)
