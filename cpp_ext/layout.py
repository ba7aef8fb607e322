"""What the device kernels take: memory layouts, and the arithmetic of a launch.

The constants repeat psc_block.h's; a test reads them out of the header and compares.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

from geomag_edge.errors import ImageError

BLOCK_THREADS = 128
TILE_ROWS = 8


def device_layout(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int, int, int, int]:
    """Describe an image [H, W, 3] to the CUDA kernel.

    Args:
        shape: H, W, 3.
        strides: bytes from row to row, pixel to pixel, channel to channel.

    Returns:
        height, width, and the three strides.

    Raises:
        ImageError: neither interleaved (RGB, BGR, RGBA, BGRA) nor planar.
    """
    height, width, _ = shape
    row, pixel, channel = strides
    interleaved = pixel in (3, 4) and channel in (1, -1)
    planar = pixel == 1
    if not (interleaved or planar):
        raise ImageError(
            f"a device image with strides {list(strides)} bytes is neither interleaved nor "
            "planar; make a contiguous copy on the device first"
        )
    return height, width, row, pixel, channel


def tile_columns(size: int) -> int:
    """Output columns a block: a view's columns in as few equal tiles as blocks can hold."""
    tiles = -(-size // BLOCK_THREADS)
    return -(-size // tiles)


def launch_grid(n_boxes: int, size: int) -> tuple[int, int]:
    """Blocks along x (windows times column tiles) and y (row tiles) of one launch."""
    return n_boxes * -(-size // tile_columns(size)), -(-size // TILE_ROWS)


def kernel_arguments(
    image: int,
    layout: tuple[int, int, int, int, int],
    boxes: int,
    mean_std: int,
    size: int,
    out: int,
) -> dict[str, Any]:
    """The CUDA kernel's arguments by name, in its order, as cuda.core takes them.

    Addresses are plain integers, everything else is a 64-bit ctypes integer.

    Args:
        image: device address of channel 0 of pixel (0, 0).
        layout: what `device_layout` returned.
        boxes: device address of the boxes.
        mean_std: device address of the means and deviations.
        size: side S of a view, in pixels.
        out: device address of the views.
    """
    height, width, row, pixel, channel = (ctypes.c_int64(value) for value in layout)
    return {
        "image": image,
        "height": height,
        "width": width,
        "row": row,
        "pixel": pixel,
        "channel": channel,
        "boxes": boxes,
        "mean_std": mean_std,
        "size": ctypes.c_int64(size),
        "tile_columns": ctypes.c_int64(tile_columns(size)),
        "out": out,
    }
