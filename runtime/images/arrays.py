"""Pictures that are already in memory, as u8 RGB: Pillow images and numpy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomag_edge.errors import ImageError

from .bands import BandInfo, chosen_bands
from .fill import Fill, Sample, checked_nodata, frame, impossible_note, samples_of
from .pixels import (
    CHUNK_PX,
    SAMPLE_PX,
    U8,
    Ranges,
    ToRgb,
    Valid,
    both,
    checked_ranges,
    nothing_valid,
    orientation_note,
    stretched,
)

Picture = tuple[U8, Valid, list[str]]
"""u8[h,w,3], the pixels that hold data, and remarks in plain words."""


def from_pillow(
    image: Image.Image, bands: Any, value_range: Any, nodata: float | None = None
) -> Picture:
    """A Pillow image of any mode; transparent pixels hold no data, EXIF orientation is ignored."""
    valid: Valid = None
    notes = []
    try:
        if (orientation := image.getexif().get(0x0112, 1)) != 1:
            notes.append(orientation_note(orientation))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            valid = np.asarray(image.getchannel("A")) > 0
            image = image.convert("RGB")
        elif image.mode not in ("L", "RGB", "1", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as e:
        raise ImageError(f"cannot read the Pillow image: {e}; check its file") from e
    fill = checked_nodata(nodata)
    return _in_memory(values, valid, bands, value_range, fill, "the Pillow image", notes)


def from_array(
    values: NDArray[Any], bands: Any, value_range: Any, nodata: float | None = None
) -> Picture:
    """An array [H,W] or [H,W,C]; masked pixels of a masked array hold no data."""
    valid: Valid = None
    if isinstance(values, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(values)
        valid = np.asarray(~(masked if masked.ndim == 2 else masked.all(axis=-1)))
        values = np.ma.getdata(values)
    return _in_memory(values, valid, bands, value_range, checked_nodata(nodata), "the array", [])


def _in_memory(
    values: NDArray[Any],
    valid: Valid,
    bands: Any,
    value_range: Any,
    fill: Fill,
    name: str,
    notes: list[str],
) -> Picture:
    """Values [H,W] or [H,W,C] as a picture; bytes in RGB order are used without a copy."""
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ImageError(
            f"{name} has shape {list(values.shape)}: give [height, width] or [height, width, "
            "bands] with at least one pixel"
        )
    if values.dtype.kind not in "buif":
        raise ImageError(f"{name} is {values.dtype}: give real numbers, for example the magnitude")
    values = values if values.ndim == 3 else values[..., None]
    height, width, count = values.shape
    if height <= 4 and count > 16:
        raise ImageError(
            f"{name} has shape {list(values.shape)}, which looks like [bands, height, width]: "
            "give [height, width, bands] (numpy.moveaxis(array, 0, -1))"
        )
    chosen, note = chosen_bands(bands, BandInfo((), [None] * count, colours=range(1, count + 1)))
    if note:
        notes.append(note)
    planes = np.moveaxis(values, -1, 0)
    used = sorted({band - 1 for band in chosen})
    positions = tuple(used.index(band - 1) for band in chosen)
    ranges: Ranges | None = None
    if value_range is not None:
        ranges, note = checked_ranges(value_range)
        notes.append(note)
    elif values.dtype not in (np.uint8, bool):
        samples = _samples(planes, used, valid, fill, name, notes)
        ranges, said = stretched(samples, positions, str(values.dtype))
        notes += said
    to_rgb = ToRgb(positions, ranges, fill=fill)
    plain = values.dtype == np.uint8 and ranges is None and fill.nodata is None
    if plain and valid is None and chosen == (1, 2, 3):
        return values[..., :3], None, notes
    rgb = np.empty((height, width, 3), np.uint8)
    usable = np.ones((height, width), bool)
    for row in range(0, height, max(1, CHUNK_PX // width)):
        rows = slice(row, row + max(1, CHUNK_PX // width))
        rgb[rows], part = to_rgb(planes[used, rows], None if valid is None else valid[rows])
        if part is not None:
            usable[rows] = part
    if not usable.any():
        raise nothing_valid(name)
    return rgb, both(None, usable), notes


def _samples(
    planes: NDArray[Any], used: list[int], valid: Valid, fill: Fill, name: str, notes: list[str]
) -> list[Sample]:
    """The valid values of some of the bands of planes [C,h,w], thinned unless that leaves none."""
    height, width = planes.shape[1:]
    for step in (max(1, math.isqrt(height * width // SAMPLE_PX)), 1):
        thin = planes[used, ::step, ::step]
        known = None if valid is None else valid[::step, ::step].reshape(-1)
        rows, cols = thin.shape[1:]
        edge = frame(rows, cols, (0, 0, rows, cols)).reshape(-1)
        flat = thin.reshape(len(used), -1)
        samples = samples_of(flat, known, edge, fill)
        if samples[0].values.size:
            if note := impossible_note(flat, known):
                notes.append(note)
            return samples
    raise nothing_valid(name)
