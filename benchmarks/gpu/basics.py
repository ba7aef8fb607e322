"""From the driver to the runtime's small kernels: what everything else on a GPU stands on."""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import numpy as np

from geomag_edge.benchmarks.gpu.outcome import NotHere
from geomag_edge.cpp_ext import cuda_image, nvrtc
from geomag_edge.printing import one_line
from geomag_edge.runtime.engines.cuda import kernels
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.driver import CudaDriver

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""
ATTRIBUTES = {"sm_major": 75, "sm_minor": 76, "integrated": 18, "multiprocessors": 16}
"""CUdevice_attribute by CUDA's own numbers."""
COPIED_BYTES = 1 << 22


def driver() -> dict[str, Any]:
    """The driver's library, asked without any package: its CUDA version and the GPUs it sees.

    Raises:
        NotHere: no driver, or no GPU that it may use.
    """
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError as e:
        raise NotHere(
            f"no NVIDIA driver here ({one_line(str(e), 120)}); install the driver, or start the "
            "container with --gpus all (on a Jetson --runtime nvidia)"
        ) from e
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    status = cuda.cuInit(0)
    if status == 0:
        status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        raise NotHere(
            f"the NVIDIA driver finds no GPU (CUDA error {status or NO_DEVICE}); is "
            "CUDA_VISIBLE_DEVICES empty, may this user open /dev/nvidia* (on a Jetson: groups "
            "video and render), does dmesg say more?"
        )
    return {
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "gpus": [_gpu(cuda, number) for number in range(count.value)],
    }


def _gpu(cuda: Any, number: int) -> dict[str, Any]:
    device, name, total = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    found = {}
    for key, attribute in ATTRIBUTES.items():
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found[key] = value.value
    return {
        "name": name.value.decode(errors="replace"),
        "sm": f"{found['sm_major']}.{found['sm_minor']}",
        "integrated": bool(found["integrated"]),
        "multiprocessors": found["multiprocessors"],
        "memory_bytes": total.value,
    }


def opened() -> Device:
    """The first GPU, by the runtime's own device layer.

    Raises:
        MissingExtraError, EngineError: see `CudaDriver`.
    """
    return Device(CudaDriver())


def memory(device: Device) -> dict[str, Any]:
    """Bytes that go up and come back, and how much memory is free."""
    sent = np.random.default_rng(3).integers(0, 256, COPIED_BYTES, dtype=np.uint8)
    got = device.upload(sent, "x").numpy("x")
    right = np.array_equal(sent, got)
    return {
        "ok": right,
        "wrong": None if right else "bytes that were copied to the GPU and back are others",
        "gpu": device.driver.name,
        "compute_capability": "{}.{}".format(*device.driver.capability),
        "integrated": device.driver.integrated,
        "cuda_of_driver": device.driver.version,
        "free_bytes": device.driver.free_bytes(),
    }


def compiled(device: Device) -> dict[str, Any]:
    """The kernels' machine code for this GPU: what compiles it, and how long that took, or how
    long it took to find what was kept."""
    major, minor = device.driver.capability
    seconds = {}
    for name, make in (("crop", cuda_image.compile_cubin), ("small", kernels.compiled)):
        start = time.perf_counter()
        make(10 * major + minor)
        seconds[name] = round(time.perf_counter() - start, 3)
    return {"compiler": nvrtc.compiler(), "seconds_by_file": seconds}


def small_kernels(device: Device) -> dict[str, Any]:
    """Casts and the likeliest token on the GPU, beside numpy's."""
    rng = np.random.default_rng(5)
    wide = (rng.normal(size=5001) * 1000).astype(np.float32)
    wrong = []
    half = device.cast(device.upload(wide, "x"), np.float16)
    if not np.array_equal(half.numpy("half"), wide.astype(np.float16)):
        wrong.append("float32 to float16")
    if not np.array_equal(
        device.cast(half, np.float32).numpy("wide"), wide.astype(np.float16).astype(np.float32)
    ):
        wrong.append("float16 to float32")
    for dtype in (np.float32, np.float16):
        logits = rng.integers(0, 3, (1, 1, 151_936)).astype(dtype)  # ties: the first one wins
        token = int(device.argmax(device.upload(logits, "logits")).numpy("token").ravel()[0])
        if token != int(logits.argmax()):
            wrong.append(f"the likeliest token of {np.dtype(dtype).name}")
    return {"ok": not wrong, "wrong": f"{', '.join(wrong)} is not numpy's" if wrong else None}
