"""Values that stand for "nothing here": given by the caller, impossible, or suspected.

Given values and impossible ones are invalid pixels. A suspected one stays what it is, a pixel
of its value, and is only left out where the value range is sought: a guess may cost a picture
some contrast, never a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.arguments import told
from geomag_edge.errors import ImageError

Valid = NDArray[np.bool_] | None

IMPOSSIBLE = 1e20
"""No measurement is as large. 1e20, 9.999e20, 1e30, 9.96921e36 and the largest float of each sign
are what formats and tools write where there is no data."""

LARGE_SHARE = 0.1
"""One exact value on this share of an image, at the end of its range, is suspected."""
FRAME_SHARE = 0.25
"""The same of an image's outermost pixels: one side of it."""
SMALL_SHARE = 0.005
"""Too few pixels to change the 2nd and 98th percentiles; or to be more than stray values."""
FEWEST_VALUES = 64
"""An image of fewer different values shows classes, whose background is one of them."""
MOST_SUSPECTS = 4


@dataclass(frozen=True)
class Fill:
    """Which values hold no data, beside what the file itself declares."""

    nodata: float | None = None
    """The caller's own; a pixel counts as such where all bands hold it. An int stays one, as
    64-bit values have more digits than a float."""

    def valid(self, values: NDArray[Any]) -> Valid:
        """[C,h,w] -> bool[h,w]: where pixels hold data; None where all do."""
        valid: Valid = None
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore", over="ignore"):  # float16 ends at 65504
                valid = (np.abs(values) < IMPOSSIBLE).all(axis=0)  # neither NaN nor infinity
        if (value := self.stored(values.dtype)) is not None:
            data = np.asarray((~_holds(values, value)).any(axis=0))
            valid = data if valid is None else valid & data
        return None if valid is None or valid.all() else valid

    def stored(self, dtype: np.dtype[Any]) -> Any:
        """The caller's value as this type holds it; None if it cannot."""
        if self.nodata is None or math.isnan(self.nodata):
            return None
        if dtype.kind == "f":
            with np.errstate(over="ignore"):  # infinity is no data whatever is asked for
                value = dtype.type(self.nodata)
            return value if np.isfinite(value) else None
        if math.isinf(self.nodata):
            return None
        if dtype.kind == "b" or self.nodata != int(self.nodata):
            return None
        info = np.iinfo(dtype)
        return dtype.type(int(self.nodata)) if info.min <= self.nodata <= info.max else None


@dataclass(frozen=True)
class Sample:
    """Values of one band from all over an image, without those that hold no data."""

    values: NDArray[Any]
    """[n]"""
    on_frame: NDArray[np.bool_]
    """[n], whether each is one of the image's outermost pixels."""


@dataclass(frozen=True)
class Suspect:
    """A value that looks like undeclared fill."""

    value: Any
    share: float
    """Of the band's pixels that the file does not call invalid."""


def _holds(values: NDArray[Any], value: Any) -> NDArray[np.bool_]:
    """Where there is this value; floats may be off by what averaging in an overview rounds."""
    if values.dtype.kind != "f":
        return values == value
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(values - value) <= 4 * np.finfo(values.dtype).eps * np.abs(value)


def all_hold(values: NDArray[Any], nodata: Sequence[float | None]) -> NDArray[np.bool_]:
    """Where each band of [C,h,w] holds its own nodata value: bool[h,w]; nowhere if one has none."""
    held = np.ones(values.shape[1:], bool)
    for plane, own in zip(values, nodata, strict=True):
        value = Fill(own).stored(plane.dtype)
        held &= False if value is None else _holds(plane, value)
    return held


def checked_nodata(nodata: float | None) -> Fill:
    """A caller's nodata value.

    Raises:
        ImageError: no number.
    """
    try:
        if nodata is None:
            return Fill()
        if isinstance(nodata, bool):
            raise TypeError
        number = float(nodata)
        return Fill(int(nodata) if isinstance(nodata, (int, np.integer)) else number)
    except (TypeError, ValueError, OverflowError) as e:
        raise ImageError(f"nodata {told(nodata)} is not usable: give one number") from e


def frame(height: int, width: int, inside: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Which pixels of a window (row0, col0, row1, col1) are the outermost of height x width."""
    row0, col0, row1, col1 = inside
    rows, cols = np.arange(row0, row1)[:, None], np.arange(col0, col1)
    return (rows == 0) | (rows == height - 1) | (cols == 0) | (cols == width - 1)


def samples_of(
    values: NDArray[Any],
    valid: Valid,
    on_frame: NDArray[np.bool_],
    fill: Fill,
    declared: Sequence[float | None] = (),
) -> list[Sample]:
    """A sample of each band, empty where it has no data.

    Args:
        values: [C,n].
        valid: [n], where the source says that there is data.
        on_frame: [n].
        fill: the caller's.
        declared: each band's own nodata value.
    """
    data = np.ones_like(on_frame) if valid is None else valid
    if (finite := fill.valid(values)) is not None:
        data = data & finite
    samples = []
    for plane, own in zip(values, declared or [None] * len(values), strict=True):
        usable = data
        # A pixel is data where one band is, yet what fills the others is no value of theirs.
        for value in (Fill(own).stored(plane.dtype), fill.stored(plane.dtype)):
            usable = usable if value is None else usable & ~_holds(plane, value)
        samples.append(Sample(plane[usable], on_frame[usable]))
    full = [s for s in samples if s.values.size]
    return [s if s.values.size else full[0] for s in samples] if full else samples


def without_fill(sample: Sample) -> tuple[NDArray[Any], list[Suspect]]:
    """The values [m] to take a value range from, and what was left out of them.

    A suspect is one exact value at the end of the range (but for a few stray values) which is a
    large share of the image, or of its frame, or lies further from all others than these are
    spread.
    """
    values, counts = np.unique(sample.values, return_counts=True)
    framed = sample.values[sample.on_frame]
    total = max(1, int(counts.sum()))
    suspects: list[Suspect] = []
    low, high = 0, len(values)
    while high - low >= FEWEST_VALUES and len(suspects) < MOST_SUSPECTS:
        most = low + int(counts[low:high].argmax())
        for i in dict.fromkeys((most, low, high - 1)):
            below, above = counts[low:i].sum() / total, counts[i + 1 : high].sum() / total
            if min(below, above) > SMALL_SHARE:
                continue
            others = slice(i + 1, high) if below <= above else slice(low, i)
            share = counts[i] / total
            if _stands_apart(values, counts, i, others, share, framed):
                suspects.append(Suspect(values[i], float(share)))
                low, high = others.start, others.stop
                break
        else:
            break
    keep = (sample.values >= values[low]) & (sample.values <= values[high - 1])
    return (sample.values[keep] if suspects else sample.values), suspects


def _stands_apart(
    values: NDArray[Any],
    counts: NDArray[np.int64],
    i: int,
    others: slice,
    share: float,
    framed: NDArray[Any],
) -> bool:
    """Whether the i-th value, at an end of the range, is fill rather than one of the `others`."""
    if others.stop - others.start < FEWEST_VALUES // 2 or share < SMALL_SHARE:
        return False
    if share >= LARGE_SHARE:
        return True
    if framed.size and np.count_nonzero(framed == values[i]) >= FRAME_SHARE * framed.size:
        return True
    sums = np.cumsum(counts[others])
    ends = np.searchsorted(sums, [0.02 * sums[-1], 0.98 * sums[-1]])
    first, last = (float(v) for v in values[others][np.minimum(ends, len(sums) - 1)])
    value = float(values[i])
    return max(first - value, value - last) > last - first


def fill_notes(suspects: Sequence[Sequence[Suspect]]) -> list[str]:
    """What was left out of the value range, a line a value, from the suspects of each band."""
    shares: dict[str, float] = {}
    for suspect in (s for band in suspects for s in band):
        text = str(suspect.value).removesuffix(".0")
        shares[text] = max(shares.get(text, 0.0), suspect.share)
    return [
        f"{share:.1%} of the pixels are exactly {text}, which looks like undeclared fill: left out "
        f"of the value range; --nodata={text} makes them pixels without data"
        for text, share in shares.items()
    ]


def impossible_note(values: NDArray[Any], valid: Valid) -> str | None:
    """Names a value of [C,n] beyond all measurement, if pixels that count as data hold one."""
    if values.dtype.kind != "f":
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = np.isfinite(values) & (np.abs(values) >= IMPOSSIBLE)
    if valid is not None:
        beyond &= valid
    if not beyond.any():
        return None
    share = beyond.any(axis=0).mean()
    return (
        f"{share:.1%} of the pixels hold values such as {values[beyond][0]:g}, which nothing "
        "measures: they are without data"
    )
