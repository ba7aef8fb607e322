"""What is asked of CUDA, and CUDA itself through cuda-python.

State of proof: `CudaDriver` is written against the signatures of cuda-core 1.2 and cuda-bindings
13.5, is tested on a stand-in for both, and has never met a driver. `Driver` is small so that a
stand-in can take its place in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import EngineError, MissingExtraError
from geomag_edge.runtime.engines.cuda.owned import Allocated, Graph, PageLocked, PastThePool
from geomag_edge.runtime.engines.cuda.refusals import first_line, no_memory, refused, value_of
from geomag_edge.targets.cuda import newer_than_driver

if TYPE_CHECKING:
    from geomag_edge.runtime.engines.cuda.array import DeviceArray

U8 = NDArray[np.uint8]

SHARED_KEPT_BYTES = 64 << 20
"""What the device's pool may keep of memory that was freed where the host shares it; cuda-core lets
it keep all. A device with memory of its own loses nothing by that."""


class DeviceMemory(Protocol):
    """Device memory that is given back, in the order of the stream, when nothing refers to it."""

    pointer: int


class HostMemory(Protocol):
    """Page-locked host memory, mapped: `bytes` is how the host sees it, `pointer` the device."""

    bytes: U8
    pointer: int


class Driver(Protocol):
    """One device and one stream; all that is asked runs on the stream, in order.

    Any thread may call: each method makes the device current there first. What else puts work on
    the stream (TensorRT) needs `make_current` before it, once for each call from outside.

    Every method raises an EngineError of one line for what CUDA refuses.
    """

    name: str
    version: str
    device_id: int
    capability: tuple[int, int]
    integrated: bool
    stream: int

    def make_current(self) -> None:
        """Makes the device the calling thread's."""

    def allocate(self, n_bytes: int) -> DeviceMemory:
        """Memory aligned to 256 bytes at least."""

    def trim(self) -> None:
        """Gives memory that is free back to the system; what is freed still is after a `sync`."""

    def allocate_host(self, n_bytes: int) -> HostMemory:
        """Page-locked memory, which lives as long as anything refers to it."""

    def to_device(self, pointer: int, source: U8) -> None:
        """Copies bytes over. `source` stays as it is until the next `sync`, page-locked or not:
        where the device reads any of the host's memory, CUDA stages nothing."""

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
        """PscCrop of u8[H,W,3] into `views` [K,3,S,S], float32 or float16. Boxes may change at
        once."""

    def sync(self) -> None:
        """Waits until all is done.

        Raises:
            EngineError: something that was asked for earlier has failed.
        """

    def event(self) -> Any:
        """A mark in the stream, for timing."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks; waits for the later one."""

    def rehearse(self, work: Callable[[int], None]) -> None:
        """Does work on the stream that recordings are made on: after all that was asked before,
        and waits for it."""

    def capture(self, work: Callable[[int], None]) -> Any:
        """Records work, rehearsed before, without doing it.

        Returns:
            A graph to `replay`.

        Raises:
            EngineError: it cannot be recorded. Nothing is lost by that: it still can be done.
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
                "engines on an NVIDIA GPU need cuda-python: pip install 'geomag-edge[cuda]', or "
                "'geomag-edge[cuda12]' for a driver of CUDA 12"
            ) from e
        if reason := newer_than_driver():
            raise MissingExtraError(reason)
        self._core, self._driver = core, driver
        try:
            device = core.Device(device_id)
            device.set_current()
            self._context = value_of(driver.cuCtxGetCurrent(), "asking for the context")
            self._stream = device.create_stream()
            self._recording = device.create_stream()
            self._pool = device.memory_resource
            version = value_of(driver.cuDriverGetVersion(), "asking for the driver's version")
        except Exception as e:  # the bindings raise classes of several packages here
            raise EngineError(
                f"no usable NVIDIA driver and GPU here: {first_line(e)}; install the driver, or "
                "use --engine ort-cpu"
            ) from e
        self.device_id = int(device.device_id)
        self.name = str(device.name)
        self.version = f"{version // 1000}.{version % 1000 // 10}"
        capability = device.compute_capability
        self.capability = (int(capability.major), int(capability.minor))
        self.integrated = bool(device.properties.integrated)
        self.stream = int(self._stream.handle)
        self._module: Any = None
        self._kernels: dict[str, Any] = {}
        if self.integrated:
            self._keep_little()

    def _keep_little(self) -> None:
        """Lets the pool keep little of what is freed, once cuda-core has let it keep all."""
        pool = getattr(self._pool, "handle", None)  # a device without pools has none
        if pool is None:
            return
        threshold = self._driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        most = self._driver.cuuint64_t(SHARED_KEPT_BYTES)
        self._check(self._driver.cuMemPoolSetAttribute(pool, threshold, most), "setting the pool")

    def make_current(self) -> None:
        """See `Driver`."""
        self._check(self._driver.cuCtxSetCurrent(self._context), "making the GPU current")

    def allocate(self, n_bytes: int) -> DeviceMemory:
        """See `Driver`; from the device's stream-ordered pool where it has one, and past it where
        that refuses: on shared memory a pool may end long before the memory does."""
        self.make_current()
        n_bytes = max(n_bytes, 1)
        try:
            buffer = self._pool.allocate(n_bytes, stream=self._stream)
        except Exception as e:
            status, pointer = self._driver.cuMemAlloc(n_bytes)
            if int(status):
                raise no_memory(n_bytes, first_line(e)) from e
            return PastThePool(self, self._driver.cuMemFree, int(pointer))
        return Allocated(self, buffer)

    def trim(self) -> None:
        """See `Driver`."""
        self.make_current()
        pool = getattr(self._pool, "handle", None)
        if pool is not None:
            self._check(self._driver.cuMemPoolTrimTo(pool, 0), "giving memory back")

    def allocate_host(self, n_bytes: int) -> HostMemory:
        """See `Driver`."""
        self.make_current()
        return PageLocked(self, self._driver, max(n_bytes, 1))

    def to_device(self, pointer: int, source: U8) -> None:
        """See `Driver`."""
        self._copy(pointer, source.ctypes.data, source.nbytes, "copying to the device")

    def to_host(self, target: U8, pointer: int) -> None:
        """See `Driver`."""
        self._copy(target.ctypes.data, pointer, target.nbytes, "copying to the host")

    def on_device(self, target: int, source: int, n_bytes: int) -> None:
        """See `Driver`."""
        self._copy(target, source, n_bytes, "copying on the device")

    def _copy(self, target: int, source: int, n_bytes: int, doing: str) -> None:
        """By the addresses alone: on shared memory an array may be mapped memory of the host's,
        which the calls that name a direction do not promise to take."""
        self.make_current()
        self._check(self._driver.cuMemcpyAsync(target, source, n_bytes, self._stream.handle), doing)

    def clear(self, pointer: int, n_bytes: int) -> None:
        """See `Driver`."""
        self.make_current()
        self._check(
            self._driver.cuMemsetD8Async(pointer, 0, n_bytes, self._stream.handle),
            "clearing memory",
        )

    def launch(self, kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
        """See `Driver`; the kernels are compiled at first use."""
        self.make_current()
        if kernel not in self._kernels:
            self._kernels[kernel] = self._loaded(kernel)
        config = self._core.LaunchConfig(grid=blocks, block=threads)
        try:
            self._core.launch(self._stream, config, self._kernels[kernel], *arguments)
        except Exception as e:
            raise refused(f"launching {kernel}", first_line(e)) from e

    def _loaded(self, kernel: str) -> Any:
        from geomag_edge.runtime.engines.cuda.kernels import compiled

        if self._module is None:
            major, minor = self.capability
            self._module = self._core.ObjectCode.from_cubin(compiled(10 * major + minor))
        try:
            return self._module.get_kernel(kernel)
        except Exception as e:  # of a newer CUDA than the driver's, for one
            raise refused(f"loading {kernel}", first_line(e)) from e

    def crop(
        self,
        image: DeviceArray,
        boxes: NDArray[np.float32],
        mean_std: NDArray[np.float32],
        views: DeviceArray,
    ) -> None:
        """See `Driver`."""
        from geomag_edge.cpp_ext.checks import checked_boxes, checked_mean_std
        from geomag_edge.cpp_ext.cuda import psc_crop_cuda

        self.make_current()
        psc_crop_cuda(
            image,
            image.device.upload(checked_boxes(boxes), "boxes"),
            image.device.upload(checked_mean_std(mean_std), "mean_std"),
            views.shape[-1],
            views.dtype.name,
            out=views,
            stream=self._stream,
        )

    def sync(self) -> None:
        """See `Driver`."""
        self.make_current()
        self._wait(self._stream)

    def _wait(self, stream: Any) -> None:
        try:
            stream.sync()
        except Exception as e:
            raise EngineError(
                f"the GPU failed: {first_line(e)}; start the process again, and if it fails again "
                "use --engine ort-cpu"
            ) from e

    def event(self) -> Any:
        """See `Driver`."""
        self.make_current()
        try:
            return self._stream.record(options=self._core.EventOptions(timing_enabled=True))
        except Exception as e:
            raise refused("marking a time", first_line(e)) from e

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See `Driver`."""
        self.make_current()
        self._wait(end)
        return float(end - start)

    def rehearse(self, work: Callable[[int], None]) -> None:
        """See `Driver`."""
        self.sync()
        try:
            work(int(self._recording.handle))
        finally:
            self._wait(self._recording)

    def capture(self, work: Callable[[int], None]) -> Any:
        """See `Driver`.

        On a stream of its own, so that memory which happens to be freed meanwhile does not become
        part of the graph. Other threads may go on using CUDA.
        """
        self.make_current()
        driver, stream = self._driver, self._recording.handle
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._check(driver.cuStreamBeginCapture(stream, mode), "starting a CUDA graph")
        try:
            work(int(stream))
        except BaseException:
            status, graph = driver.cuStreamEndCapture(stream)  # else nothing runs there any more
            if not int(status):
                driver.cuGraphDestroy(graph)
            raise
        graph = value_of(driver.cuStreamEndCapture(stream), "recording a CUDA graph")
        try:
            handle = value_of(driver.cuGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        finally:
            driver.cuGraphDestroy(graph)
        return Graph(self, driver, handle)

    def replay(self, graph: Any) -> None:
        """See `Driver`."""
        self.make_current()
        self._check(
            self._driver.cuGraphLaunch(graph.handle, self._stream.handle), "launching a CUDA graph"
        )

    def free_bytes(self) -> int:
        """See `Driver`."""
        self.make_current()
        status, free, _ = self._driver.cuMemGetInfo()
        self._check((status,), "asking for free memory")
        return int(free)

    def interface(self, value: Any) -> tuple[int, tuple[int, ...], np.dtype[Any], bool] | None:
        """See `Driver`; by DLPack or the CUDA Array Interface, whose stream is waited for."""
        from cuda.core.utils import StridedMemoryView

        if not (hasattr(value, "__cuda_array_interface__") or hasattr(value, "__dlpack__")):
            return None
        self.make_current()
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
        value_of((*result, None), doing)
