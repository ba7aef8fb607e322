"""A rendered scene: pixels, exact labels and the table of what can be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geomag_edge.scenes.plan.layout import lay_out

from . import raster
from .catalog import ALL_CLASSES
from .spec import SceneSpec

Window = tuple[int, int, int, int]

IN_MEMORY_PX = 4096
"""Scenes up to this side keep their labels; larger ones draw them again where asked."""


class Labels:
    """Object ids by window, from memory or drawn again."""

    def __init__(self, spec: SceneSpec) -> None:
        self.spec = spec
        self.whole: NDArray[np.int32] | None = None

    def window(self, window: Window) -> NDArray[np.int32]:
        """Object ids i32[h,w] of a pixel window (x0, y0, x1, y1)."""
        raster.tiles_in(self.spec, window)  # refuses windows outside the scene
        x0, y0, x1, y1 = window
        if self.whole is not None:
            return self.whole[y0:y1, x0:x1]
        return raster.rasterise_ids(self.spec, window)


class Extents:
    """Tight boxes and visible areas of all objects, gathered tile by tile."""

    def __init__(self, count: int, size_px: int) -> None:
        self.low = np.full((count + 1, 2), size_px, np.int32)  # x0, y0
        self.high = np.zeros((count + 1, 2), np.int32)  # x1, y1, exclusive
        self.area = np.zeros(count + 1, np.int64)

    def add(self, ids: NDArray[np.int32], x: int, y: int) -> None:
        """Adds the labels of a tile whose top left pixel is (x, y)."""
        width = ids.shape[1]
        flat = ids.ravel()
        # Runs of equal labels along rows: far fewer than pixels.
        change = np.empty(flat.size, bool)
        change[0] = True
        np.not_equal(flat[1:], flat[:-1], out=change[1:])
        change[::width] = True
        start = np.flatnonzero(change)
        end = np.append(start[1:], flat.size)
        owner = flat[start]
        row, col = np.divmod(start, width)
        np.minimum.at(self.low[:, 0], owner, (col + x).astype(np.int32))
        np.minimum.at(self.low[:, 1], owner, (row + y).astype(np.int32))
        np.maximum.at(self.high[:, 0], owner, (col + x + end - start).astype(np.int32))
        np.maximum.at(self.high[:, 1], owner, (row + y + 1).astype(np.int32))
        np.add.at(self.area, owner, end - start)


@dataclass(frozen=True)
class SceneObject:
    """One visible object. Boxes and polygons are in px of the whole image."""

    id: int
    cls: str
    colour: str
    size: str  # "small" or "large"
    box: tuple[float, float, float, float]  # x0, y0, x1, y1, tight around the visible pixels
    orientation: float  # degrees clockwise from the x axis, [0, 180)
    area_px: int  # visible pixels
    polygons: tuple[tuple[tuple[float, float], ...], ...]  # outline before anything covers it
    place: str  # the class of what it stands on: road, parking lot, pier, building, or ""
    _labels: Labels = field(repr=False, compare=False)

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box, px."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    def mask(self, window: Window | None = None) -> NDArray[np.bool_]:
        """The object's visible pixels bool[h,w] in a window (x0, y0, x1, y1), or in its box."""
        if window is None:
            x0, y0, x1, y1 = self.box
            window = int(x0), int(y0), int(x1), int(y1)
        return self._labels.window(window) == self.id


class RenderedScene:
    """The scene of a seed. Pixels are made on first use, so a huge scene costs nothing until then.

    `image` and `objects` of a scene above 4096 px take time (and, for `image`, memory);
    `write_scene` streams it instead.
    """

    def __init__(self, spec: SceneSpec) -> None:
        self.spec = spec
        self.labels = Labels(spec)
        self._extents: Extents | None = None

    @property
    def seed(self) -> int:
        """The seed."""
        return self.spec.seed

    @property
    def size_px(self) -> int:
        """Side of the image."""
        return self.spec.size_px

    @property
    def gsd_m(self) -> float:
        """Metres per pixel."""
        return self.spec.gsd_m

    @property
    def scene_class(self) -> str:
        """One of `SCENE_CLASSES`: what most of the scene is."""
        return self.spec.scene_class

    @property
    def crs(self) -> int:
        """EPSG code, a UTM zone of the northern hemisphere."""
        return 32601 + self.spec.seed % 60

    @property
    def transform(self) -> Affine:
        """Pixel (column, row) to easting and northing in metres."""
        east = 300000.0 + (self.spec.seed * 7919) % 400000
        north = 1000000.0 + (self.spec.seed * 104729) % 7000000
        return Affine(self.gsd_m, 0.0, east, 0.0, -self.gsd_m, north)

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """The picture u8[H,W,3]."""
        size = self.size_px
        image = np.empty((size, size, 3), np.uint8)
        whole = (0, 0, size, size)

        def keep(tile: NDArray[np.uint8], tx: int, ty: int) -> None:
            raster.paste(image, tile, whole, tx, ty)

        self.stream(keep)
        return image

    def stream(self, sink: Callable[[NDArray[np.uint8], int, int], None]) -> None:
        """Renders every tile once, row by row, into `sink(tile, tx, ty)`."""
        size = self.size_px
        extents = Extents(len(self.spec.things), size)
        keep = np.empty((size, size), np.int32) if size <= IN_MEMORY_PX else None
        for tx, ty in raster.tiles_in(self.spec, (0, 0, size, size)):
            tile, ids = raster.render_tile(self.spec, tx, ty)
            extents.add(ids, tx * raster.TILE, ty * raster.TILE)
            if keep is not None:
                raster.paste(keep, ids, (0, 0, size, size), tx, ty)
            sink(tile, tx, ty)
        self._extents, self.labels.whole = extents, keep

    @cached_property
    def objects(self) -> list[SceneObject]:
        """All objects with at least one visible pixel, by id."""
        if self._extents is None:
            if self.size_px <= IN_MEMORY_PX:
                _ = self.image
            else:
                self._measure()
        extents = self._extents
        assert extents is not None
        out = []
        for thing in self.spec.things:
            if not extents.area[thing.id]:
                continue
            x0, y0 = (float(v) for v in extents.low[thing.id])
            x1, y1 = (float(v) for v in extents.high[thing.id])
            out.append(
                SceneObject(
                    thing.id,
                    thing.cls,
                    thing.colour,
                    thing.size,
                    (x0, y0, x1, y1),
                    thing.orientation,
                    int(extents.area[thing.id]),
                    tuple(tuple(p) for p in thing.polygons),
                    thing.place,
                    self.labels,
                )
            )
        return out

    def _measure(self) -> None:
        extents = Extents(len(self.spec.things), self.size_px)
        for tx, ty in raster.tiles_in(self.spec, (0, 0, self.size_px, self.size_px)):
            ids = raster.labels(raster.draw(self.spec, tx, ty, 0), 0)
            extents.add(ids, tx * raster.TILE, ty * raster.TILE)
        self._extents = extents

    def class_map(self, window: Window | None = None) -> NDArray[np.uint8]:
        """What each pixel shows u8[h,w]: 0 for bare ground, else 1 + its index in `ALL_CLASSES`."""
        window = window or (0, 0, self.size_px, self.size_px)
        code = [0] + [1 + ALL_CLASSES.index(thing.cls) for thing in self.spec.things]
        return np.array(code, np.uint8).take(self.labels.window(window))

    def mask(
        self, ids: tuple[int, ...] | list[int], window: Window | None = None
    ) -> NDArray[np.bool_]:
        """The union of the objects' visible pixels bool[h,w], in a window or the whole image."""
        window = window or (0, 0, self.size_px, self.size_px)
        return np.isin(self.labels.window(window), np.asarray(ids, np.int32))


def render_scene(seed: int, size_px: int = 1024, gsd_m: float | None = None) -> RenderedScene:
    """The scene of a seed, the same on every run.

    Args:
        seed: a non-negative integer.
        size_px: side of the square image, 64 to 32768.
        gsd_m: metres per pixel; drawn from 0.3 to 1.0 by the seed if None.
    """
    return RenderedScene(lay_out(seed, size_px, gsd_m))
