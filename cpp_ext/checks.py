"""What PscCrop accepts: one place that turns arguments into arrays the kernels can trust.

Every refusal is one line that says what was given, what was expected and what to do.
"""

from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import BoxError, ImageError, InputError

_FARTHEST = 1e38  # px; float32 ends at 3.4e38
OUTPUT_DTYPES = ("float32", "float16")


def checked_image(image: Any) -> NDArray[np.uint8]:
    """Return `image` as uint8 [H, W, 3] without copying it.

    Raises:
        ImageError: not uint8, not [H, W, 3], or without pixels.
    """
    array = np.asanyarray(image)
    if array.dtype != np.uint8:
        raise ImageError(f"image has dtype {array.dtype}; expected uint8: scale to 0..255 first")
    if array.ndim != 3 or array.shape[2] != 3:
        hint = ""
        if array.ndim == 3 and array.shape[0] == 3:
            hint = "; for channels first pass image.transpose(1, 2, 0), a view"
        elif array.ndim == 3 and array.shape[2] > 3:
            hint = "; choose three bands, for example image[..., :3]"
        raise ImageError(f"image has shape {list(array.shape)}; expected [H, W, 3]{hint}")
    if 0 in array.shape:
        raise ImageError(f"image has shape {list(array.shape)}, so no pixels")
    return array


def checked_boxes(boxes: Any) -> NDArray[np.float32]:
    """Return `boxes` as contiguous float32 [K, 4].

    Raises:
        BoxError: not numbers, not [K, 4], not finite, empty or inverted; names the first bad box.
    """
    array = _as_float32(boxes, "boxes", BoxError)
    if array.ndim != 2 or array.shape[1] != 4:
        raise BoxError(
            f"boxes have shape {list(array.shape)}; expected [K, 4]: x0, y0, x1, y1 in pixels"
        )
    # Not NaN, and no farther out than lets a side be finite in float32, as the kernels compute it.
    near = np.abs(array) < _FARTHEST
    if not near.all():
        raise BoxError(_first_bad(array, ~near.all(axis=1), "is not finite or beyond 1e38 px"))
    sides = array[:, 2:] - array[:, :2]  # [K, 2], float32
    if (sides > 0).all():
        return array
    if (sides < 0).any():
        raise BoxError(_first_bad(array, (sides < 0).any(axis=1), "is inverted; x0<x1, y0<y1"))
    reason = "is empty (in float32); it needs x0 < x1 and y0 < y1"
    raise BoxError(_first_bad(array, (sides == 0).any(axis=1), reason))


def checked_mean_std(mean_std: Any) -> NDArray[np.float32]:
    """Return `mean_std` as contiguous float32 [2, 3].

    Raises:
        InputError: not numbers, not [2, 3], not finite, or a deviation that is not positive.
    """
    array = _as_float32(mean_std, "mean_std", InputError)
    if array.shape != (2, 3):
        raise InputError(
            f"mean_std has shape {list(array.shape)}; expected [2, 3]: means, then deviations"
        )
    numbers = array.ravel().tolist()  # six numbers: plain Python is quicker than numpy
    if not all(map(isfinite, numbers)):
        raise InputError("mean_std is not finite; expected means and deviations in 0..1 units")
    if min(numbers[3:]) <= 0:
        raise InputError(f"mean_std has deviations {numbers[3:]}; they must be positive")
    return array


def checked_size(size: Any) -> int:
    """Return `size` as an int of at least 1.

    Raises:
        InputError: not a whole number, or less than 1.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise InputError(f"size is {size!r}; expected the side of a view, a whole number >= 1")
    return int(size)


def checked_output_dtype(dtype: Any) -> str:
    """Return "float32" or "float16".

    Raises:
        InputError: any other dtype.
    """
    if isinstance(dtype, str) and dtype in OUTPUT_DTYPES:
        return dtype
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in OUTPUT_DTYPES:
        raise InputError(f"dtype is {name}; expected one of {', '.join(OUTPUT_DTYPES)}")
    return name


def _as_float32(value: Any, name: str, error: type[InputError]) -> NDArray[np.float32]:
    try:
        array = np.asarray(value)
    except ValueError as cause:
        raise error(f"{name} is not a rectangular array: {cause}") from cause
    if array.dtype.kind not in "fiu":
        raise error(f"{name} has dtype {array.dtype}; expected float32")
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        return np.ascontiguousarray(array, np.float32)


def _first_bad(boxes: NDArray[np.float32], bad: Any, reason: str) -> str:
    index = int(np.flatnonzero(bad)[0])
    return f"box {index} {[float(side) for side in boxes[index]]} {reason}"
