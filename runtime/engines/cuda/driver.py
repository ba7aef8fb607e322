"""What is asked of CUDA, and CUDA itself through cuda-python.

State of proof: `CudaDriver` is written against the signatures of cuda-core 1.2 and cuda-bindings
13.5 and has never met a driver. `Driver` is small so that a stand-in can take its place in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import EngineError, MissingExtraError
from geomag_edge.targets.cuda import newer_than_driver

if TYPE_CHECKING:
    from geomag_edge.runtime.engines.cuda.array import DeviceArray

U8 = NDArray[np.uint8]


class DeviceMemory(Protocol):
    """Device memory that is given back, in the order of the stream, when nothing refers to it."""

    pointer: int


class HostMemory(Protocol):
    """Page-locked host memory, mapped: `bytes` is how the host sees it, `pointer` the device."""

    bytes: U8
    pointer: int


class Driver(Protocol):
    """One device and one stream; all that is asked runs on the stream, in order."""

    name: str
    version: str
    device_id: int
    capability: tuple[int, int]
    integrated: bool
    stream: int

    def allocate(self, n_bytes: int) -> DeviceMemory:
        """Memory aligned to 256 bytes at least."""

    def allocate_host(self, n_bytes: int) -> HostMemory:
        """Page-locked memory, which lives as long as anything refers to it."""

    def to_device(self, pointer: int, source: U8, pinned: bool) -> None:
        """Copies bytes over. `source` may change at once, unless it is `pinned`: then only after
        the next `sync`."""

    def to_host(self, target: U8, pointer: int) -> None:
        """Copies bytes back into page-locked memory; they are there after the next `sync`."""

    def on_device(self, target: int, source: int, n_bytes: int) -> None:
        """Copies within the device."""

    def clear(self, pointer: int, n_bytes: int) -> None:
        """Fills device memory with zeros."""

    def launch(self, kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
        """Launches one of `kernels`; addresses are ints, everything else a ctypes integer."""

    def crop(
        self,
        image: DeviceArray,
        boxes: NDArray[np.float32],
        mean_std: NDArray[np.float32],
        views: DeviceArray,
    ) -> None:
        """PscCrop of u8[H,W,3] into `views` [K,3,S,S], float32 or float16."""

    def sync(self) -> None:
        """Waits until all is done.

        Raises:
            EngineError: something that was asked for earlier has failed.
        """

    def event(self) -> Any:
        """A mark in the stream, for timing."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks; waits for the later one."""

    def capture(self, record: Callable[[int], None]) -> Any:
        """Records what `record` puts on the stream that it is given, without doing it.

        Returns:
            A graph to `replay`.
        """

    def replay(self, graph: Any) -> None:
        """Does what was recorded, at the addresses that it was recorded with."""

    def free_bytes(self) -> int:
        """Device memory that is free."""

    def interface(self, value: Any) -> tuple[int, tuple[int, ...], np.dtype[Any], bool] | None:
        """Pointer, shape, type and whether contiguous of an array in device memory, else None."""


class CudaDriver:
    """CUDA through cuda.core and the driver's bindings.

    Args:
        device_id: the device's number.

    Raises:
        MissingExtraError: cuda-python is not installed.
        EngineError: no driver, or no such device.
    """

    def __init__(self, device_id: int = 0) -> None:
        try:
            from cuda import core
            from cuda.bindings import driver
        except ImportError as e:
            raise MissingExtraError(
                "engines on an NVIDIA GPU need cuda-python: pip install 'cuda-core[cu13]' "
                "nvidia-cuda-nvrtc, or 'cuda-core[cu12]' nvidia-cuda-nvrtc-cu12 for a driver of "
                "CUDA 12"
            ) from e
        if reason := newer_than_driver():
            raise MissingExtraError(reason)
        self._core, self._driver = core, driver
        try:
            device = core.Device(device_id)
            device.set_current()
            self._stream = device.create_stream()
            version = _value(driver.cuDriverGetVersion(), "asking for the driver's version")
        except Exception as e:  # the bindings raise classes of several packages here
            raise EngineError(
                f"no usable NVIDIA driver and GPU here: {first_line(e)}; install the driver, or "
                "use --engine ort-cpu"
            ) from e
        self._device = device
        self.device_id = int(device.device_id)
        self.name = str(device.name)
        self.version = f"{version // 1000}.{version % 1000 // 10}"
        capability = device.compute_capability
        self.capability = (int(capability.major), int(capability.minor))
        self.integrated = bool(device.properties.integrated)
        self.stream = int(self._stream.handle)
        self._recording: Any = None
        self._module: Any = None
        self._kernels: dict[str, Any] = {}

    def allocate(self, n_bytes: int) -> DeviceMemory:
        """See `Driver`; from the device's stream-ordered pool where it has one."""
        try:
            buffer = self._device.allocate(max(n_bytes, 1), stream=self._stream)
        except Exception as e:
            raise EngineError(
                f"the GPU has no {n_bytes / 1e6:.0f} MB left: {first_line(e)}; use a smaller "
                "budget or precision, or close what else runs on it"
            ) from e
        return _Allocated(buffer)

    def allocate_host(self, n_bytes: int) -> HostMemory:
        """See `Driver`."""
        return _PageLocked(self._driver, max(n_bytes, 1))

    def to_device(self, pointer: int, source: U8, pinned: bool) -> None:
        """See `Driver`; CUDA stages pageable memory before the call returns."""
        self._check(
            self._driver.cuMemcpyHtoDAsync(
                pointer, source.ctypes.data, source.nbytes, self._stream.handle
            ),
            "copying to the device",
        )

    def to_host(self, target: U8, pointer: int) -> None:
        """See `Driver`."""
        self._check(
            self._driver.cuMemcpyDtoHAsync(
                target.ctypes.data, pointer, target.nbytes, self._stream.handle
            ),
            "copying to the host",
        )

    def on_device(self, target: int, source: int, n_bytes: int) -> None:
        """See `Driver`."""
        self._check(
            self._driver.cuMemcpyDtoDAsync(target, source, n_bytes, self._stream.handle),
            "copying on the device",
        )

    def clear(self, pointer: int, n_bytes: int) -> None:
        """See `Driver`."""
        self._check(
            self._driver.cuMemsetD8Async(pointer, 0, n_bytes, self._stream.handle),
            "clearing memory",
        )

    def launch(self, kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
        """See `Driver`; the kernels are compiled at first use."""
        if kernel not in self._kernels:
            self._kernels[kernel] = self._compiled().get_kernel(kernel)
        config = self._core.LaunchConfig(grid=blocks, block=threads)
        self._core.launch(self._stream, config, self._kernels[kernel], *arguments)

    def _compiled(self) -> Any:
        from geomag_edge.runtime.engines.cuda.kernels import source

        if self._module is None:
            major, minor = self.capability
            options = self._core.ProgramOptions(std="c++17", arch=f"sm_{major}{minor}")
            try:
                program = self._core.Program(source(), "c++", options)
                self._module = program.compile("cubin")
            except Exception as e:
                raise MissingExtraError(
                    f"cannot compile the runtime's CUDA kernels: {first_line(e)}; they need "
                    "NVRTC: pip install nvidia-cuda-nvrtc (nvidia-cuda-nvrtc-cu12 for CUDA 12)"
                ) from e
        return self._module

    def crop(
        self,
        image: DeviceArray,
        boxes: NDArray[np.float32],
        mean_std: NDArray[np.float32],
        views: DeviceArray,
    ) -> None:
        """See `Driver`."""
        from geomag_edge.cpp_ext.cuda import psc_crop_cuda

        psc_crop_cuda(
            image,
            boxes,
            mean_std,
            views.shape[-1],
            views.dtype.name,
            out=views,
            stream=self._stream,
        )

    def sync(self) -> None:
        """See `Driver`."""
        try:
            self._stream.sync()
        except Exception as e:
            raise EngineError(f"the GPU failed: {first_line(e)}") from e

    def event(self) -> Any:
        """See `Driver`."""
        return self._stream.record(options=self._core.EventOptions(timing_enabled=True))

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See `Driver`."""
        end.sync()
        return float(end - start)

    def capture(self, record: Callable[[int], None]) -> Any:
        """See `Driver`.

        On a stream of its own, so that memory which happens to be freed meanwhile does not become
        part of the graph. Other threads may go on using CUDA.
        """
        driver = self._driver
        if self._recording is None:
            self._recording = self._device.create_stream()
        stream = self._recording.handle
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._check(driver.cuStreamBeginCapture(stream, mode), "starting a CUDA graph")
        try:
            record(int(stream))
        except BaseException:
            driver.cuStreamEndCapture(stream)
            raise
        graph = _value(driver.cuStreamEndCapture(stream), "recording a CUDA graph")
        try:
            handle = _value(driver.cuGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        finally:
            driver.cuGraphDestroy(graph)
        return _Graph(driver, handle)

    def replay(self, graph: Any) -> None:
        """See `Driver`."""
        self._check(
            self._driver.cuGraphLaunch(graph.handle, self._stream.handle), "launching a CUDA graph"
        )

    def free_bytes(self) -> int:
        """See `Driver`."""
        status, free, _ = self._driver.cuMemGetInfo()
        self._check((status,), "asking for free memory")
        return int(free)

    def interface(self, value: Any) -> tuple[int, tuple[int, ...], np.dtype[Any], bool] | None:
        """See `Driver`; by DLPack or the CUDA Array Interface, whose stream is waited for."""
        from cuda.core.utils import StridedMemoryView

        if not (hasattr(value, "__cuda_array_interface__") or hasattr(value, "__dlpack__")):
            return None
        view = StridedMemoryView.from_any_interface(value, stream_ptr=self.stream)
        if not view.is_device_accessible:
            return None
        shape, expected, contiguous = tuple(int(n) for n in view.shape), 1, True
        if view.strides is not None:  # in elements
            for length, stride in zip(reversed(shape), reversed(view.strides), strict=True):
                contiguous &= length <= 1 or stride == expected
                expected *= length
        return int(view.ptr), shape, np.dtype(view.dtype), contiguous

    def _check(self, result: tuple[Any, ...], doing: str) -> None:
        _value((*result, None), doing)


class _Allocated:
    """A cuda.core buffer; it frees itself in its stream's order when it goes."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.pointer = int(buffer.handle)


class _PageLocked:
    """Memory of cuMemHostAlloc."""

    def __init__(self, driver: Any, n_bytes: int) -> None:
        import ctypes

        self._free = driver.cuMemFreeHost
        self._address = int(
            _value(
                driver.cuMemHostAlloc(n_bytes, driver.CU_MEMHOSTALLOC_DEVICEMAP),
                "allocating page-locked memory",
            )
        )
        self.pointer = int(
            _value(driver.cuMemHostGetDevicePointer(self._address, 0), "mapping host memory")
        )
        view = (ctypes.c_uint8 * n_bytes).from_address(self._address)
        self.bytes: U8 = np.ctypeslib.as_array(view)

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._free(self._address)


class _Graph:
    """An instantiated CUDA graph."""

    def __init__(self, driver: Any, handle: Any) -> None:
        self._destroy, self.handle = driver.cuGraphExecDestroy, handle

    def __del__(self) -> None:
        self._destroy(self.handle)


def _value(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a call of the bindings, which return (status, value)."""
    status, value = result
    if int(status):
        raise EngineError(f"{doing} failed: {getattr(status, 'name', status)}")
    return value


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
