"""What CUDA itself says of this machine, asked of the driver's own library.

The library comes with the driver and its calls are C, so this needs no package, no nvidia-smi and
no CUDA toolkit, and says what an engine will meet in this process and container.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from geomag_edge.errors import InputError

LIBRARY = "libcuda.so.1"

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, of cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU as CUDA counts them.

    Attributes:
        name: CUDA's name of it, the one that engines see.
        sm: compute capability, such as "8.7".
        memory_gb: decimal.
        cuda: the newest CUDA that the driver knows, such as "12.6".
    """

    name: str
    sm: str
    memory_gb: float
    cuda: str


def use_gpu(index: int) -> None:
    """Makes one GPU the only one that this process and its children see, as CUDA itself offers it;
    to be called before anything starts CUDA.

    Args:
        index: as CUDA counts the GPUs that the process sees so far.

    Raises:
        InputError: the process is shown fewer.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if shown is None else [n.strip() for n in shown.split(",") if n.strip()]
    if names and "-1" in names:  # where CUDA stops reading
        names = names[: names.index("-1")]
    if names is not None and index >= len(names):
        raise InputError(
            f"--device-index {index}: CUDA_VISIBLE_DEVICES={shown} shows this process "
            f"{len(names)} GPUs, and the first is number 0"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = str(index) if names is None else names[index]


def ask_cuda() -> Gpu | str:
    """The first GPU, or in words why CUDA cannot be used here."""
    library = _library()
    if library is None:
        return f"there is no driver's library {LIBRARY}"
    if status := library.cuInit(0):
        return f"CUDA does not start ({_name(library, status)})"
    name = ctypes.create_string_buffer(256)
    number, memory = ctypes.c_int(), ctypes.c_size_t()
    sm = []
    calls = [
        lambda: library.cuDeviceGet(ctypes.byref(number), 0),
        lambda: library.cuDeviceGetName(name, len(name), number),
        lambda: library.cuDeviceTotalMem_v2(ctypes.byref(memory), number),
    ]
    for call in calls:
        if status := call():
            return f"CUDA does not say which GPU this is ({_name(library, status)})"
    for which in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if status := library.cuDeviceGetAttribute(ctypes.byref(value), which, number):
            return f"CUDA does not say which GPU this is ({_name(library, status)})"
        sm.append(str(value.value))
    text = name.value.decode("utf-8", "replace").strip()
    return Gpu(text, ".".join(sm), round(memory.value / 1e9, 1), driver_cuda(library) or "unknown")


def driver_cuda(library: Any = None) -> str | None:
    """The newest CUDA that the driver knows, such as "12.6"; None: there is no driver.

    Args:
        library: the driver's library where it is open already. Nothing is started in it.
    """
    library = library or _library()
    known = ctypes.c_int()
    if library is None or library.cuDriverGetVersion(ctypes.byref(known)):
        return None
    return f"{known.value // 1000}.{known.value % 1000 // 10}"


def newer_than_driver() -> str | None:
    """Why the installed cuda-bindings cannot work with this driver, in one line, or None.

    What NVRTC of a CUDA makes is not loaded by drivers of the CUDA before.
    """
    cuda = driver_cuda()
    try:
        bindings = version("cuda-bindings")
    except PackageNotFoundError:
        return None
    if cuda is None or int(bindings.split(".")[0]) <= int(cuda.split(".")[0]):
        return None
    major = cuda.split(".")[0]
    return (
        f"cuda-bindings {bindings} is newer than this driver, which knows CUDA {cuda}: pip install "
        f"'cuda-bindings=={major}.*' nvidia-cuda-nvrtc-cu{major}, or install a newer driver"
    )


def _library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def _name(library: Any, status: int) -> str:
    """A status in CUDA's own words, such as CUDA_ERROR_NO_DEVICE."""
    text = ctypes.c_char_p()
    if library.cuGetErrorName(status, ctypes.byref(text)) or text.value is None:
        return f"error {status}"
    return text.value.decode("ascii", "replace")
