"""From bands of any type to u8 RGB: palettes, scaling and averaging of valid pixels.

Arrays of band values are [C,h,w] as rasterio reads them; pictures are u8[h,w,3]. `valid` is
bool[h,w], or None where every pixel holds data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomag_edge.arguments import told
from geomag_edge.errors import ImageError

from .fill import Fill, Sample, Valid, fill_notes, without_fill

U8 = NDArray[np.uint8]
Range = tuple[float, float]
Ranges = tuple[Range, ...]
"""The values that become 0 and 255, for red, green and blue."""

CHUNK_PX = 2_000_000
"""Pixels decoded at a time, which bounds the memory of a read."""
MOST_CHUNK_PX = 16_000_000
"""The most where blocks are large."""
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
    ranges: Ranges | None = None
    """None leaves uint8 as it is."""
    palette: U8 | None = None
    """[N,4] red, green, blue, alpha by pixel value."""
    fill: Fill = field(default_factory=Fill)

    def __call__(self, values: NDArray[Any], valid: Valid) -> tuple[U8, Valid]:
        """[C,h,w] -> (u8[h,w,3], valid). Pixels of fill, NaN and infinity stop being valid."""
        valid = both(valid, self.fill.valid(values))
        if self.palette is not None:
            colours = coloured(values[0], self.palette)
            return np.ascontiguousarray(colours[..., :3]), both(valid, colours[..., 3] > 0)
        if values.dtype == bool:
            values = values.astype(np.uint8) * 255
        rgb = np.empty((*values.shape[1:], 3), np.uint8)
        for channel, position in enumerate(self.positions):
            if self.ranges is None:
                rgb[..., channel] = values[position]
                continue
            same = [
                c
                for c in range(channel)
                if (self.positions[c], self.ranges[c]) == (position, self.ranges[channel])
            ]
            rgb[..., channel] = (
                rgb[..., same[0]] if same else scaled(values[position], *self.ranges[channel])
            )
        return rgb, valid


def coloured(values: NDArray[Any], palette: U8) -> U8:
    """The colours [h,w,4] of values [h,w] of any type; opaque black, as GDAL has it, for those
    that the palette [N,4] lacks: they are data all the same."""
    nearest = np.rint(values) if values.dtype.kind == "f" else values
    listed = (nearest >= 0) & (nearest < len(palette))
    colours = palette[np.where(listed, nearest, 0).astype(np.intp)]
    colours[~listed] = 0, 0, 0, 255
    return colours


def both(first: Valid, second: Valid) -> Valid:
    """Valid where both are; None as soon as nothing is invalid."""
    if second is not None and second.all():
        second = None
    if first is None or second is None:
        return second if first is None else first
    return first & second


def scaled(values: NDArray[Any], low: float, high: float) -> U8:
    """`low`..`high` -> 0..255, rounded and clipped; NaN -> 0."""
    kind = np.result_type(values.dtype, np.float32)
    info = np.finfo(kind)
    coarsest = 1000 * max(float(info.eps) * max(abs(low), abs(high)), float(info.tiny))
    if not coarsest < high - low < float(info.max):  # float32 would round the range away
        kind = np.promote_types(kind, np.float64)
    out = values.astype(kind)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # of pixels without data
        if not 1e-300 < high - low < 1e300:  # nor can float64 take 255 times such a range
            exponent = math.frexp(max(abs(low), abs(high)))[1]
            out = np.ldexp(out, -exponent)
            low, high = math.ldexp(low, -exponent), math.ldexp(high, -exponent)
        out -= kind.type(low)
        out *= kind.type(255 / (high - low))
    np.nan_to_num(out, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(out, 0, 255, out=out), out=out).astype(np.uint8)


def percentile_range(sample: NDArray[Any]) -> tuple[float, float]:
    """The value range of valid, finite values [n], n >= 1: 2nd to 98th percentile.

    Where these meet (sparse bright points, a constant picture) the extremes serve, then +-0.5, or
    more where float64 has no such step.
    """
    sample = sample.astype(np.float64)
    low, high = np.percentile(sample, [LOW_PERCENT, HIGH_PERCENT])
    if low == high:
        low, high = sample.min(), sample.max()
    if low == high:
        half = max(0.5, np.spacing(abs(low)))
        low, high = low - half, high + half
    return float(low), float(high)


def stretched(
    samples: Sequence[Sample], positions: Sequence[int], kind: str
) -> tuple[Ranges, list[str]]:
    """The range of each of red, green and blue, by its own band's values, and notes on them.

    Args:
        samples: of the bands that were read, none of them empty.
        positions: for each of red, green and blue, which of these bands.
        kind: name of the values' type.
    """
    clean = [without_fill(sample) for sample in samples]
    ranges = [percentile_range(values) for values, _ in clean]
    used = list(dict.fromkeys(positions))
    shown = ", ".join(f"{low:g}..{high:g}" for low, high in (ranges[p] for p in used))
    each = " of each band" if len(used) > 1 else ""
    note = f"scaled {kind} by 2-98 percentiles{each} {shown}"
    suspects = [suspects for _, suspects in clean]
    return tuple(ranges[p] for p in positions), [note, *fill_notes(suspects)]


def checked_ranges(value_range: Any) -> tuple[Ranges, str]:
    """A caller's (low, high) for all bands, or three of them (also as six numbers), and a note.

    Raises:
        ImageError: not finite numbers, or a first that is not below its second.
    """
    try:
        numbers = np.asarray(value_range, np.float64).reshape(-1).tolist()
    except (TypeError, ValueError, OverflowError):
        numbers = []
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    usable = all(math.isfinite(v) for v in numbers) and all(low < high for low, high in pairs)
    if len(numbers) not in (2, 6) or not usable:
        given = ", ".join(f"{number:g}" for number in numbers[:7]) or told(value_range)
        raise ImageError(
            f"value range {given} is not usable: give two finite numbers, LOW below HIGH, or two "
            "for each of red, green and blue"
        )
    shown = ", ".join(f"{low:g}..{high:g}" for low, high in pairs)
    return tuple(pairs if len(pairs) == 3 else pairs * 3), f"values {shown} scaled to 0..255"


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
