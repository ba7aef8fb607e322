"""Answer masks in the frame of the image, pasted on demand from the logits of the views.

Where views overlap the finer one wins. A mask of a 20,000 px scene is never held as a whole unless
somebody asks for it: windows are computed from the few small logit maps. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomag_edge.errors import BoxError, InputError

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Coordinates = NDArray[np.floating[Any]]
Rect = tuple[int, int, int, int]

BLOCK_PX = 512
"""Side of the blocks in which large masks are computed."""


class Validity(Protocol):
    """What is needed of `geomag_edge.runtime.images.validity.Validity`."""

    def clear(self, inside: Bools, y: Coordinates, x: Coordinates) -> None:
        """Makes `inside` False where there is no data."""
        ...


@dataclass(frozen=True)
class MaskView:
    """One view's logits f32[M,M] and the box x0, y0, x1, y1 (px of the image) that they cover."""

    logits: F32
    x0: float
    y0: float
    x1: float
    y1: float

    def positive(self) -> tuple[float, float, float, float] | None:
        """Box outside of which no logit is above 0, in pixels of the image."""
        rows = np.flatnonzero((self.logits > 0).any(axis=1))
        cols = np.flatnonzero((self.logits > 0).any(axis=0))
        if not rows.size:
            return None
        cells = self.logits.shape[0]
        # Interpolation carries a cell's value up to the neighbours' centres, one cell further.
        low = np.clip([cols[0] - 1, rows[0] - 1], 0, cells)
        high = np.clip([cols[-1] + 2, rows[-1] + 2], 0, cells)
        cell_w, cell_h = (self.x1 - self.x0) / cells, (self.y1 - self.y0) / cells
        return (
            self.x0 + float(low[0]) * cell_w,
            self.y0 + float(low[1]) * cell_h,
            self.x0 + float(high[0]) * cell_w,
            self.y0 + float(high[1]) * cell_h,
        )

    def paste(self, out: Bools | F32, y: Coordinates, x: Coordinates) -> None:
        """Overwrites `out` [len(y), len(x)] at those image coordinates that lie in the box: with
        the logits, or, where it is bool, with whether they are above 0."""
        rows = slice(*np.searchsorted(y, [self.y0, self.y1]).tolist())
        cols = slice(*np.searchsorted(x, [self.x0, self.x1]).tolist())
        if rows.start >= rows.stop or cols.start >= cols.stop:
            return
        cells = self.logits.shape[0]
        r, fr = _cells(y[rows], self.y0, self.y1, cells)
        c, fc = _cells(x[cols], self.x0, self.x1, cells)
        if out.dtype != bool:
            out[rows, cols] = _bilinear(self.logits, r, fr, c, fc)
            return
        part = self.logits[r[0] : r[-1] + 2, c[0] : c[-1] + 2]
        if (part <= 0).all() or (part > 0).all():
            out[rows, cols] = part[0, 0] > 0
            return
        out[rows, cols] = _bilinear(self.logits, r, fr, c, fc) > 0


class Mask:
    """One answer mask, bool[H,W] in the image's frame once it is looked at.

    A pixel's value is the bilinear interpolation of the logits at the pixel's centre (logits sit at
    the centres of their cells and are clamped at the view's edge); above 0 is inside. Views with
    larger cells come first and finer ones overwrite them inside their boxes; equal ones in the
    order of quality, the best last. A pixel without data is never inside; in a file that is read by
    windows this is found out when a mask is looked at, for which the file must still be there.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        boxes: ArrayLike,
        logits: ArrayLike,
        quality: ArrayLike,
        score: float,
        validity: Validity | None = None,
    ) -> None:
        """Takes the views of one mask.

        Args:
            shape: H, W of the image.
            boxes: f32[n,4], x0, y0, x1, y1 in pixels; may stick out of the image.
            logits: f32[n,M,M]; NaN counts as background.
            quality: f32[n], predicted quality of each view's mask.
            score: of the whole mask.
            validity: pixels without data are never inside; None where all hold data.
        """
        self.shape = (int(shape[0]), int(shape[1]))
        self.score = float(score)
        self.validity = validity
        boxes = np.asarray(boxes, np.float64)
        # Half-precision engines may overflow to infinity, which must not turn into NaN later.
        logits = np.nan_to_num(np.asarray(logits, np.float32), nan=-1e4, posinf=1e4, neginf=-1e4)
        quality = np.asarray(quality, np.float32)
        n = len(boxes)
        if (
            boxes.shape != (n, 4)
            or logits.ndim != 3
            or len(logits) != n
            or logits.shape[1] != logits.shape[2]
            or quality.shape != (n,)
        ):
            raise InputError(
                f"mask of boxes {list(boxes.shape)}, logits {list(logits.shape)} and quality "
                f"{list(quality.shape)}: need [n,4], [n,M,M] and [n]"
            )
        sides = boxes[:, 2:] - boxes[:, :2]
        if not (np.isfinite(boxes).all() and (sides > 0).all()):
            raise BoxError("the boxes of a mask must be finite with x0 < x1 and y0 < y1")
        order = np.lexsort((quality, -sides.max(axis=1)))
        self.views = [MaskView(logits[i], *boxes[i].tolist()) for i in order]
        self._boxes = boxes[order]
        self._extent: tuple[int, Rect] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.window(0, 0, *self.shape)
        return array if dtype is None else array.astype(dtype)

    def window(self, row0: int, col0: int, row1: int, col1: int) -> Bools:
        """The part of the mask in rows row0..row1 and columns col0..col1 (half open, inside)."""
        height, width = self.shape
        if not (0 <= row0 <= row1 <= height and 0 <= col0 <= col1 <= width):
            raise InputError(
                f"window rows {row0}..{row1}, columns {col0}..{col1} is not inside a mask of "
                f"{height} x {width} pixels"
            )
        out = np.zeros((row1 - row0, col1 - col0), bool)
        for r0, c0, r1, c1 in self.blocks((row0, col0, row1, col1)):
            rows, cols = np.arange(r0, r1) + 0.5, np.arange(c0, c1) + 0.5
            out[r0 - row0 : r1 - row0, c0 - col0 : c1 - col0] = self.at(rows, cols)
        return out

    def at(self, y: Coordinates, x: Coordinates) -> Bools:
        """The mask at image coordinates: bool[len(y), len(x)]; y and x ascend.

        The centre of pixel (row, col) is y = row + 0.5, x = col + 0.5.
        """
        inside = self._pasted(np.zeros((len(y), len(x)), bool), y, x)
        if self.validity is not None:
            self.validity.clear(inside, y, x)
        return inside

    def logits_at(self, y: Coordinates, x: Coordinates) -> F32:
        """The logits at image coordinates: f32[len(y), len(x)]; `at` is where they exceed 0.

        -inf where no view looks, or where one would see something on pixels without data.
        """
        logits = self._pasted(np.full((len(y), len(x)), -np.inf, np.float32), y, x)
        if self.validity is not None:
            inside = logits > 0
            self.validity.clear(inside, y, x)
            logits[(logits > 0) & ~inside] = -np.inf
        return logits

    def _pasted(self, out: Any, y: Coordinates, x: Coordinates) -> Any:
        """All views over `out`, coarse ones first; of a sweep's many most lie elsewhere."""
        if len(y) and len(x):
            x0, y0, x1, y1 = self._boxes.T
            near = (x0 <= x[-1]) & (x1 >= x[0]) & (y0 <= y[-1]) & (y1 >= y[0])
            for i in np.flatnonzero(near).tolist():
                self.views[i].paste(out, y, x)
        return out

    def blocks(self, within: Rect | None = None, side: int = BLOCK_PX) -> Iterator[Rect]:
        """The windows, on a grid of `side` px, in which the mask may hold a pixel.

        Args:
            within: row0, col0, row1, col1 to which windows are cut; default: the whole image.
            side: grid step.
        """
        row0, col0, row1, col1 = within or (0, 0, *self.shape)
        boxes = self._positive
        for r in range(row0 // side * side, row1, side):
            near = boxes[(boxes[:, 1] < r + side) & (boxes[:, 3] > r)]
            for c in range(col0 // side * side, col1, side):
                if ((near[:, 0] < c + side) & (near[:, 2] > c)).any():
                    yield max(r, row0), max(c, col0), min(r + side, row1), min(c + side, col1)

    @cached_property
    def _positive(self) -> NDArray[np.float64]:
        """Boxes f64[k,4] outside of which no view's logits exceed 0; a sweep has very many."""
        boxes = [box for view in self.views if (box := view.positive()) is not None]
        return np.array(boxes, np.float64).reshape(-1, 4)

    @property
    def area_px(self) -> int:
        """Number of pixels inside."""
        return self._measure()[0]

    @property
    def bbox(self) -> Rect | None:
        """x0, y0, x1, y1 around all pixels inside (half open), or None where there are none."""
        area, box = self._measure()
        return box if area else None

    def _measure(self) -> tuple[int, Rect]:
        if self._extent is None:
            area, x0, y0, x1, y1 = 0, self.shape[1], self.shape[0], 0, 0
            for r0, c0, r1, c1 in self.blocks():
                part = self.window(r0, c0, r1, c1)
                rows, cols = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
                if rows.size:
                    area += int(np.count_nonzero(part))
                    y0, y1 = min(y0, r0 + int(rows[0])), max(y1, r0 + int(rows[-1]) + 1)
                    x0, x1 = min(x0, c0 + int(cols[0])), max(x1, c0 + int(cols[-1]) + 1)
            self._extent = area, (x0, y0, x1, y1)
        return self._extent

    def __repr__(self) -> str:
        return f"Mask(shape={self.shape}, views={len(self.views)}, score={self.score:.3f})"


@dataclass(frozen=True)
class MaskMaps:
    """What the mask head said of views: boxes f32[n,4] px, logits f32[m,n,M,M] and quality
    f32[m,n] of m queries."""

    boxes: F32
    logits: F32
    quality: F32


def joined_masks(
    maps: Sequence[MaskMaps], shape: tuple[int, int], validity: Validity | None = None
) -> list[Mask]:
    """One mask of an image of `shape` H, W for each query, from all its views.

    Its score is the best quality among the first maps, the answer's own look: the best of a sweep's
    many views would be near 1 whatever was asked.
    """
    boxes = np.concatenate([part.boxes for part in maps])
    logits = np.concatenate([part.logits for part in maps], axis=1)
    quality = np.concatenate([part.quality for part in maps], axis=1)
    return [
        Mask(shape, boxes, one, its_quality, float(own.max()), validity)
        for one, its_quality, own in zip(logits, quality, maps[0].quality, strict=True)
    ]


def mask_iou(a: Mask | ArrayLike, b: Mask | ArrayLike) -> float:
    """Intersection over union of two masks of one shape; 1 where both are empty."""
    a = a if isinstance(a, Mask) else np.asarray(a, bool)
    b = b if isinstance(b, Mask) else np.asarray(b, bool)
    if a.shape != b.shape or len(a.shape) != 2:
        raise InputError(f"masks of shapes {a.shape} and {b.shape} cannot be compared")
    both = either = 0
    rows = max(1, 4_000_000 // max(a.shape[1], 1))
    for r in range(0, a.shape[0], rows):
        window = (r, 0, min(r + rows, a.shape[0]), a.shape[1])
        in_a, in_b = _window_of(a, window), _window_of(b, window)
        both += int(np.count_nonzero(in_a & in_b))
        either += int(np.count_nonzero(in_a | in_b))
    return both / either if either else 1.0


def _window_of(mask: Mask | Bools, window: Rect) -> Bools:
    if isinstance(mask, Mask):
        return mask.window(*window)
    return mask[window[0] : window[2], window[1] : window[3]]


def _cells(at: Coordinates, low: float, high: float, cells: int) -> tuple[NDArray[np.int64], F32]:
    """For coordinates in low..high: the cell before each, and the share (0..1) of the next one."""
    place = np.clip((at - low) * (cells / (high - low)) - 0.5, 0, cells - 1)
    first = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    return first, (place - first).astype(np.float32)


def _bilinear(logits: F32, r: NDArray[np.int64], fr: F32, c: NDArray[np.int64], fc: F32) -> F32:
    """Logits [M,M] interpolated at rows r + fr and columns c + fc -> [len(r), len(c)].

    Elementwise (no matrix product), so that a pixel does not depend on the window it is in.
    """
    last = logits.shape[0] - 1
    first = int(r[0])
    used = logits[first : min(int(r[-1]) + 1, last) + 1]
    across = used[:, c] * (1 - fc) + used[:, np.minimum(c + 1, last)] * fc  # [rows used, len(c)]
    r = r - first
    out = across[r]
    out *= (1 - fr)[:, None]
    below = across[np.minimum(r + 1, len(across) - 1)]
    below *= fr[:, None]
    out += below
    return out
