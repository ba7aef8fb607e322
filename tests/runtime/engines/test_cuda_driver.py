"""`CudaDriver` on a stand-in for cuda-python, whose every call needs a current context and may be
made to fail; names and numbers of arguments are held against the real bindings, where installed.
"""

import ctypes
import gc
import re
import sys
import threading
import types

import numpy as np
import pytest

from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.cuda import kernels
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.driver import SHARED_KEPT_BYTES, CudaDriver

MAIN, RECORDING = 11, 12


class Status(int):
    """As the bindings' CUresult: a number with a name."""

    def __new__(cls, name=None):
        made = super().__new__(cls, name is not None)
        made.name = name or "CUDA_SUCCESS"
        return made


class CudaError(Exception):
    """What cuda.core raises."""


VALUES = {
    "cuCtxGetCurrent": ("context",), "cuDriverGetVersion": (13020,), "cuMemGetInfo": (5, 9),
    "cuStreamEndCapture": ("graph",), "cuGraphInstantiate": ("exec",), "cuMemAlloc": (4096,),
    "cuMemHostAlloc": (0,), "cuMemHostGetDevicePointer": (0,),
}  # fmt: skip
"""Call -> what it gives beside its status."""


class Bindings:
    """cuda.bindings.driver and cuda.core. `fails`: call -> the error that it gives."""

    CU_MEMHOSTALLOC_DEVICEMAP = 2
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")
    CUmemPool_attribute = types.SimpleNamespace(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD="threshold")
    cuuint64_t = staticmethod(int)

    def __init__(self, integrated=False):
        self.calls, self.fails, self.threads = [], {}, threading.local()
        self.integrated, self.host, self.freed = integrated, {}, []

    def enter(self, name):
        current = getattr(self.threads, "current", False)
        assert current or name in ("cuCtxSetCurrent", "cuDriverGetVersion"), (
            f"{name} without a current context"
        )

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            self.enter(name)
            self.calls.append((name, arguments))
            values = VALUES.get(name, ())
            if name in self.fails:
                return Status(self.fails[name]), *(None for _ in values)
            if name == "cuCtxSetCurrent":
                self.threads.current = arguments == ("context",)
            if name == "cuMemHostAlloc":
                block = (ctypes.c_uint8 * arguments[0])()
                self.host[ctypes.addressof(block)] = block
                return Status(), ctypes.addressof(block)
            if name == "cuMemHostGetDevicePointer":
                return Status(), arguments[0]
            return Status(), *values

        return call

    def named(self, name):
        return [arguments for called, arguments in self.calls if called == name]

    def core(self):
        """cuda.core, in one namespace."""
        outer = self

        def step(name):
            outer.enter(name)
            outer.calls.append((name, ()))
            if name in outer.fails:
                raise CudaError(f"{outer.fails[name]}: said at length\nin two lines")

        class Buffer:
            handle = 512

            def close(self):
                step("Buffer.close")
                outer.freed.append(self.handle)

        class Pool:
            handle = "pool"

            def allocate(self, size, *, stream):
                step("allocate")
                return Buffer()

        class Stream:
            def __init__(self, handle):
                self.handle = handle

            def sync(self):
                step(f"sync {self.handle}")

            def record(self, options):
                step("record")
                return Event()

        class Event:
            def sync(self):
                step("Event.sync")

            def __sub__(self, other):
                return 2.5

        class Device:
            def __init__(self, device_id):
                self.device_id, self.name, self.memory_resource = device_id, "Orin", Pool()
                self.compute_capability = types.SimpleNamespace(major=8, minor=7)
                self.properties = types.SimpleNamespace(integrated=outer.integrated)
                self.streams = [RECORDING, MAIN]

            def set_current(self):
                outer.threads.current = True

            def create_stream(self):
                step("create_stream")
                return Stream(self.streams.pop())

        class ObjectCode:
            @staticmethod
            def from_cubin(code):
                return ObjectCode()

            def get_kernel(self, name):
                step("get_kernel")
                return name

        return types.SimpleNamespace(
            Device=Device,
            ObjectCode=ObjectCode,
            LaunchConfig=dict,
            EventOptions=dict,
            launch=lambda *a: step("launch"),
        )


@pytest.fixture
def make(monkeypatch):
    """(integrated) -> the driver and the bindings under it."""

    def made(integrated=False):
        bindings = Bindings(integrated)
        cuda = types.ModuleType("cuda")
        cuda.core = bindings.core()
        package = types.ModuleType("cuda.bindings")
        package.driver = bindings
        for name, module in {"cuda": cuda, "cuda.bindings": package}.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(kernels, "compiled", lambda architecture: b"machine code")
        return CudaDriver(), bindings

    return made


def everything(driver):
    """One call of each of its methods, and of what frees what they made."""
    memory, host = driver.allocate(10), driver.allocate_host(10)
    driver.to_device(memory.pointer, host.bytes)
    driver.to_host(host.bytes, memory.pointer)
    driver.on_device(memory.pointer, memory.pointer, 4)
    driver.clear(memory.pointer, 4)
    driver.launch("geomag_argmax_f32", 1, 1, memory.pointer)
    driver.elapsed_ms(driver.event(), driver.event())
    driver.rehearse(lambda stream: None)
    graph = driver.capture(lambda stream: None)
    driver.replay(graph)
    driver.sync()
    driver.trim()
    assert driver.free_bytes() == 5
    del memory, host, graph
    gc.collect()


def test_any_thread_may_call_and_free(make):
    driver, bindings = make()
    held = [driver.allocate(1), driver.allocate_host(1), driver.capture(lambda stream: None)]
    caught = []

    def elsewhere():
        try:
            held.clear()  # freed first, in a thread that has called nothing
            everything(driver)
        except BaseException as e:
            caught.append(e)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert caught == []
    assert len(bindings.named("cuMemFreeHost")) == 2
    assert len(bindings.named("cuGraphExecDestroy")) == 2
    assert bindings.freed == [512, 512]


def test_the_bindings_have_what_is_called_and_take_as_much(make):
    driver, bindings = make(integrated=True)
    bindings.fails["allocate"] = "CUDA_ERROR_OUT_OF_MEMORY"
    everything(driver)
    for name in ("cuda", "cuda.bindings"):
        sys.modules.pop(name)
    real = pytest.importorskip("cuda.bindings.driver")
    called = {name: len(arguments) for name, arguments in bindings.calls if name[:2] == "cu"}
    assert {"cuMemcpyAsync", "cuMemPoolSetAttribute", "cuMemFree", "cuGraphLaunch"} <= set(called)
    for name, count in called.items():
        first = getattr(real, name).__doc__.splitlines()[0]
        assert len([a for a in re.search(r"\((.*)\)", first)[1].split(",") if a]) == count, first
    assert real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL is not None
    assert real.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD is not None
    assert real.cuuint64_t(SHARED_KEPT_BYTES) is not None


def test_copies_go_by_the_addresses_alone(make):
    driver, bindings = make(integrated=True)
    host = driver.allocate_host(16)
    driver.to_device(512, host.bytes)
    driver.to_host(host.bytes, 512)
    driver.on_device(host.pointer, 512, 16)
    assert bindings.named("cuMemcpyAsync") == [
        (512, host.pointer, 16, MAIN), (host.pointer, 512, 16, MAIN), (host.pointer, 512, 16, MAIN),
    ]  # fmt: skip


def test_a_board_that_shares_its_memory_gets_it_back(make):
    driver, bindings = make(integrated=True)
    assert bindings.named("cuMemPoolSetAttribute") == [("pool", "threshold", SHARED_KEPT_BYTES)]
    driver.trim()
    assert bindings.named("cuMemPoolTrimTo") == [("pool", 0)]
    _, discrete = make()
    assert not discrete.named("cuMemPoolSetAttribute")


def test_a_pool_that_ends_before_the_memory_does_is_passed_by(make):
    driver, bindings = make()
    bindings.fails["allocate"] = "CUDA_ERROR_OUT_OF_MEMORY"
    memory = driver.allocate(5000)
    assert memory.pointer == 4096
    del memory
    assert bindings.named("cuMemFree") == [(4096,)]


def test_no_memory_is_one_line_that_says_how_much(make):
    driver, bindings = make()
    for name in ("allocate", "cuMemAlloc", "cuMemHostAlloc"):
        bindings.fails[name] = "CUDA_ERROR_OUT_OF_MEMORY"
    said = r"the GPU has no 3\.0 MB of memory left: CUDA_ERROR_OUT_OF_MEMORY.*; use a smaller"
    with pytest.raises(EngineError, match=said) as caught:
        driver.allocate(3_000_000)
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=r"no 3\.0 MB of page-locked memory left: CUDA_ERROR_OUT"):
        driver.allocate_host(3_000_000)


# recordings


def test_a_recording_is_rehearsed_on_its_own_stream_and_waited_for(make):
    driver, bindings = make()
    bindings.calls.clear()
    driver.rehearse(lambda stream: bindings.calls.append(("work", stream)))
    graph = driver.capture(lambda stream: bindings.calls.append(("work", stream)))
    driver.replay(graph)
    steps = [call for call in bindings.calls if call[0] != "cuCtxSetCurrent"]
    assert steps == [
        ("sync 11", ()), ("work", RECORDING), ("sync 12", ()),
        ("cuStreamBeginCapture", (RECORDING, "thread")), ("work", RECORDING),
        ("cuStreamEndCapture", (RECORDING,)), ("cuGraphInstantiate", ("graph", 0)),
        ("cuGraphDestroy", ("graph",)), ("cuGraphLaunch", ("exec", MAIN)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "doing"),
    [("cuStreamBeginCapture", "starting a CUDA graph"),
     ("cuStreamEndCapture", "recording a CUDA graph"),
     ("cuGraphInstantiate", "instantiating a CUDA graph")],
)  # fmt: skip
def test_a_recording_that_fails_leaves_nothing_behind(make, call, doing):
    driver, bindings = make()
    bindings.fails[call] = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    with pytest.raises(EngineError, match=f"{doing} failed: CUDA_ERROR_STREAM_CAPTURE_INVALID"):
        driver.capture(lambda stream: None)
    assert len(bindings.named("cuGraphDestroy")) == (call == "cuGraphInstantiate")
    bindings.fails.clear()
    driver.capture(lambda stream: None)


@pytest.mark.parametrize("invalidated", [False, True])
def test_work_that_fails_while_it_is_recorded_ends_the_recording(make, invalidated):
    driver, bindings = make()
    if invalidated:
        bindings.fails["cuStreamEndCapture"] = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"

    def cannot(stream):
        raise EngineError("not permitted when stream is capturing")

    with pytest.raises(EngineError, match="not permitted"):
        driver.capture(cannot)
    assert len(bindings.named("cuStreamEndCapture")) == 1
    assert len(bindings.named("cuGraphDestroy")) == (not invalidated)
    assert not bindings.named("cuGraphInstantiate")


# a device that dies


def test_after_a_failure_every_call_is_one_line_that_says_to_start_again(make):
    driver, bindings = make()
    memory = driver.allocate(8)
    bindings.fails["sync 11"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(EngineError, match="the GPU failed: CUDA_ERROR_ILLEGAL_ADDRESS: said at le"):
        driver.sync()
    bindings.fails["cuMemcpyAsync"] = bindings.fails["launch"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    calls = {
        "copying on the device": lambda: driver.on_device(512, 512, 1),
        "launching geomag_argmax_f32": lambda: driver.launch("geomag_argmax_f32", 1, 1),
    }
    for doing, call in calls.items():
        with pytest.raises(EngineError, match=rf"{doing} failed: CUDA_ERROR_ILLEGAL_ADDRESS.*start "
                           "the process again") as caught:  # fmt: skip
            call()
        assert "\n" not in str(caught.value)
    bindings.fails["cuCtxSetCurrent"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    del memory  # says nothing
    gc.collect()


def test_boxes_go_over_by_page_locked_memory(make, monkeypatch):
    from geomag_edge.cpp_ext import cuda as cropping

    driver, _ = make()
    device, given = Device(driver), []
    monkeypatch.setattr(cropping, "psc_crop_cuda", lambda *a, **how: given.append(a))
    image = device.upload(np.zeros((4, 4, 3), np.uint8), "image")
    views = device.empty((1, 3, 2, 2), np.float32)
    driver.crop(image, np.array([[0, 0, 2, 2]], np.float32), np.ones((2, 3), np.float32), views)
    assert [a.shape for a in given[0][1:3]] == [(1, 4), (2, 3)]
    assert all(hasattr(a, "__cuda_array_interface__") for a in given[0][1:3])


def test_kernels_that_the_driver_does_not_load_are_one_line(make):
    driver, bindings = make()
    bindings.fails["get_kernel"] = "CUDA_ERROR_NO_BINARY_FOR_GPU"
    with pytest.raises(
        EngineError, match=r"loading geomag_argmax_f32 failed: .*NO_BINARY"
    ) as caught:
        driver.launch("geomag_argmax_f32", 1, 1)
    assert "\n" not in str(caught.value)
