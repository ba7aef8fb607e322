"""Image files read through rasterio: u8 RGB windows at any overview level, in bounded memory.

Windows are (row0, col0, row1, col1), half open, in pixels of the level they are read from.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images.vetting.formats import largest_block_bytes
from geomag_edge.runtime.images.vetting.work import Work

from .bands import BandInfo, chosen_bands
from .files import open_raster
from .fill import Sample, all_hold, checked_nodata, frame, impossible_note, samples_of
from .georef import georef_of
from .pixels import (
    CHUNK_PX,
    MOST_CHUNK_PX,
    SAMPLE_PX,
    TILE_PX,
    U8,
    ToRgb,
    Valid,
    averaged,
    both,
    checked_ranges,
    nothing_valid,
    orientation_note,
    stretched,
)
from .proj import database_note
from .reading import CACHE_BYTES, LINKED, raise_lost, reading, told

HOLE_PX = 128 * 128
"""Smaller blocks are read rather than asked for."""

Rect = tuple[int, int, int, int]


@dataclass
class Level:
    """One resolution of an image: the file itself, an overview, or one averaged in memory."""

    height: int
    width: int
    factor: tuple[float, float]
    """Pixels of the image per pixel of this level (rows, columns)."""
    dataset: Any = None
    overview: int | None = None
    knows_validity: bool = True
    """Whether it says of its pixels what the file itself says; else the file's word is taken."""
    averaged: tuple[U8, Valid] | None = None


class Raster:
    """An open image file. `levels` run from the finest to the coarsest; `tiled` says whether a
    window can be read without the rows that it lies in."""

    def __init__(
        self, name: str, bands: Any = None, value_range: Any = None, nodata: float | None = None
    ) -> None:
        self.name = name
        self._process = os.getpid()
        self.notes: list[str] = []
        database = database_note()  # before a CRS is read
        self._fill = checked_nodata(nodata)
        self._hole: tuple[NDArray[Any], Valid] | None = None
        self._dataset = open_raster(name, self.notes)
        try:
            with reading(name, self.notes):
                self.files = tuple(map(str, self._dataset.files))
                self._describe(bands, value_range)
            if database and (self.georef.crs is not None or self.georef.transform is not None):
                self.notes.append(database)
        except BaseException:
            self.close()
            raise

    def _describe(self, bands: Any, value_range: Any) -> None:
        ds = self._dataset
        if ds.count == 0:
            raise ImageError(f"{self.name} holds no bands itself: give one of its parts{_part(ds)}")
        if len(ds.subdatasets) > 1:
            self.notes.append(
                f"holds {len(ds.subdatasets)} images, of which the first is read: give another by "
                f"its name{_part(ds, last=True)}"
            )
        self.height, self.width = ds.height, ds.width
        self.georef = georef_of(ds, self.notes)
        self._choose(bands)
        orientation = self._tags_of(0).get("EXIF_Orientation", "1")
        if orientation != "1":
            self.notes.append(orientation_note(orientation))
        self._block_bytes = largest_block_bytes(ds)
        self.tiled = ds.block_shapes[self._bands[0] - 1][1] < self.width
        self.levels = [Level(self.height, self.width, (1.0, 1.0), ds)]
        for i, _ in enumerate(ds.overviews(self._bands[0])):
            # A JPEG offers overviews of its own accord; their sizes are only known once open.
            with open_raster(self.name, self.notes, overview_level=i) as o:
                factor = (self.height / o.height, self.width / o.width)
                same = self._says_of_validity(o) == self._says_of_validity(ds)
                self.levels.append(Level(o.height, o.width, factor, None, i, same))
        with self._reading():
            self._scale(value_range)

    def _choose(self, asked: Any) -> None:
        """Sets the bands to read and where red, green and blue are among them."""
        ds = self._dataset
        interpretation = told(lambda: ds.colorinterp, (), "its colour interpretation", self.notes)
        self._alphas = [i for i in ds.indexes if interpretation[i - 1 : i] == (ColorInterp.alpha,)]
        colours = [i for i in ds.indexes if i not in self._alphas]
        if not colours:
            raise ImageError(f"{self.name} has only an alpha band: give an image with colours")
        names = told(lambda: ds.descriptions, (None,) * ds.count, "its bands' names", self.notes)
        tags = [self._tags_of(i) for i in ds.indexes]
        about = " ".join(self._tags_of(0).values())
        chosen, note = chosen_bands(asked, BandInfo(interpretation, names, tags, about, colours))
        if note:
            self.notes.append(note)
        self._bands = sorted(set(chosen))
        self._positions = tuple(self._bands.index(b) for b in chosen)
        for band in self._bands:
            if ds.dtypes[band - 1].startswith("complex"):
                raise ImageError(
                    f"band {band} of {self.name} is {ds.dtypes[band - 1]}: give real numbers, for "
                    "example the magnitude"
                )

    def _tags_of(self, band: int) -> dict[str, str]:
        """What the file says of a band, or of all of itself (0)."""
        ds, nothing = self._dataset, dict[str, str]()
        return told(
            lambda: ds.tags(band) | ds.tags(band, ns="IMAGERY"), nothing, "its tags", self.notes
        )

    def _scale(self, value_range: Any) -> None:
        """Decides how values become bytes."""
        ds, ranges = self._dataset, None
        self._to_rgb = ToRgb(self._positions, fill=self._fill)
        palette = self._palette() if value_range is None else None
        if palette is None and value_range is None:
            value_range = self._range_of_bits()
        if value_range is not None:
            ranges, note = checked_ranges(value_range)
            self.notes.append(note)
        elif palette is None and any(ds.dtypes[b - 1] != "uint8" for b in self._bands):
            kind = ds.dtypes[self._bands[0] - 1]
            ranges, notes = stretched(self._sample(), self._positions, kind)
            self.notes += notes
        self._to_rgb = ToRgb(self._positions, ranges, palette, self._fill)

    def _says_of_validity(self, ds: Any) -> str:
        """What a dataset declares of the validity of the bands in use, to be compared."""
        return str([(ds.mask_flag_enums[b - 1], ds.nodatavals[b - 1]) for b in self._bands])

    def _palette(self) -> U8 | None:
        """The colour table [N,4] of a single palette band."""
        band = self._bands[0]
        if len(self._bands) > 1 or self._dataset.colorinterp[band - 1] != ColorInterp.palette:
            return None
        none: dict[int, tuple[int, int, int, int]] = {}
        table = told(lambda: self._dataset.colormap(band), none, "its colour table", self.notes)
        if not table:
            return None
        colours = np.zeros((max(table) + 1, 4), np.uint8)
        for value, rgba in table.items():
            colours[value] = rgba
        self.notes.append("palette expanded to RGB")
        return colours

    def _range_of_bits(self) -> tuple[float, float] | None:
        """0..1, 0..15 and so on for bytes that use fewer than 8 bits."""
        band = self._bands[0]
        bits = int(self._dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", 8))
        is_byte = self._dataset.dtypes[band - 1] == "uint8"
        return (0.0, float(2**bits - 1)) if is_byte and bits < 8 else None

    def read(self, level: Level, window: Rect, factor: int = 1) -> tuple[U8, Valid]:
        """A window as u8[h,w,3] with its valid pixels, averaged by a whole factor.

        The window's top left should be a multiple of `factor`, so that blocks agree between
        windows; h and w are rounded up.
        """
        row0, col0, row1, col1 = window
        if level.averaged is not None:
            rgb, valid = level.averaged
            rgb = rgb[row0:row1, col0:col1]
            valid = None if valid is None else valid[row0:row1, col0:col1]
            return averaged(rgb, valid, factor) if factor > 1 else (rgb.copy(), valid)
        height, width = -(-(row1 - row0) // factor), -(-(col1 - col0) // factor)
        rgb = np.empty((height, width, 3), np.uint8)
        valid = np.ones((height, width), bool)
        with self._reading():
            for chunk, hole in self._steps(level, window, factor):
                part, part_valid = self._to_rgb(*self._values(level, _first(chunk, hole), hole))
                if factor > 1:
                    part, part_valid = averaged(part, part_valid, factor)
                r, c = (chunk[0] - row0) // factor, (chunk[1] - col0) // factor
                end_r, end_c = -(-(chunk[2] - row0) // factor), -(-(chunk[3] - col0) // factor)
                place = np.s_[r:end_r, c:end_c]
                rgb[place] = part
                if part_valid is not None:
                    valid[place] = part_valid
        return rgb, both(None, valid)

    def coarse(self, factor: float) -> Level | None:
        """A level averaged in memory from the coarsest overview, if it is fine enough.

        It is made on the first call that can use it, by one pass over the file, and kept.
        """
        last = self.levels[-1]
        if last.averaged is None:
            by = whole_factor(last.height, last.width)
            if by == 1 or by * max(last.factor) > factor:
                return None
            picture = self.read(last, (0, 0, last.height, last.width), by)
            height, width = picture[0].shape[:2]
            rows, cols = last.factor
            last = Level(height, width, (rows * by, cols * by), averaged=picture)
            self.levels.append(last)
        return last if max(last.factor) <= factor else None

    @property
    def always_valid(self) -> bool:
        """Whether the file has no means of saying that a pixel holds no data."""
        ds = self._dataset
        return (
            self._to_rgb.palette is None
            and self._fill.nodata is None
            and not self._alphas
            and all(
                MaskFlags.all_valid in ds.mask_flag_enums[b - 1] and "float" not in ds.dtypes[b - 1]
                for b in self._bands
            )
        )

    def _open(self, level: Level) -> Any:
        if self._process != os.getpid():  # a fork's handles share their place with the parent's
            for one in self.levels:
                one.dataset = None
            self._dataset = self.levels[0].dataset = open_raster(self.name, self.notes)
            self._process = os.getpid()
        if level.dataset is None:
            level.dataset = open_raster(self.name, self.notes, overview_level=level.overview)
        return level.dataset

    def _values(self, level: Level, window: Rect, hole: bool = False) -> tuple[NDArray[Any], Valid]:
        """Band values [C,h,w] as stored, and which pixels the file says hold data. A hole's pixel
        is read once: all are alike, and GDAL makes a whole block for each."""
        if hole:
            self._hole = self._hole or self._values(level, window)
            return self._hole
        ds = self._open(level)
        row0, col0, row1, col1 = window
        area = Window(col0, row0, col1 - col0, row1 - row0)
        values = ds.read(self._bands, window=area)
        raise_lost()
        flags = [self._dataset.mask_flag_enums[b - 1] for b in self._bands]
        if all(MaskFlags.all_valid in f for f in flags) and not self._alphas:
            return values, None
        if level.knows_validity:
            return values, both(None, self._declared(ds, area))
        return values, both(None, self._declared_at(level, window))

    def _steps(self, level: Level, window: Rect, factor: int) -> Iterator[tuple[Rect, bool]]:
        """The parts of a window to be read one after another, and whether each is a hole.

        Raises:
            ImageError: it is more work than one look may be.
        """
        work = Work(self.name, self._dataset, self._bands)
        scale = 1.0 if level.knows_validity else math.prod(level.factor)
        holes = self._leaves_holes and level.dataset is self._dataset
        work.expect(int(_px(window) * scale), holes)
        for chunk in self._chunks(level, window, factor):
            hole = holes and self._is_hole(chunk)
            if holes and not hole:
                work.add(_px(chunk))
            yield chunk, hole

    def _is_hole(self, window: Rect) -> bool:
        """Whether the file holds nothing of a window, so that all of its pixels are alike."""
        ds = self._dataset
        rows, cols = ds.block_shapes[self._bands[0] - 1]
        row0, col0, row1, col1 = window
        return all(
            ds.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band) is None
            for y in range(row0 // rows, -(-row1 // rows))
            for x in range(col0 // cols, -(-col1 // cols))
            for band in {*self._bands, *self._alphas}
        )

    @cached_property
    def _leaves_holes(self) -> bool:
        """Whether it is a GeoTIFF that may lack blocks (those may be most of an image of any size),
        and that these say all of their pixels, no mask of its own being stored apart."""
        ds, first = self._dataset, self._bands[0] - 1
        flags = [ds.mask_flag_enums[b - 1] for b in self._bands]
        return (
            ds.driver == "GTiff"
            and self.tiled
            and math.prod(ds.block_shapes[first]) >= HOLE_PX
            and not any(MaskFlags.per_dataset in f and MaskFlags.alpha not in f for f in flags)
        )

    def _reading(self) -> AbstractContextManager[None]:
        """`reading`, with a cache that holds what is decoded at a time."""
        return reading(self.name, self.notes, max(CACHE_BYTES, 2 * self._block_bytes))

    def _declared(self, ds: Any, area: Window) -> NDArray[np.bool_]:
        """Which pixels [h,w] of an area hold data by all that the file declares: a mask, nodata
        values and alpha, of which GDAL's own masks heed only one."""
        flags = [self._dataset.mask_flag_enums[b - 1] for b in self._bands]
        shared = any(MaskFlags.per_dataset in f for f in flags)
        # A colour may happen to be the nodata value in one band: all bands must say so.
        bands = self._bands[:1] if shared else self._bands
        valid = np.asarray(ds.read_masks(bands, window=area).any(axis=0))
        if self._alphas:
            valid &= (ds.read(self._alphas, window=area) > 0).all(axis=0)
        if shared:
            values = ds.read(self._bands, window=area)
            nodata = [self._dataset.nodatavals[b - 1] for b in self._bands]
            valid &= ~all_hold(values, nodata)
        return valid

    def _declared_at(self, level: Level, window: Rect) -> NDArray[np.bool_]:
        """The same for a window of a level, as full resolution has it.

        The pixel in the middle speaks for its neighbourhood. Every pixel is read, as GDAL would
        take a coarse mask from the very overviews that do not know it.
        """
        down, across = level.factor
        rows = ((np.arange(window[0], window[2]) + 0.5) * down).astype(int)
        cols = ((np.arange(window[1], window[3]) + 0.5) * across).astype(int)
        left, width = int(cols[0]), int(cols[-1] - cols[0]) + 1
        valid = np.empty((len(rows), len(cols)), bool)
        step = max(1, int(CHUNK_PX / (width * down)))
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            area = Window(left, int(some[0]), width, int(some[-1] - some[0]) + 1)
            full = self._declared(self._dataset, area)
            valid[first : first + step] = full[some - some[0]][:, cols - left]
        return valid

    def _chunks(self, level: Level, window: Rect, factor: int) -> Iterator[Rect]:
        """Cuts a window into parts of about CHUNK_PX, at multiples of `factor` from its corner."""
        row0, col0, row1, col1 = window
        block_rows, block_cols = self._open(level).block_shapes[self._bands[0] - 1]
        width = col1 - col0
        if block_cols < level.width:  # tiled; strips are better read across
            width = min(width, max(CHUNK_PX // 1024, block_cols))
        width = max(factor, width // factor * factor) if width < col1 - col0 else width
        height = max(CHUNK_PX // width, min(block_rows, 1024))
        height = max(factor, height // factor * factor)
        if width * height > MOST_CHUNK_PX:  # a few rows of a very wide image
            width = max(factor, MOST_CHUNK_PX // height // factor * factor)
        for r in range(row0, row1, height):
            for c in range(col0, col1, width):
                yield r, c, min(r + height, row1), min(c + width, col1)

    def _sample(self) -> list[Sample]:
        """Each band's valid values from all over the image, to find its value range from.

        Raises:
            ImageError: there are none.
        """
        if samples := self._samples_of(self._sample_windows()):
            return samples
        level = self.levels[0]
        for chunk, hole in self._steps(level, (0, 0, level.height, level.width), 1):
            if samples := self._samples_of([(level, _first(chunk, hole))], hole):
                return samples
        raise nothing_valid(self.name)

    def _samples_of(self, windows: list[tuple[Level, Rect]], hole: bool = False) -> list[Sample]:
        """The same from some windows; none at all where these hold no data."""
        values, valid, edge = [], [], []
        for level, window in windows:
            part, known = self._values(level, window, hole)
            values.append(part.reshape(len(part), -1))
            valid.append((np.ones(part.shape[1:], bool) if known is None else known).reshape(-1))
            edge.append(frame(level.height, level.width, window).reshape(-1))
        flat, known = np.concatenate(values, axis=1), np.concatenate(valid)
        declared = [self._dataset.nodatavals[b - 1] for b in self._bands]
        samples = samples_of(flat, known, np.concatenate(edge), self._fill, declared)
        if not samples[0].values.size:
            return []
        if note := impossible_note(flat, known):
            self.notes.append(note)
        return samples

    def _sample_windows(self) -> list[tuple[Level, Rect]]:
        """One coarse look at an overview, the whole of a small image, or a grid of patches."""
        for level in reversed(self.levels):
            if SAMPLE_PX / 4 <= level.height * level.width <= SAMPLE_PX * 4:
                return [(level, (0, 0, level.height, level.width))]
        level = self.levels[0]
        if level.height * level.width < SAMPLE_PX:
            return [(level, (0, 0, level.height, level.width))]
        count, side = 16, math.isqrt(SAMPLE_PX) // 16
        rows = np.linspace(0, max(level.height - side, 0), count).astype(int)
        cols = np.linspace(0, max(level.width - side, 0), count).astype(int)
        return [
            (level, (r, c, min(r + side, level.height), min(c + side, level.width)))
            for r in rows.tolist()
            for c in cols.tolist()
        ]

    def __getstate__(self) -> dict[str, Any]:
        levels = [replace(level, dataset=None) for level in self.levels]
        return self.__dict__ | {"_dataset": None, "levels": levels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy (`copy.copy`, or one in another process) has handles of its own."""
        self.__dict__ |= state
        self._process = os.getpid()
        self._dataset = self.levels[0].dataset = open_raster(self.name)

    def close(self) -> None:
        """Closes the file and its overviews."""
        self._dataset.close()
        for level in getattr(self, "levels", []):
            if level.dataset is not None:
                level.dataset.close()


def _px(window: Rect) -> int:
    row0, col0, row1, col1 = window
    return (row1 - row0) * (col1 - col0)


def _first(window: Rect, alone: bool) -> Rect:
    """The first pixel of a window, if it stands for all of them, or the window."""
    return (*window[:2], window[0] + 1, window[1] + 1) if alone else window


def whole_factor(height: int, width: int) -> int:
    """The smallest whole factor that brings a picture down to TILE_PX."""
    return math.ceil(math.sqrt(height * width / TILE_PX)) if height * width > TILE_PX else 1


def _part(ds: Any, last: bool = False) -> str:
    """A part of a file, in words that a shell takes as they stand."""
    parts = {k: v for k, v in ds.tags(ns="SUBDATASETS").items() if k.endswith("_NAME")}
    names = [name for name in parts.values() if LINKED not in name]  # only of this process
    return f", such as {shlex.quote(names[-1 if last else 0])}" if names else ""
