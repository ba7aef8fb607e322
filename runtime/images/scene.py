"""A scene: any image as u8 RGB, from which views are cut at full resolution.

Pixels without data (nodata, mask, alpha 0, NaN, infinity) become the mean colour of `mean_std`
before a view is cut, so that they are zero, to within rounding to a byte, after normalisation, and
add nothing to their neighbours. In the view they are then continued from what has data
(`geomag_edge.views_on_data.fill_view`).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.cpp_ext.checks import checked_boxes, checked_mean_std
from geomag_edge.errors import ImageError
from geomag_edge.views_on_data import fill_view

from .arrays import Picture, from_array, from_pillow
from .georef import Georef
from .pixels import TILE_PX, U8, Valid, nothing_valid
from .raster import Level, Raster
from .validity import Validity

__all__ = ["Georef", "Scene"]

WHOLE_IMAGE_PX = 64_000_000
"""Images of up to this many pixels are held in memory; larger files are read by windows."""
WHOLE_IMAGE_WITH_OVERVIEWS_PX = 6_000_000
"""The same for tiled files with overviews, where windows are read in less time than the whole."""
VALIDITY_PX = 2048
"""Longer side, at least, of the coarse look that says where a large file holds data."""
NO_DATA_GREY = 236
"""Shown for pixels without data in a thumbnail."""


class Scene:
    """An open image. A context manager; use it from one thread at a time.

    `notes` says in plain words what was decided about the pixels; `files` are all that it is read
    from, sidecars and the parts of a VRT too.
    """

    def __init__(
        self,
        pixels: tuple[U8, Valid] | Raster,
        georef: Georef,
        path: Path | None,
        notes: Sequence[str],
        files: Sequence[str] = (),
    ) -> None:
        self._raster = pixels if isinstance(pixels, Raster) else None
        self._image: U8 | None = None
        self._valid: Valid = None
        self._fill: tuple[int, int, int] | None = None
        if isinstance(pixels, Raster):
            self.height, self.width = pixels.height, pixels.width
        else:
            self._image, self._valid = pixels
            self.height, self.width = self._image.shape[:2]
        self.georef = georef
        self.path = path
        self.files = tuple(files)
        self.notes = tuple(notes)
        self._noted = len(self.notes)

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | Image.Image | NDArray[Any],
        bands: Sequence[int] | None = None,
        value_range: Sequence[float] | Sequence[Sequence[float]] | None = None,
        nodata: float | None = None,
    ) -> Scene:
        """Opens an image.

        Args:
            source: what is listed in `formats` (PNG, JPEG, GeoTIFF ...) by its path; a string may
                also be a URL, a `/vsi` path or the name of a part (`netcdf:a.nc:blue`); a Pillow
                image; or an array [H,W] or [H,W,C].
            bands: the bands (counted from 1) that serve as red, green and blue, or one band;
                default: those that the file says are, else the first three.
            value_range: the values that become 0 and 255, or such a pair for each of red, green
                and blue; default: bytes as they are, bands of all other types from their 2nd to
                their 98th percentile over the valid pixels.
            nodata: pixels that hold it in every band used are without data, beside those that
                the source itself says are.

        Raises:
            ImageError: it cannot be read, or has no usable pixels.
        """
        if isinstance(source, Image.Image):
            return cls._in_memory(from_pillow(source, bands, value_range, nodata))
        if isinstance(source, np.ndarray):
            return cls._in_memory(from_array(source, bands, value_range, nodata))
        if not isinstance(source, (str, os.PathLike)):
            raise ImageError(
                f"an image cannot be read from {type(source).__name__}: give a path, a Pillow "
                "image or a numpy array"
            )
        name = os.fsdecode(source)
        if not isinstance(source, str) and not os.path.exists(name):
            name = os.path.abspath(name)  # a path is a file's, never a name that GDAL knows
        return _from_file(name, bands, value_range, nodata)

    @classmethod
    def _in_memory(cls, picture: Picture) -> Scene:
        rgb, valid, notes = picture
        return cls((rgb, valid), Georef(), None, notes)

    def crop(
        self,
        boxes: NDArray[np.float32],
        mean_std: NDArray[np.float32],
        size: int,
        dtype: str = "float32",
    ) -> NDArray[Any]:
        """Cuts views, exactly as `psc_crop` does on the whole full-resolution image.

        A scene too large for memory is read as one window a box, from the coarsest overview that
        is at least twice as fine as the view.

        Args:
            boxes: f32[K,4], x0, y0, x1, y1 in pixels; may stick out of the image.
            mean_std: f32[2,3], mean and standard deviation of red, green and blue in 0..1.
            size: S, side of a view in pixels.
            dtype: "float32" or what else `psc_crop` offers.

        Returns:
            Normalised views [K,3,S,S]; 0 outside the image, and where a view has no data at all.
        """
        colour = _fill_colour(mean_std)
        blank = (np.array(colour) / 255 - mean_std[0]) / mean_std[1]
        boxes = checked_boxes(boxes)
        if self._raster is None:
            views = psc_crop(self._filled(colour), boxes, mean_std, size, dtype)
            if self.validity is not None:
                for view, box in zip(views, boxes, strict=True):
                    margin = (box[2:] - box[:2]) / size + 1  # as far as the filter reaches
                    wide = np.concatenate([box[:2] - margin, box[2:] + margin])
                    valid, (row, col) = self.validity.around(wide)
                    if valid is not None:
                        local = box - np.array([col, row, col, row], np.float32)
                        _fill(view, valid, local, blank)
                        _clear_outside(view, box, self.height, self.width)
            return views
        views = np.zeros((len(boxes), 3, size, size), dtype)
        for view, box in zip(views, boxes, strict=True):
            found = _tile(self._raster, box, size)
            if found is None:
                continue
            tile, valid, local = found
            if valid is not None:
                tile[~valid] = colour
            view[:] = psc_crop(tile, local[None], mean_std, size, dtype)[0]
            if valid is not None:
                _fill(view, valid, local, blank)
            _clear_outside(view, box, self.height, self.width)
        self._note_late_warnings(self._raster)
        return views

    def resident(self, mean_std: NDArray[np.float32]) -> U8 | None:
        """The image u8[H,W,3] of which `psc_crop` makes what `crop` does, or None: it is read by
        windows, or holds pixels without data."""
        if self._raster is not None or self.validity is not None:
            return None
        return self._filled(_fill_colour(mean_std))

    def thumbnail(self, max_px: int) -> tuple[U8, float]:
        """The whole image, its longer side at most `max_px`: (u8[h,w,3], thumbnail px per px)."""
        scale = min(1.0, max_px / max(self.height, self.width))
        size = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
        across, down = float(self.width), float(self.height)
        if self._raster is None:
            picture = self._filled((NO_DATA_GREY,) * 3)
        else:
            level, by = _level_for(self._raster, 1 / scale, None)
            picture, valid = self._raster.read(level, (0, 0, level.height, level.width), by)
            self._note_late_warnings(self._raster)
            if valid is not None:
                picture[~valid] = NO_DATA_GREY
            # The last averaged block may reach past the image's edge.
            across, down = across / (level.factor[1] * by), down / (level.factor[0] * by)
        box = (0.0, 0.0, min(across, picture.shape[1]), min(down, picture.shape[0]))
        kind = Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(picture).resize(size, kind, box, 3.0)), scale

    @cached_property
    def validity(self) -> Validity | None:
        """Which pixels hold data, or None where all of them do or the file cannot tell.

        It stays usable after the scene is closed, and in other threads.
        """
        shape = self.height, self.width
        if self._raster is None:
            return None if self._valid is None else Validity(shape, self._valid)
        if self._raster.always_valid:
            return None
        own = copy.copy(self._raster)
        return Validity(shape, own, _where_data(own))

    def _filled(self, colour: tuple[int, int, int]) -> U8:
        """The image in memory with `colour` where there is no data."""
        assert self._image is not None
        if self._valid is not None and self._fill != colour:
            self._image[~self._valid] = colour
            self._fill = colour
        return self._image

    def _note_late_warnings(self, raster: Raster) -> None:
        """What a decoder has warned of since the file was opened."""
        self.notes += tuple(raster.notes[self._noted :])
        self._noted = len(raster.notes)

    def close(self) -> None:
        """Closes the file, if one is open."""
        if self._raster is not None:
            self._raster.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _fill_colour(mean_std: NDArray[np.float32]) -> tuple[int, int, int]:
    """The mean as bytes."""
    red, green, blue = np.rint(checked_mean_std(mean_std)[0] * 255).clip(0, 255)
    return int(red), int(green), int(blue)


def _level_for(raster: Raster, want: float, window_px: float | None) -> tuple[Level, int]:
    """The level to read, and the whole factor to average it by, for `want` pixels per pixel.

    Args:
        raster: the file.
        want: image pixels per pixel that are still fine enough.
        window_px: image pixels that will be read; None for all of them.
    """
    level = [lv for lv in raster.levels if lv is raster.levels[0] or max(lv.factor) <= want][-1]
    px = (window_px or raster.height * raster.width) / math.prod(level.factor)
    if px <= TILE_PX:
        return level, 1
    if (coarse := raster.coarse(want)) is not None:
        return coarse, 1
    return level, max(1, int(want / max(level.factor)))


def _tile(
    raster: Raster, box: NDArray[np.float32], size: int
) -> tuple[U8, Valid, NDArray[np.float32]] | None:
    """The part of a file that a view of `box` needs, and the box in the part's own pixels.

    None where the box lies outside the image.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    want = min(x1 - x0, y1 - y0) / size / 2
    inside_w = min(x1, raster.width) - max(x0, 0.0)
    inside_h = min(y1, raster.height) - max(y0, 0.0)
    if inside_w <= 0 or inside_h <= 0:
        return None
    level, by = _level_for(raster, want, inside_w * inside_h)
    fy, fx = level.factor[0] * by, level.factor[1] * by
    row0, row1 = _span(y0 / fy, y1 / fy, size, level.height, by)
    col0, col1 = _span(x0 / fx, x1 / fx, size, level.width, by)
    tile, valid = raster.read(level, (row0, col0, row1, col1), by)
    origin = np.array([col0, row0, col0, row0]) / by
    return tile, valid, (np.array([x0 / fx, y0 / fy, x1 / fx, y1 / fy]) - origin).astype(np.float32)


def _span(low: float, high: float, size: int, extent: int, by: int) -> tuple[int, int]:
    """Rows (or columns) of a level to read for low..high, which are in pixels of by level pixels.

    The margin holds all that the triangle filter (radius = scale, at least 1) can touch.
    """
    margin = max(math.ceil((high - low) / size), 1) + 1
    first = max(0, math.floor(low) - margin) * by
    return min(first, (extent - 1) // by * by), min(extent, (math.ceil(high) + margin) * by)


def _fill(
    view: NDArray[Any], valid: NDArray[np.bool_], box: NDArray[np.float32], blank: NDArray[Any]
) -> None:
    """Continues a view where `valid` bool[h,w], of the part that it was cut from, says no.

    `box` is in the part's own pixels, `blank` is what the view shows there. The same filter that
    made the view says how much of each of its pixels is data.
    """
    size = view.shape[-1]
    by = max(1, int(min(box[2] - box[0], box[3] - box[1]) / size / 2))
    by = by if valid.size > TILE_PX else 1
    data = Image.fromarray(valid.view(np.uint8) * np.uint8(255)).reduce(by)
    grey = np.repeat(np.asarray(data)[..., None], 3, axis=2)
    as_it_is = np.array([[0, 0, 0], [1, 1, 1]], np.float32)
    shares = psc_crop(grey, box[None] / np.float32(by), as_it_is, size)[0, 0]
    view[:] = fill_view(view, shares, blank)


def _clear_outside(view: NDArray[Any], box: NDArray[np.float32], height: int, width: int) -> None:
    """Zeroes pixels of a view whose centres lie outside the image.

    The kernel has done so, but the last averaged block may reach past the true edge, and what was
    filled in has no edge.
    """
    size = view.shape[-1]
    steps = np.arange(size) + 0.5
    # The sides in float32, as the kernel computes them: both must agree on where the edge is.
    w, h = float(box[2] - box[0]), float(box[3] - box[1])
    x, y = float(box[0]) + steps * (w / size), float(box[1]) + steps * (h / size)
    view[:, (y < 0) | (y >= height), :] = 0
    view[:, :, (x < 0) | (x >= width)] = 0


def _from_file(name: str, bands: Any, value_range: Any, nodata: float | None) -> Scene:
    raster = Raster(name, bands, value_range, nodata)
    path = Path(name) if os.path.exists(name) else None
    notes = raster.notes
    try:
        limit = WHOLE_IMAGE_PX
        if raster.tiled and len(raster.levels) > 1:
            limit = min(limit, WHOLE_IMAGE_WITH_OVERVIEWS_PX)
        if raster.height * raster.width <= limit:
            rgb, valid = raster.read(raster.levels[0], (0, 0, raster.height, raster.width))
            if valid is not None and not valid.any():
                raise nothing_valid(name)
            raster.close()
            return Scene((rgb, valid), raster.georef, path, notes, raster.files)
        _check_some_data(raster)
        if raster.height * raster.width / math.prod(raster.levels[-1].factor) > TILE_PX:
            notes.append(
                "large image without (coarse enough) overviews: the first look reads all of it; "
                "overviews (`rio overview --build auto FILE`) would make it fast"
            )
    except BaseException:
        raster.close()
        raise
    return Scene(raster, raster.georef, path, notes, raster.files)


def _check_some_data(raster: Raster) -> None:
    """Looks at a large image once for a valid pixel, where the file can tell."""
    if raster.always_valid:
        return
    level, by = _level_for(raster, math.inf, None)
    _, valid = raster.read(level, (0, 0, level.height, level.width), by)
    if _some(valid) or _some(_where_data(raster)[0]):
        return
    raise nothing_valid(raster.name)


def _where_data(raster: Raster) -> tuple[Valid, tuple[float, float]]:
    """A coarse look at where a file holds data, and the rows and columns to an element of it.

    Overviews may have missed what is small, so one without any data is not believed while there
    is a finer level.
    """
    want = max(1.0, max(raster.height, raster.width) / VALIDITY_PX)
    first, by = _level_for(raster, want, None)
    finer = [lv for lv in raster.levels if max(lv.factor) < max(first.factor)]
    looks = [(first, by), *((lv, int(want / max(lv.factor))) for lv in reversed(finer))]
    for level, by in looks:
        valid = raster.read(level, (0, 0, level.height, level.width), by)[1]
        if _some(valid):
            break
    return valid, (level.factor[0] * by, level.factor[1] * by)


def _some(valid: Valid) -> bool:
    return valid is None or bool(valid.any())
