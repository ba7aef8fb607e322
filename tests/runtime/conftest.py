"""A stand-in for CUDA that is late on purpose.

Device memory is host memory, and whatever is put on the stream is done only when somebody waits.
Memory that is freed is overwritten at its turn in the stream. So an array that is read too early,
freed too early, or a page-locked buffer that is used again too early gives wrong answers here.
"""

import ctypes
import enum
import json

import numpy as np
import onnxruntime as ort
import pytest

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.runtime.engines.cuda.device import Device

GARBAGE = 0xA5  # in float32 -2.9e-16, in float16 -0.022, in int64 huge and negative


class Memory:
    """Bytes at an address that is a multiple of 256."""

    def __init__(self, n_bytes, on_free):
        block = np.full(n_bytes + 256, GARBAGE, np.uint8)
        start = -block.ctypes.data % 256
        self.bytes = block[start : start + n_bytes]
        self.pointer = block.ctypes.data + start
        self._on_free = on_free

    def __del__(self):
        self._on_free(self.bytes)


def array_at(pointer, shape, dtype):
    """Host memory at an address, as an array; one length is a number of bytes."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else shape
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    if not n_bytes:
        return np.zeros(shape, dtype)
    return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(pointer), dtype).reshape(shape)


def value_of(argument):
    return getattr(argument, "value", argument)


class LateCuda:
    """`geomag_edge.runtime.engines.cuda.driver.Driver` on the CPU.

    Args:
        late: wait for `sync`; False does everything at once.
        integrated: pretend that host and device share their memory.
    """

    name, version, device_id, capability = "stand-in", "13.0", 0, (8, 7)
    stream, recording_stream = 77, 78

    def __init__(self, late=True, integrated=False):
        self.late, self.integrated = late, integrated
        self.queue, self.recording = [], None
        self.launched, self.allocations, self.replays, self.syncs = [], 0, 0, 0

    def put(self, action, stream=stream):
        if stream == self.recording_stream:
            assert self.recording is not None, "nothing is being recorded"
            self.recording.append(action)
            return
        assert stream == self.stream
        self.queue.append(action)
        if not self.late:
            self.drain()

    def drain(self):
        while self.queue:
            self.queue.pop(0)()

    def allocate(self, n_bytes):
        assert self.recording is None, "memory is allocated while a graph is recorded"
        self.allocations += 1
        return Memory(n_bytes, lambda block: self.put(lambda: block.fill(GARBAGE)))

    def allocate_host(self, n_bytes):
        assert self.recording is None, "memory is allocated while a graph is recorded"
        return Memory(n_bytes, lambda block: block.fill(GARBAGE))

    def to_device(self, pointer, source, pinned):
        source = source if pinned else source.copy()
        self.put(lambda: np.copyto(array_at(pointer, source.shape, np.uint8), source))

    def to_host(self, target, pointer):
        self.put(lambda: np.copyto(target, array_at(pointer, target.shape, np.uint8)))

    def on_device(self, target, source, n_bytes):
        self.put(lambda: ctypes.memmove(target, source, n_bytes))

    def clear(self, pointer, n_bytes):
        self.put(lambda: array_at(pointer, n_bytes, np.uint8).fill(0))

    def launch(self, kernel, blocks, threads, *arguments):
        self.launched.append(kernel)
        self.put(lambda: KERNELS[kernel](*map(value_of, arguments)))

    def crop(self, image, boxes, mean_std, views):
        boxes = boxes.copy()

        def cut():
            pixels = array_at(image.pointer, image.shape, np.uint8)
            made = psc_crop(pixels, boxes, mean_std, views.shape[-1], views.dtype.name)
            array_at(views.pointer, views.shape, views.dtype)[:] = made

        self.launched.append("psc_crop")
        self.put(cut)

    def sync(self):
        assert self.recording is None, "the stream is waited for while a graph is recorded"
        self.syncs += 1
        self.drain()

    def event(self):
        mark = {}
        self.put(lambda: mark.setdefault("at", len(mark)))
        return mark

    def elapsed_ms(self, start, end):
        self.drain()
        assert "at" in start
        assert "at" in end
        return 1.0

    def capture(self, record):
        self.recording = []
        try:
            record(self.recording_stream)
            return self.recording
        finally:
            self.recording = None

    def replay(self, graph):
        self.replays += 1
        self.put(lambda: [action() for action in graph])

    def free_bytes(self):
        return 1 << 30

    def interface(self, value):
        found = getattr(value, "__cuda_array_interface__", None)
        if found is None:
            return None
        return found["data"][0], found["shape"], np.dtype(found["typestr"]), not found["strides"]


def _cast(from_type, to_type):
    def cast(source, target, count):
        array_at(target, (count,), to_type)[:] = array_at(source, (count,), from_type)

    return cast


def _argmax(dtype):
    def argmax(source, count, token):
        array_at(token, (1,), np.int64)[0] = array_at(source, (count,), dtype).argmax()

    return argmax


KERNELS = {
    "geomag_cast_f32_f16": _cast(np.float32, np.float16),
    "geomag_cast_f16_f32": _cast(np.float16, np.float32),
    "geomag_argmax_f32": _argmax(np.float32),
    "geomag_argmax_f16": _argmax(np.float16),
}


@pytest.fixture(scope="session")
def make_device():
    """(late, integrated) -> a `Device` on the stand-in."""
    return lambda **how: Device(LateCuda(**how))


@pytest.fixture
def device(make_device):
    """A device that is late and has memory of its own."""
    return make_device()


class TensorRtStandIn:
    """The part of `tensorrt_rtx` that the runtime uses, over ONNX Runtime and `LateCuda`.

    A serialised engine is JSON: the ONNX file and, for each profile, the least and most size of
    each axis. It is as strict as TensorRT: sizes outside of the profile, addresses that are missing
    or misaligned, too little activation memory and a recording whose context was changed all fail.
    """

    __name__, __version__ = "tensorrt_rtx", "1.7.1.116"

    class ILogger:
        def __init__(self):
            pass

    class TensorIOMode(enum.Enum):
        INPUT, OUTPUT = 1, 2

    class TensorLocation(enum.Enum):
        DEVICE, HOST = 0, 1

    class DataType(enum.Enum):
        FLOAT, HALF, INT64 = "float32", "float16", "int64"

    class ExecutionContextAllocationStrategy(enum.Enum):
        USER_MANAGED = 2

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY, EAGER, NONE = range(3)

    def __init__(self, cuda, on_host=(), capturable=True):
        self.cuda, self.on_host, self.capturable = cuda, frozenset(on_host), capturable
        self.contexts, self.configs = 0, []
        outer = self

        class Runtime:
            def __init__(self, log):
                self.log = log

            def deserialize_cuda_engine(self, data):
                try:
                    said = json.loads(data)
                except ValueError:
                    self.log.log(_Severity.ERROR, "Serialization assertion magicTag failed.")
                    return None
                return _Engine(outer, self.log, said)

        self.Runtime = Runtime


class _Severity(enum.Enum):
    ERROR = 1


class _Engine:
    def __init__(self, outer, log, said):
        self.outer, self.log, self.profiles = outer, log, said["profiles"]
        options = ort.SessionOptions()
        options.log_severity_level = 3  # ONNX Runtime warns of each cache that it copies
        self.session = ort.InferenceSession(
            said["onnx"], options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}
        self.axes = said["axes"]
        self.aliases = said.get("aliases", {})
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.known = {}
        self.on_host_names = outer.on_host & self.inputs.keys()

    def get_tensor_name(self, i):
        return [*self.inputs, *self.outputs][i]

    def get_tensor_mode(self, name):
        modes = self.outer.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name):
        found = (self.inputs | self.outputs)[name].type
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
        return self.outer.DataType[kinds[found]]

    def get_tensor_location(self, name):
        return self.outer.TensorLocation["HOST" if name in self.outer.on_host else "DEVICE"]

    def get_device_memory_size_for_profile_v2(self, profile):
        return 1000 * (profile + 1)

    def create_runtime_config(self):
        self.outer.configs.append(_RuntimeConfig(self.outer))
        return self.outer.configs[-1]

    def create_execution_context(self, runtime_config):
        strategies = self.outer.ExecutionContextAllocationStrategy
        assert runtime_config.strategy is strategies.USER_MANAGED
        if runtime_config.cache is not None:
            runtime_config.cache.kernels = b"compiled kernels"
        self.outer.contexts += 1
        return _Context(self)

    def shapes_for(self, shapes):
        """Output shapes, from a run on zeros."""
        key = tuple(sorted(shapes.items()))
        if key not in self.known:
            zeros = {
                name: np.zeros(shape, self.get_tensor_dtype(name).value)
                for name, shape in shapes.items()
            }
            if "image_shape" in zeros:
                zeros["image_shape"] += [100, 100, 3]
            made = self.session.run(None, zeros)
            self.known[key] = {n: a.shape for n, a in zip(self.outputs, made, strict=True)}
        return self.known[key]


class _RuntimeConfig:
    def __init__(self, outer):
        self.strategy = self.cache = None
        kinds = outer.DynamicShapesKernelSpecializationStrategy
        self.dynamic_shapes_kernel_specialization_strategy = kinds.LAZY

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return _RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class _RuntimeCache:
    def __init__(self):
        self.kernels, self.given = b"", None

    def deserialize(self, blob):
        self.given = bytes(blob)
        if not self.given.startswith(b"compiled"):
            return False
        self.kernels = self.given
        return True

    def serialize(self):
        return memoryview(self.kernels)


class _Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.profile, self.memory, self.changes = None, None, 0

    def set_optimization_profile_async(self, profile, stream):
        assert stream == LateCuda.stream
        self.profile = profile
        return profile < len(self.engine.profiles)

    def set_device_memory(self, pointer, size):
        assert pointer % 256 == 0
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.memory = pointer, size

    def set_input_shape(self, name, shape):
        self.changes += 1
        spans = self.engine.profiles[self.profile]
        for axis, size in zip(self.engine.axes[name], shape, strict=True):
            low, high = spans.get(axis, (size, size))
            if not low <= size <= high:
                message = f"Set dimension {size} for tensor {name} does not satisfy the profile."
                self.engine.log.log(_Severity.ERROR, message)
                return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        assert name in self.engine.on_host_names or address % 256 == 0, name
        self.changes += 1
        self.addresses[name] = address
        return True

    def infer_shapes(self):
        return [name for name in self.engine.inputs if name not in self.all_shapes()]

    def all_shapes(self):
        return self.shapes | {
            name: tuple(i.shape)
            for name, i in self.engine.inputs.items()
            if all(isinstance(n, int) for n in i.shape)
        }

    def get_tensor_shape(self, name):
        return self.engine.shapes_for(self.all_shapes())[name]

    def is_stream_capturable(self, stream):
        return self.engine.outer.capturable

    def execute_async_v3(self, stream):
        engine, shapes, addresses = self.engine, self.all_shapes(), dict(self.addresses)
        made = engine.shapes_for(shapes)
        missing = (set(engine.inputs) | set(engine.outputs)) - set(addresses)
        if missing or self.memory is None:
            engine.log.log(_Severity.ERROR, f"no address for {sorted(missing)}")
            return False
        for output, source in engine.aliases.items():
            assert addresses[output] == addresses[source], "an updated cache has one address"
        changes, recorded = self.changes, stream == LateCuda.recording_stream
        host = {
            name: array_at(addresses[name], shapes[name], np.int64).copy()
            for name in engine.on_host_names
        }

        def read(name):
            if name in host:
                return host[name]
            kind = engine.get_tensor_dtype(name).value
            return array_at(addresses[name], shapes[name], kind).copy()

        def execute():
            assert not recorded or self.changes == changes, "the recording's context was changed"
            array_at(*self.memory, np.uint8)[:] = GARBAGE
            results = engine.session.run(None, {name: read(name) for name in engine.inputs})
            for name, result in zip(engine.outputs, results, strict=True):
                assert result.shape == made[name]
                array_at(addresses[name], result.shape, result.dtype)[...] = result

        engine.outer.cuda.put(execute, stream)
        return True


@pytest.fixture
def make_tensorrt():
    """(cuda, **how) -> the stand-in as a `Flavour`."""
    from geomag_edge.runtime.engines.tensorrt.flavour import Flavour

    def make(cuda, **how):
        module = TensorRtStandIn(cuda, **how)
        return Flavour(module.__name__, module, module.__version__)

    return make
