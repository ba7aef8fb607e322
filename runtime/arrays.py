"""Pictures that are already in memory, as u8 RGB: Pillow images and numpy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomag_edge.errors import ImageError

from .pixels import (
    CHUNK_PX,
    SAMPLE_PX,
    U8,
    ToRgb,
    Valid,
    band_note,
    both,
    checked_range,
    chosen_bands,
    finite,
    nothing_valid,
    orientation_note,
    percentile_range,
)

Picture = tuple[U8, Valid, list[str]]
"""u8[h,w,3], the pixels that hold data, and remarks in plain words."""


def from_pillow(image: Image.Image, bands: Any, value_range: tuple[float, float] | None) -> Picture:
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
    return _in_memory(values, valid, bands, value_range, "the Pillow image", notes)


def from_array(
    values: NDArray[Any], bands: Any, value_range: tuple[float, float] | None
) -> Picture:
    """An array [H,W] or [H,W,C]; masked pixels of a masked array hold no data."""
    valid: Valid = None
    if isinstance(values, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(values)
        valid = np.asarray(~(masked if masked.ndim == 2 else masked.all(axis=-1)))
        values = np.ma.getdata(values)
    return _in_memory(values, valid, bands, value_range, "the array", [])


def _in_memory(
    values: NDArray[Any],
    valid: Valid,
    bands: Any,
    value_range: tuple[float, float] | None,
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
    chosen = chosen_bands(bands, range(1, count + 1))
    if note := band_note(chosen, count):
        notes.append(note)
    planes = np.moveaxis(values, -1, 0)
    if value_range is not None:
        value_range = checked_range(value_range)
        notes.append(f"values {value_range[0]:g}..{value_range[1]:g} scaled to 0..255")
    elif values.dtype not in (np.uint8, bool):
        data = [c - 1 for c in sorted(set(chosen))]
        for step in (max(1, math.isqrt(height * width // SAMPLE_PX)), 1):
            thin = planes[data, ::step, ::step]
            usable = both(None if valid is None else valid[::step, ::step], finite(thin))
            sample = thin.reshape(-1) if usable is None else thin[:, usable].reshape(-1)
            if sample.size:
                break
        else:
            raise nothing_valid(name)
        low, high = value_range = percentile_range(sample)
        notes.append(f"scaled {values.dtype} by 2-98 percentiles {low:g}..{high:g}")
    to_rgb = ToRgb((chosen[0] - 1, chosen[1] - 1, chosen[2] - 1), value_range)
    if values.dtype == np.uint8 and value_range is None and valid is None and chosen == (1, 2, 3):
        return values[..., :3], None, notes
    rgb = np.empty((height, width, 3), np.uint8)
    usable = np.ones((height, width), bool)
    for row in range(0, height, max(1, CHUNK_PX // width)):
        rows = slice(row, row + max(1, CHUNK_PX // width))
        rgb[rows], part = to_rgb(planes[:, rows], None if valid is None else valid[rows])
        if part is not None:
            usable[rows] = part
    if not usable.any():
        raise nothing_valid(name)
    return rgb, both(None, usable), notes
