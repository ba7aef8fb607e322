"""PscCrop on an NVIDIA GPU, through cuda-python (cuda.core): one launch makes every view.

The image stays where it is: anything with DLPack or the CUDA Array Interface is taken without a
copy (torch, CuPy, pycuda's GPUArray), and so is the result. Importing this module needs no GPU and
no cuda-python; calling it does, and says so in one line.

State of proof: the kernel's body is tested on the CPU (threads and a barrier in place of a block)
and its code compiles for every architecture named in `cuda_image`. It has never run on a GPU, and
this launcher has never met a driver.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from geomag_edge.errors import BoxError, ImageError, InputError, KernelError, MissingExtraError

from .checks import checked_boxes, checked_mean_std, checked_output_dtype, checked_size
from .cuda_image import compile_cubin, find_fatbin
from .layout import BLOCK_THREADS, device_layout, kernel_arguments, launch_grid

_KERNELS = {"float32": "geomag_psc_crop_f32", "float16": "geomag_psc_crop_f16"}
_CHECKS = {"boxes": (checked_boxes, BoxError), "mean_std": (checked_mean_std, InputError)}


class DeviceViews:
    """Views in device memory: [K, 3, S, S], C order, with the CUDA Array Interface.

    `torch.as_tensor(views, device="cuda")` and `cupy.asarray(views)` read it without a copy. The
    memory is freed with this object, in the order of the stream that made it.
    """

    def __init__(self, buffer: Any, shape: tuple[int, ...], dtype: str, stream: Any) -> None:
        self._buffer = buffer
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": self.dtype.str,
            "data": (int(buffer.handle), False),
            "strides": None,
            "version": 3,
            # 0 is not allowed there: 1 names the legacy default stream.
            "stream": int(stream.handle) or 1,
        }


def psc_crop_cuda(
    image: Any,
    boxes: Any,
    mean_std: Any,
    size: int,
    dtype: str = "float32",
    *,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Cut windows out of an image in device memory, in one launch on the caller's stream.

    Args:
        image: uint8 [H, W, 3] in device memory, with DLPack or the CUDA Array Interface;
            interleaved (RGB, BGR, RGBA, BGRA; rows of any pitch) or planar.
        boxes: float32 [K, 4], x0, y0, x1, y1 in pixels. A host array is checked and copied; a
            device array must be contiguous and is not checked, since that would stop the stream:
            a bad box there gives a view of NaN.
        mean_std: float32 [2, 3] in 0..1 units, on the host or (contiguous) on the device.
        size: side S of a view, in pixels.
        dtype: "float32" or "float16".
        out: contiguous device array [K, 3, S, S] of `dtype` to fill; None to allocate.
        stream: where to launch: a cuda.core or torch stream, anything with `__cuda_stream__`, or a
            handle as an int; None for the device's default stream. Nothing is waited for, unless
            boxes are on the host and the device reads all of its memory (Thor, GH200).

    Returns:
        `out`, or a new `DeviceViews`.

    Raises:
        MissingExtraError: cuda-core is not installed.
        KernelError: no driver, no device, or the kernel cannot be loaded.
        ImageError, BoxError, InputError: a bad argument.
    """
    size = checked_size(size)
    dtype_name = checked_output_dtype(dtype)
    core, _ = _cuda()
    device = _current_device(core)
    queue = _stream(core, device, stream)

    picture = _picture(image, queue)
    layout = device_layout(picture.shape, _byte_strides(picture))
    windows = _small(boxes, "boxes", device, queue)
    if len(windows.shape) != 2 or windows.shape[1] != 4:
        raise BoxError(f"boxes have shape {list(windows.shape)}; expected [K, 4]")
    scaling = _small(mean_std, "mean_std", device, queue)
    if scaling.shape != (2, 3):
        raise InputError(f"mean_std has shape {list(scaling.shape)}; expected [2, 3]")
    n_boxes = windows.shape[0]
    views, address = _output(out, (n_boxes, 3, size, size), dtype_name, device, queue)

    if n_boxes:
        arguments = kernel_arguments(
            int(picture.ptr), layout, windows.address, scaling.address, size, address
        )
        config = core.LaunchConfig(grid=launch_grid(n_boxes, size), block=BLOCK_THREADS)
        kernel = _kernel(int(device.device_id), _KERNELS[dtype_name])
        core.launch(queue, config, kernel, *arguments.values())
    for copied in (windows, scaling):
        if copied.buffer is not None:
            copied.buffer.close(queue)
    sources = [copied.source for copied in (windows, scaling) if copied.source is not None]
    if sources and device.properties.pageable_memory_access:
        queue.sync()  # such a device may read them where they are, at any time until now
    return views


def _picture(image: Any, queue: Any) -> Any:
    """The image's pointer, shape and strides; uint8 [H, W, 3] in device memory, or ImageError."""
    picture = _view(image, queue)
    if picture is None:
        raise ImageError("image is not in device memory; use geomag_edge.cpp_ext.psc_crop on hosts")
    if picture.dtype != np.uint8 or len(picture.shape) != 3 or picture.shape[2] != 3:
        raise ImageError(
            f"image is {picture.dtype} {list(picture.shape)}; expected uint8 [H, W, 3]"
        )
    if 0 in picture.shape:
        raise ImageError(f"image has shape {list(picture.shape)}, so no pixels")
    return picture


@dataclass(frozen=True)
class _Small:
    """A small input in device memory; if it was copied there, `buffer` is to be closed, and
    `source` on the host to be kept until that is done."""

    address: int
    shape: tuple[int, ...]
    buffer: Any = None
    source: Any = None


def _small(value: Any, name: str, device: Any, queue: Any) -> _Small:
    """The boxes or the mean_std, copied over if they are on the host."""
    check, error = _CHECKS[name]
    view = _view(value, queue)
    if view is None:
        checked = check(value)
        buffer = device.allocate(max(checked.nbytes, 1), stream=queue)
        _, driver = _cuda()
        # Staged before the call returns, unless the device reads pageable memory itself.
        (status,) = driver.cuMemcpyHtoDAsync(
            int(buffer.handle), checked.ctypes.data, checked.nbytes, int(queue.handle)
        )
        if int(status):
            raise KernelError(f"copying {name} to the device failed: {status}")
        return _Small(int(buffer.handle), checked.shape, buffer, checked)
    if view.dtype != np.float32 or not _is_contiguous(view):
        raise error(f"{name} on the device must be contiguous float32, not {view.dtype}")
    return _Small(int(view.ptr), tuple(view.shape))


def _output(
    out: Any, shape: tuple[int, ...], dtype: str, device: Any, queue: Any
) -> tuple[Any, int]:
    """The caller's `out`, or new views, and where they begin."""
    if out is None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = device.allocate(max(size, 1), stream=queue)
        return DeviceViews(buffer, shape, dtype, queue), int(buffer.handle)
    target = _view(out, queue)
    if target is None or tuple(target.shape) != shape or target.dtype != np.dtype(dtype):
        raise InputError(f"out must be {dtype} {list(shape)} in device memory")
    if not _is_contiguous(target):
        raise InputError("out must be contiguous")
    return out, int(target.ptr)


def _cuda() -> tuple[Any, Any]:
    """cuda.core and the driver bindings."""
    try:
        from cuda import core
        from cuda.bindings import driver
    except ImportError as cause:
        raise MissingExtraError(
            "PscCrop on CUDA needs cuda-core: pip install 'cuda-core[cu13]' (or [cu12])"
        ) from cause
    return core, driver


def _current_device(core: Any) -> Any:
    try:
        device = core.Device()
        device.set_current()
    except Exception as cause:  # the bindings raise classes of several packages here
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise KernelError(f"no usable CUDA driver and device here: {first}") from cause
    return device


def _stream(core: Any, device: Any, stream: Any) -> Any:
    if stream is None:
        return device.default_stream
    if isinstance(stream, core.Stream):
        return stream
    if isinstance(stream, int):
        return core.Stream.from_handle(stream)
    if hasattr(stream, "__cuda_stream__"):
        return core.Stream.from_handle(int(stream.__cuda_stream__()[1]))
    if hasattr(stream, "cuda_stream"):  # torch
        return core.Stream.from_handle(int(stream.cuda_stream))
    raise InputError(f"stream is {type(stream).__name__}; expected a CUDA stream or its handle")


def _view(value: Any, queue: Any) -> Any:
    """The array's pointer, shape and strides if it is in device memory, else None."""
    from cuda.core.utils import StridedMemoryView

    if not (hasattr(value, "__cuda_array_interface__") or hasattr(value, "__dlpack__")):
        return None
    if isinstance(value, np.ndarray):
        return None
    view = StridedMemoryView(value, stream_ptr=int(queue.handle))
    return view if view.is_device_accessible else None


def _byte_strides(view: Any) -> tuple[int, ...]:
    if view.strides is None:
        return (3 * view.shape[1], 3, 1)
    return tuple(int(stride) for stride in view.strides)  # uint8: elements are bytes


def _is_contiguous(view: Any) -> bool:
    if view.strides is None:
        return True
    expected = 1
    for length, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


@functools.cache
def _kernel(device_id: int, name: str) -> Any:
    """The loaded kernel: from the fat binary if one was built, else compiled here and now."""
    from cuda.bindings import driver
    from cuda.core import Device, ObjectCode

    status, version = driver.cuDriverGetVersion()  # 13020 for CUDA 13.2
    fatbin = None if int(status) else find_fatbin(version // 1000)
    if fatbin is not None:
        code = ObjectCode.from_fatbin(str(fatbin))
    else:
        capability = Device(device_id).compute_capability
        code = ObjectCode.from_cubin(compile_cubin(10 * capability.major + capability.minor))
    try:
        return code.get_kernel(name)
    except Exception as cause:  # of a newer CUDA than the driver's, for one
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise KernelError(f"the driver does not load {name}: {first}") from cause
