"""The compiled CPU kernel: where it is, how it is called.

The library has a plain C ABI and no Python in it, so ctypes loads it and the interpreter lock is
released while it runs.
"""

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import InputError, KernelError

_i64 = ctypes.c_int64
_SIGNATURE: list[Any] = [
    *(ctypes.c_void_p, _i64, _i64, _i64, _i64, _i64),  # image: data, height, width, three strides
    *(ctypes.c_void_p, _i64),  # boxes, how many
    *(ctypes.c_void_p, _i64, ctypes.c_void_p, ctypes.c_int),  # mean_std, size, out, half
    *(ctypes.c_int, ctypes.c_char_p),  # threads, instruction set
]


@functools.cache
def cpu_library() -> ctypes.CDLL | None:
    """Load the compiled kernel; None where the install built none.

    Raises:
        KernelError: the file is there and cannot be loaded.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_psc_cpu{suffix}")
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
            except OSError as cause:
                raise KernelError(f"{path.name} cannot be loaded ({cause}); reinstall") from cause
            library.geomag_psc_crop_cpu.argtypes = _SIGNATURE
            library.geomag_psc_crop_cpu.restype = ctypes.c_int
            library.geomag_psc_simd.restype = ctypes.c_char_p
            library.geomag_psc_read.argtypes = [
                *(ctypes.c_void_p, _i64, _i64, _i64, ctypes.c_int, ctypes.c_int, _i64)
            ]
            library.geomag_psc_read.restype = ctypes.c_uint64
            return library
    return None


def cpu_instruction_set() -> str:
    """Name the loops in use here: "avx512", "avx2", "baseline" (SSE2, NEON) or "numpy"."""
    library = cpu_library()
    return "numpy" if library is None else library.geomag_psc_simd().decode()


def run_cpu(
    library: ctypes.CDLL,
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    mean_std: NDArray[np.float32],
    out: NDArray[np.float32] | NDArray[np.float16],
    threads: int,
    instruction_set: str | None = None,
) -> None:
    """Call the kernel on checked arguments; fills `out`, contiguous [K, 3, S, S].

    Raises:
        InputError: this CPU lacks the instruction set that was named.
        KernelError: out of memory, or arguments that the checks should have refused.
    """
    status = library.geomag_psc_crop_cpu(
        *(image.ctypes.data, *image.shape[:2], *image.strides),
        *(boxes.ctypes.data, len(boxes)),
        *(mean_std.ctypes.data, out.shape[-1], out.ctypes.data, out.dtype == np.float16),
        *(threads, None if instruction_set is None else instruction_set.encode()),
    )
    if status == 3:
        raise InputError(f"this CPU has no {instruction_set}; leave the choice to the kernel")
    if status:
        causes = {1: "bad argument", 2: "out of memory"}
        raise KernelError(f"the PscCrop kernel failed: {causes.get(status, status)}")


def read_window(
    library: ctypes.CDLL,
    image: NDArray[np.uint8],
    box: tuple[int, int, int, int],
    threads: int,
    rows_at_once: int = 1,
    ahead_bytes: int = 0,
) -> None:
    """Read every byte of a window and do nothing with it: the roofline of a crop.

    Args:
        library: what `cpu_library` returned.
        image: uint8 [H, W, 3], interleaved.
        box: x0, y0, x1, y1, whole pixels inside the image.
        threads: threads to use.
        rows_at_once: rows read side by side.
        ahead_bytes: how far ahead to prefetch in each row; 0 to leave it to the processor.
    """
    x0, y0, x1, y1 = box
    first = image.ctypes.data + y0 * image.strides[0] + 3 * x0
    shape = (y1 - y0, 3 * (x1 - x0), image.strides[0])
    library.geomag_psc_read(first, *shape, threads, rows_at_once, ahead_bytes)
