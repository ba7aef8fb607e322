"""The readable twin of the kernels: PscCrop in a page of numpy.

It is the specification in code, the oracle of the tests, and what runs where no compiled kernel
is. Each axis of a window is a small dense matrix, so a view is `rows @ pixels @ columns.T`.
"""

import numpy as np
from numpy.typing import NDArray


def axis_weights(low: np.float32, high: np.float32, size: int, extent: int) -> NDArray[np.float64]:
    """Weights of one axis of one window, as Pillow's `resize(BILINEAR, box=...)` computes them.

    Args:
        low: where the window begins, in pixels of the image (pixel p covers [p, p + 1)).
        high: where it ends.
        size: output pixels S along this axis.
        extent: the image's width or height.

    Returns:
        float64 [S, extent]. A row sums to 1, or is all 0 where the output pixel's centre is
        outside the image.
    """
    # Pillow subtracts in float32 before it widens; so do we, or far pixels drift by 1e-4 px.
    scale = float(np.float32(high) - np.float32(low)) / size
    radius = max(scale, 1.0)
    centres = float(low) + (np.arange(size) + 0.5) * scale  # [S]
    inside = (centres >= 0) & (centres < extent)
    distance = np.abs(np.arange(extent) + 0.5 - centres[:, None]) / radius  # [S, extent]
    triangle = np.where(inside[:, None], np.maximum(0.0, 1.0 - distance), 0.0)
    total = triangle.sum(axis=1, keepdims=True)
    return triangle / np.where(inside[:, None], total, 1.0)


def psc_crop_numpy(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    mean_std: NDArray[np.float32],
    size: int,
) -> NDArray[np.float32]:
    """PscCrop on arguments that were checked already.

    Args:
        image: uint8 [H, W, 3], any strides.
        boxes: float32 [K, 4], x0, y0, x1, y1 in pixels of the image.
        mean_std: float32 [2, 3], mean and standard deviation of each channel in 0..1 units.
        size: side S of a view, in pixels.

    Returns:
        float32 [K, 3, S, S]: (x / 255 - mean) / std, and 0 outside the image.
    """
    height, width, _ = image.shape
    mean, std = mean_std.astype(np.float64)
    views = np.zeros((len(boxes), 3, size, size), np.float32)
    for view, (x0, y0, x1, y1) in zip(views, boxes, strict=True):
        rows, top, bottom = _support(axis_weights(y0, y1, size, height))  # [S, h]
        columns, left, right = _support(axis_weights(x0, x1, size, width))  # [S, w]
        inside = np.outer(rows.any(axis=1), columns.any(axis=1))  # [S, S]
        pixels = image[top:bottom, left:right].astype(np.float64)  # [h, w, 3]
        for channel in range(3):
            mixed = rows @ pixels[..., channel] @ columns.T  # [S, S]
            view[channel] = np.where(inside, (mixed / 255 - mean[channel]) / std[channel], 0.0)
    return views


def _support(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], int, int]:
    """Drop the input pixels that no output reads: (weights [S, n], first pixel, last + 1)."""
    used = np.flatnonzero(weights.any(axis=0))
    if not len(used):
        return weights[:, :0], 0, 0
    first, last = int(used[0]), int(used[-1]) + 1
    return weights[:, first:last], first, last
