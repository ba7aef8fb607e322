"""From bands of any type to u8 RGB: band choice, palettes, scaling and averaging of valid pixels.

Arrays of band values are [C,h,w] as rasterio reads them; pictures are u8[h,w,3]. `valid` is
bool[h,w], or None where every pixel holds data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomag_edge.errors import ImageError

U8 = NDArray[np.uint8]
Valid = NDArray[np.bool_] | None

CHUNK_PX = 2_000_000
"""Pixels decoded at a time, which bounds the memory of a read."""
TILE_PX = 16_000_000
"""The most pixels that one read returns; wider looks are averaged down while reading."""
SAMPLE_PX = 1_000_000
"""Pixels looked at to find the value range."""

LOW_PERCENT, HIGH_PERCENT = 2.0, 98.0


@dataclass(frozen=True)
class ToRgb:
    """How band values become u8 RGB, the same for every window of a scene."""

    positions: tuple[int, ...]
    """For each of red, green and blue: which of the bands that were read."""
    value_range: tuple[float, float] | None = None
    """Values that become 0 and 255; None leaves uint8 as it is."""
    palette: U8 | None = None
    """[N,4] red, green, blue, alpha by pixel value."""

    def __call__(self, values: NDArray[Any], valid: Valid) -> tuple[U8, Valid]:
        """[C,h,w] -> (u8[h,w,3], valid). Pixels that are not finite stop being valid."""
        if self.palette is not None:
            colours = self.palette[np.minimum(values[0], len(self.palette) - 1)]
            return np.ascontiguousarray(colours[..., :3]), both(valid, colours[..., 3] > 0)
        valid = both(valid, finite(values))
        if self.value_range is not None:
            values = scaled(values, *self.value_range)
        elif values.dtype == bool:
            values = values.astype(np.uint8) * 255
        rgb = np.empty((*values.shape[1:], 3), np.uint8)
        for channel, position in enumerate(self.positions):
            rgb[..., channel] = values[position]
        return rgb, valid


def both(first: Valid, second: Valid) -> Valid:
    """Valid where both are; None as soon as nothing is invalid."""
    if second is not None and second.all():
        second = None
    if first is None or second is None:
        return second if first is None else first
    return first & second


def finite(values: NDArray[Any]) -> Valid:
    """Where all bands hold finite numbers."""
    return np.isfinite(values).all(axis=0) if values.dtype.kind == "f" else None


def scaled(values: NDArray[Any], low: float, high: float) -> U8:
    """`low`..`high` -> 0..255, rounded and clipped; NaN -> 0."""
    kind = np.result_type(values.dtype, np.float32)
    out = values.astype(kind)
    out -= kind.type(low)
    out *= kind.type(255 / (high - low))
    np.nan_to_num(out, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(out, 0, 255, out=out), out=out).astype(np.uint8)


def percentile_range(sample: NDArray[Any]) -> tuple[float, float]:
    """The value range of valid, finite values [n], n >= 1: 2nd to 98th percentile.

    Where these meet (sparse bright points, a constant picture) the extremes serve, then +-0.5.
    """
    sample = sample.astype(np.float64)
    low, high = np.percentile(sample, [LOW_PERCENT, HIGH_PERCENT])
    if low == high:
        low, high = sample.min(), sample.max()
    if low == high:
        low, high = low - 0.5, high + 0.5
    return float(low), float(high)


def checked_range(value_range: Sequence[float]) -> tuple[float, float]:
    """A value range that a caller gave.

    Raises:
        ImageError: not two finite numbers, the first below the second.
    """
    try:
        low, high = (float(v) for v in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ImageError(
            f"value range {value_range!r} is not usable: give two finite numbers, LOW below HIGH"
        )
    return low, high


def chosen_bands(
    asked: Sequence[int] | None, colours: Sequence[int], labelled: Sequence[int] | None = None
) -> tuple[int, int, int]:
    """Which bands (1-based) serve as red, green and blue.

    Args:
        asked: the caller's choice, one band or three; None for the default.
        colours: the bands that hold data (not alpha).
        labelled: the bands that the file itself names red, green and blue.

    Raises:
        ImageError: a band that does not exist, or neither one band nor three.
    """
    if asked is None:
        first = list(labelled or colours[:3])
        while len(first) < 3:
            first.append(first[-1])
        return first[0], first[1], first[2]
    bands = [int(b) for b in asked]
    if len(bands) not in (1, 3):
        raise ImageError(
            f"{len(bands)} band numbers given: give one (shown as grey) or three (red, green, blue)"
        )
    if wrong := [b for b in bands if b not in colours]:
        have = f"bands 1 to {max(colours)}" if len(colours) > 1 else f"only band {colours[0]}"
        raise ImageError(f"no band {wrong[0]} in this image: it has {have} (counted from 1)")
    if len(bands) == 1:
        bands *= 3
    return bands[0], bands[1], bands[2]


def band_note(bands: Sequence[int], count: int) -> str | None:
    """A remark on the bands in use, where there was a choice."""
    if len(set(bands)) == 1:
        return f"band {bands[0]} of {count} shown as grey" if count > 1 else None
    if count == 3 and tuple(bands) == (1, 2, 3):
        return None
    return f"bands {','.join(map(str, bands))} of {count} taken as red, green, blue"


def averaged(rgb: U8, valid: Valid, factor: int) -> tuple[U8, Valid]:
    """Exact mean of the valid pixels in each factor x factor block; valid where any of them is.

    The last row and column of blocks may be smaller.
    """
    if valid is None:
        return np.asarray(Image.fromarray(rgb).reduce(factor)), None
    rows, cols = (np.arange(0, n, factor) for n in valid.shape)

    def block_sum(plane: NDArray[Any]) -> NDArray[np.uint32]:
        by_rows = np.add.reduceat(plane, rows, axis=0, dtype=np.uint32)
        return np.add.reduceat(by_rows, cols, axis=1, dtype=np.uint32)

    count = block_sum(valid)
    share = np.maximum(count, 1)
    out = np.empty((*count.shape, 3), np.uint8)
    for channel in range(3):
        total = block_sum(rgb[..., channel] * valid)
        out[..., channel] = (total + share // 2) // share
    return out, count > 0


def nothing_valid(name: str) -> ImageError:
    """The error for an image without one valid pixel."""
    return ImageError(
        f"{name} has no valid pixel: all of it is nodata, transparent or NaN; give an image with "
        "data, or correct its nodata value"
    )


def orientation_note(orientation: object) -> str:
    """Says that an EXIF orientation was left alone."""
    return f"EXIF orientation {orientation} not applied: all coordinates are in the file's frame"
