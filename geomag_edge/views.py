"""Geometry of views: which square of the image a view shows, and where its tokens lie.

Shared by the PyTorch reference and the runtime, so numpy only. Coordinates are x, y in pixels of
the original image (pixel edges at whole numbers) unless said otherwise; boxes are x0, y0, x1, y1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import InputError

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class PscSettings:
    """How PSC looks for crops. `windows` are side lengths in patches of the view's grid."""

    max_crops: int
    windows: tuple[int, ...]
    overlap: float
    levels: int

    def __post_init__(self) -> None:
        if self.max_crops < 1 or self.levels < 1 or min(self.windows, default=0) < 1:
            raise InputError(f"{self}: needs at least 1 crop, 1 level and 1 window, each 1 or more")

    @classmethod
    def from_json(cls, data: dict) -> PscSettings:
        """Reads the `psc` record of a config or manifest."""
        return cls(
            int(data["max_crops"]),
            tuple(int(w) for w in data["windows"]),
            float(data["overlap"]),
            int(data["levels"]),
        )


def global_box(height: int, width: int) -> F32:
    """The square around the whole image, centred, side = longer side (px): the global view."""
    side = max(height, width)
    x0, y0 = (width - side) / 2, (height - side) / 2
    return np.array([x0, y0, x0 + side, y0 + side], np.float32)


def pooling_matrix(grid: int, out: int) -> F32:
    """Area-average pooling of a grid x grid map to out x out as a matrix [out*out, grid*grid].

    Rows sum to 1; `out == grid` gives the identity.
    """
    edges = np.linspace(0, grid, out + 1)
    cells = np.arange(grid)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    rows = np.clip(overlap, 0, None) * (out / grid)  # [out, grid]
    return np.kron(rows, rows).astype(np.float32)


def token_positions(boxes: F32, out: int, height: int, width: int) -> F32:
    """Where each pooled token of each view lies, f32[n, out*out, 5].

    Columns: x and y of the token's centre in the image (longer side = 1, image centre = 0),
    log2 of the view's side over the image's longer side, then x and y within the view (0..1).
    """
    side = max(height, width)
    local = (np.arange(out) + 0.5) / out
    rows, columns = np.meshgrid(local, local, indexing="ij")  # [out, out]
    u, v = columns.reshape(-1), rows.reshape(-1)
    view = np.asarray(boxes, np.float64).reshape(-1, 4)
    view_w, view_h = view[:, 2] - view[:, 0], view[:, 3] - view[:, 1]
    x = (view[:, 0:1] + u * view_w[:, None] - width / 2) / side
    y = (view[:, 1:2] + v * view_h[:, None] - height / 2) / side
    scale = np.broadcast_to(np.log2(view_w / side)[:, None], x.shape)
    local_u, local_v = np.broadcast_to(u, x.shape), np.broadcast_to(v, x.shape)
    return np.stack([x, y, scale, local_u, local_v], axis=-1).astype(np.float32)


def useful_levels(height: int, width: int, view_px: int, grid: int, psc: PscSettings) -> int:
    """How often PSC should look again: until its smallest window shows native resolution."""
    side = max(height, width) * min(psc.windows) / grid
    levels = 1
    while side > view_px and levels < psc.levels:
        side *= min(psc.windows) / grid
        levels += 1
    return levels


def iou_with(box: NDArray, boxes: NDArray) -> NDArray:
    """Intersection over union of one box [4] with boxes [n,4] -> [n]."""
    w = np.clip(np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]), 0, None)
    h = np.clip(np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]), 0, None)
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return w * h / (area + areas - w * h)


def best_distinct(
    boxes: F32, scores: F32, count: int, overlap: float, taken: F32 | None = None
) -> tuple[F32, F32]:
    """Greedy non-maximum suppression: at most `count` boxes, best score first.

    Boxes overlapping a better one (or one of `taken`) with an IoU above `overlap` are left out,
    as are those that the selection graph has marked as suppressed (score < 0).
    """
    kept: list[int] = []
    seen = [] if taken is None else list(taken)
    for i in np.argsort(-scores, kind="stable"):
        if len(kept) == count or scores[i] < 0:
            break
        if seen and iou_with(boxes[i], np.stack(seen)).max() > overlap:
            continue
        kept.append(int(i))
        seen.append(boxes[i])
    return boxes[kept].reshape(-1, 4), scores[kept]


Candidates = tuple[F32, F32]
"""Boxes [K,4] in pixels and their scores [K], as `psc` proposes them for one view."""


def choose_crops(
    first: Candidates,
    count: int,
    levels: int,
    overlap: float,
    look_again: Callable[[F32], Sequence[Candidates]],
) -> Candidates:
    """PSC's pyramid: choose, magnify, look again, choose inside; `count` crops over all levels.

    Args:
        first: candidates from the global view.
        count: crops that the token budget allows.
        levels: looks at most (`useful_levels`).
        overlap: greatest IoU between two crops of one level.
        look_again: encodes the crops [k,4] and returns the candidates found inside each.

    Returns:
        Boxes [k,4] and scores [k], k <= count, coarse levels first, best first within a level.
    """
    levels = max(1, min(levels, count))
    chosen_boxes, chosen_scores = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)]
    boxes, scores = first
    left = count
    for level in range(levels):
        share = left // (levels - level)
        taken = np.concatenate(chosen_boxes)
        crop_boxes, crop_scores = best_distinct(boxes, scores, share, overlap, taken)
        if not len(crop_boxes):
            break
        chosen_boxes.append(crop_boxes)
        chosen_scores.append(crop_scores)
        left -= len(crop_boxes)
        if level + 1 < levels and left:
            found = look_again(crop_boxes)
            boxes = np.concatenate([b for b, _ in found])
            scores = np.concatenate([s for _, s in found])
    return np.concatenate(chosen_boxes), np.concatenate(chosen_scores)


def view_to_image(box: Sequence[float], local: Sequence[float]) -> tuple[float, ...]:
    """A box given in a view's own 0..1 coordinates -> pixels of the image."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    return (x0 + local[0] * w, y0 + local[1] * h, x0 + local[2] * w, y0 + local[3] * h)


def image_to_view(box: Sequence[float], inside: Sequence[float]) -> tuple[float, ...]:
    """A box in pixels of the image -> the 0..1 coordinates of the view that shows `box`."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    return (
        (inside[0] - x0) / w,
        (inside[1] - y0) / h,
        (inside[2] - x0) / w,
        (inside[3] - y0) / h,
    )


def windows_of(grid: int, sizes: Sequence[int]) -> NDArray[np.int64]:
    """All square windows of the given sizes on a grid x grid map: [Nw,4] as row0, col0, row1, col1.

    Sizes larger than the grid are clipped to it; order is by size as given, then row-major.
    """
    table = []
    for size in dict.fromkeys(min(s, grid) for s in sizes):
        starts = range(grid - size + 1)
        table += [(r, c, r + size, c + size) for r in starts for c in starts]
    return np.array(table, np.int64)


def select_windows(
    relevance: F32, view_box: F32, psc: PscSettings, shares: F32 | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The window selection of `psc.onnx` in numpy: its readable specification and test oracle, and
    what chooses where a view shows pixels without data, of which the graph does not know.

    A window's score is its summed relevance over its side: the middle ground between the sum
    (which favours the largest window) and the mean (which favours the smallest).

    Args:
        relevance: f32[G,G] in 0..1, 0 where a patch lies outside the image.
        view_box: f32[4], the square that the map covers, in pixels.
        psc: window sizes, number of crops, overlap.
        shares: f32[G,G], the share of each patch that holds data (`patch_shares`), by which its
            relevance counts; a window without any is never chosen. None where all of it does.

    Returns:
        boxes f32[K,4] in pixels, scores f32[K]; -1 marks a box that exists only to fill K.
    """
    if shares is not None:
        relevance = relevance * shares
    grid = relevance.shape[0]
    windows = windows_of(grid, psc.windows)
    scores = _window_sums(relevance.astype(np.float32), windows)
    scores /= (windows[:, 2] - windows[:, 0]).astype(np.float32)
    if shares is not None:
        has_data = _window_sums((shares > 0).astype(np.int64), windows) > 0
        scores = np.where(has_data, np.maximum(scores, 0), np.float32(-1))
    cell = np.float32((view_box[2] - view_box[0]) / np.float32(grid))
    corners = windows[:, [1, 0, 3, 2]].astype(np.float32)  # x0,y0,x1,y1 in patches
    boxes, kept = [], []
    for _ in range(psc.max_crops):
        best = int(scores.argmax())
        boxes.append(view_box[[0, 1, 0, 1]] + corners[best] * cell)
        kept.append(scores[best])
        scores = np.where(iou_with(corners[best], corners) > psc.overlap, np.float32(-1), scores)
    return np.array(boxes, np.float32), np.array(kept, np.float32)


def _window_sums(patches: NDArray, windows: NDArray[np.int64]) -> NDArray:
    """Sums of a map [G,G] over square windows [Nw,4] -> [Nw]: rows, then columns, first to last.

    Nothing is taken away again, as from an integral image, so windows that are alike tie.
    """
    sums, sides = np.empty(len(windows), patches.dtype), windows[:, 2] - windows[:, 0]
    for side in np.unique(sides).tolist():
        starts = len(patches) - side + 1
        rows = np.zeros((starts, len(patches)), patches.dtype)
        every = np.zeros((starts, starts), patches.dtype)
        for i in range(side):
            rows += patches[i : i + starts]
        for i in range(side):
            every += rows[:, i : i + starts]
        own = sides == side
        sums[own] = every[windows[own, 0], windows[own, 1]]
    return sums
