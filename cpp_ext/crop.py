"""`psc_crop`: check the arguments, then run the compiled kernel or its numpy twin."""

import functools
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from geomag_edge.cores import usable_threads
from geomag_edge.errors import GeoMagWarning, InputError

from .checks import (
    checked_boxes,
    checked_image,
    checked_mean_std,
    checked_output_dtype,
    checked_size,
)
from .native import cpu_library, run_cpu
from .twin import psc_crop_numpy


def psc_crop(
    image: ArrayLike,
    boxes: ArrayLike,
    mean_std: ArrayLike,
    size: int,
    dtype: DTypeLike = "float32",
    threads: int | None = None,
) -> NDArray[Any]:
    """Cut windows out of an image and resample each to a normalised square view.

    Exactly Pillow's `Image.resize((S, S), BILINEAR, box=box)` in float precision, then
    `(x / 255 - mean) / std`, channels first. A box may stick out of the image: taps are cut at the
    edge and renormalised, and an output pixel whose centre is outside is 0 (the mean), so that a
    square box around a whole image gives the padded global view.

    Args:
        image: uint8 [H, W, 3]; any strides, read-only and memory-mapped arrays included, and never
            copied. RGB(A) and BGR(A) order, interleaved, is the fastest.
        boxes: float32 [K, 4], x0, y0, x1, y1 in pixels of the image, x0 < x1 and y0 < y1. K may
            be 0. Other real dtypes are converted.
        mean_std: float32 [2, 3], the channels' means and standard deviations in 0..1 units.
        size: side S of a view, in pixels.
        dtype: "float32" or "float16".
        threads: threads to use; None for all the CPUs this process may use, cut to its quota. The
            result does not depend on it.

    Returns:
        [K, 3, S, S] of `dtype`, in units of the standard deviation.

    Raises:
        ImageError: image of another dtype or shape, or without pixels.
        BoxError: boxes of another shape, not finite, empty or inverted.
        InputError: any other bad argument.
        KernelError: the compiled kernel is there and failed.

    The image must not change while the call runs: other threads may run meanwhile.
    """
    image = checked_image(image)
    boxes = checked_boxes(boxes)
    mean_std = checked_mean_std(mean_std)
    size = checked_size(size)
    dtype_name = checked_output_dtype(dtype)
    threads = _checked_threads(threads)
    library = cpu_library()
    if library is None:
        _warn_about_the_twin()
        with np.errstate(over="ignore"):  # float16 ends at 65504, as in the kernel
            return psc_crop_numpy(image, boxes, mean_std, size).astype(dtype_name, copy=False)
    out = np.empty((len(boxes), 3, size, size), dtype_name)
    run_cpu(library, image, boxes, mean_std, out, threads)
    return out


def _checked_threads(threads: Any) -> int:
    if threads is None:
        return usable_threads()
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1:
        raise InputError(f"threads is {threads!r}; expected a whole number >= 1, or None for all")
    return int(threads)


@functools.cache
def _warn_about_the_twin() -> None:
    warnings.warn(
        "PscCrop runs its slow numpy form: no compiled kernel was installed; reinstall "
        "geomag-edge where a C++17 compiler is found",
        GeoMagWarning,
        stacklevel=3,
    )
