"""A stand-in for TensorRT over ONNX Runtime and `LateCuda`.

What has a name without an underscore in `TensorRtStandIn`, `Runtime`, `Engine` and `Context` is
TensorRT's own, in the module, `Runtime`, `ICudaEngine` and `IExecutionContext`: `faces` lists it.
"""

import enum
import json

import numpy as np
import onnxruntime as ort

from geomag_edge.graphs import DYNAMIC
from tests.runtime.late_cuda import GARBAGE, Misuse, array_at, overlap

VERSION = "1.7.1.116"


class TensorRtStandIn:
    """The part of `tensorrt_rtx` that the runtime uses.

    A serialised engine is JSON: the ONNX file, the axes of inputs and outputs and, for each
    profile, the least and most size of each axis. It is as strict as TensorRT: sizes outside of the
    profile, addresses that are missing or misaligned, too little activation memory and a recording
    whose context was changed all fail.

    Args:
        cuda: where it runs.
        on_host: inputs that TensorRT wants on the host.
        capturable: what contexts say of themselves; None for full TensorRT's, which say nothing.
        fails: call -> what it raises (an exception) or returns instead.
    """

    __name__, __version__ = "tensorrt_rtx", VERSION

    class ILogger:
        def __init__(self):
            pass

        class Severity(enum.Enum):
            ERROR = 1

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

    def __init__(self, cuda, on_host=(), capturable=True, fails=None):
        self._cuda, self._on_host, self._capturable = cuda, frozenset(on_host), capturable
        self._fails = fails or {}
        self._contexts, self._configs, self._asked, self._read = 0, [], [], []

    def Runtime(self, log):
        """As the class of this name is called."""
        return Runtime(self, log)

    def _called(self, name):
        """What a test has a call fail with, if it does; every call needs the device."""
        self._asked.append(name)
        self._cuda.needs_context(name)
        if name not in self._fails:
            return False
        if isinstance(self._fails[name], Exception):
            raise self._fails[name]
        return True


class Runtime:
    """`Runtime`."""

    engine_host_code_allowed = False

    def __init__(self, module, log):
        self._module, self._log = module, log

    def deserialize_cuda_engine(self, serialized_engine):
        if self._module._called("deserialize_cuda_engine"):
            return self._module._fails["deserialize_cuda_engine"]
        self._module._read.append(type(serialized_engine))
        try:
            said = json.loads(bytes(serialized_engine))
        except ValueError:
            self._log.log(
                TensorRtStandIn.ILogger.Severity.ERROR, "Serialization assertion magicTag failed."
            )
            return None
        return Engine(self._module, self._log, said)


def session_options():
    """How ONNX Runtime executes what TensorRT is given."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of each cache that it copies
    options.intra_op_num_threads = 1
    # Q/DQ pairs stay as they are: fused, int8 products are not the same on every CPU.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class Engine:
    """`ICudaEngine`."""

    def __init__(self, module, log, said):
        self._module, self._log, self._profiles = module, log, said["profiles"]
        self._session = ort.InferenceSession(
            said["onnx"], session_options(), providers=["CPUExecutionProvider"]
        )
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._outputs = {o.name: o for o in self._session.get_outputs()}
        self._axes, self._aliases = said["axes"], said.get("aliases", {})
        self._template = None
        self._on_host = module._on_host & self._inputs.keys()

    @property
    def num_io_tensors(self):
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index):
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name):
        modes = self._module.TensorIOMode
        return modes.INPUT if name in self._inputs else modes.OUTPUT

    def get_tensor_dtype(self, name):
        found = (self._inputs | self._outputs)[name].type
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
        return self._module.DataType[kinds[found]]

    def get_tensor_location(self, name):
        return self._module.TensorLocation["HOST" if name in self._on_host else "DEVICE"]

    def get_device_memory_size_for_profile_v2(self, profile_index):
        return 1000 * (profile_index + 1)

    def create_runtime_config(self):
        self._module._configs.append(RuntimeConfig(self._module))
        return self._module._configs[-1]

    def create_execution_context(self, runtime_config):
        if self._module._called("create_execution_context"):
            return self._module._fails["create_execution_context"]
        strategies = self._module.ExecutionContextAllocationStrategy
        assert runtime_config._strategy is strategies.USER_MANAGED
        if runtime_config._cache is not None:
            runtime_config._cache._kernels = b"compiled kernels"
        self._module._contexts += 1
        return (Context if self._module._capturable is None else CapturableContext)(self)

    def _dtype(self, name):
        return np.dtype(self.get_tensor_dtype(name).value)

    def _shapes_for(self, shapes):
        """Output shapes: from a run on zeros, and from then on by the axes' names; that they are
        right is seen when it runs."""
        sizes = {
            axis: size
            for name, shape in shapes.items()
            for axis, size in zip(self._axes[name], shape, strict=True)
            if axis in DYNAMIC
        }
        if self._template is None:
            zeros = {name: np.zeros(shape, self._dtype(name)) for name, shape in shapes.items()}
            if "image_shape" in zeros:
                zeros["image_shape"] += [100, 100, 3]
            made = self._session.run(None, zeros)
            self._template = {
                name: [
                    a if a in sizes else n for a, n in zip(self._axes[name], v.shape, strict=True)
                ]
                for name, v in zip(self._outputs, made, strict=True)
            }
        return {
            name: tuple(sizes.get(axis, axis) for axis in axes)
            for name, axes in self._template.items()
        }


class RuntimeConfig:
    """`IRuntimeConfig`."""

    def __init__(self, module):
        self._strategy = self._cache = None
        kinds = module.DynamicShapesKernelSpecializationStrategy
        self.dynamic_shapes_kernel_specialization_strategy = kinds.LAZY

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class RuntimeCache:
    """`IRuntimeCache`."""

    def __init__(self):
        self._kernels, self._given = b"", None

    def deserialize(self, blob):
        self._given = bytes(blob)
        if not self._given.startswith(b"compiled"):
            return False
        self._kernels = self._given
        return True

    def serialize(self):
        return memoryview(self._kernels)


class _State:
    """What work that is still queued knows of its context."""

    def __init__(self):
        self.changes, self.queued, self.destroyed = 0, 0, False


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine):
        self._engine, self._module, self._cuda = engine, engine._module, engine._module._cuda
        self._given, self._addresses = {}, {}
        self._profile, self._memory, self._state = None, None, _State()

    def __del__(self):
        if self._state.queued:
            self._cuda.wrong("a context is destroyed whose work is still queued")
        self._state.destroyed = True

    def _says(self, text):
        self._engine._log.log(TensorRtStandIn.ILogger.Severity.ERROR, text)
        return False

    def set_optimization_profile_async(self, profile_index, stream_handle):
        if self._module._called("set_optimization_profile_async"):
            return self._module._fails["set_optimization_profile_async"]
        if stream_handle != self._cuda.stream:
            raise Misuse("a profile is set on another stream")
        if not profile_index < len(self._engine._profiles):
            raise RuntimeError("Error in set optimization profile async.")
        self._profile = profile_index
        return True

    def set_device_memory(self, memory, size):
        self._module._called("set_device_memory")
        if memory % 256 or size < self._engine.get_device_memory_size_for_profile_v2(self._profile):
            raise Misuse("activation memory is misaligned or too small")
        self._memory = memory, size

    def set_input_shape(self, name, shape):
        if self._module._called("set_input_shape"):
            return self._module._fails["set_input_shape"]
        self._state.changes += 1
        if self._profile is None:
            raise Misuse("a shape is given before the profile")
        spans = self._engine._profiles[self._profile]
        for axis, size in zip(self._engine._axes[name], shape, strict=True):
            low, high = spans.get(axis, (axis, axis) if isinstance(axis, int) else (size, size))
            if not low <= size <= high:
                return self._says(
                    f"Set dimension {size} for tensor {name} does not satisfy the profile."
                )
        self._given[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, memory):
        if self._module._called("set_tensor_address"):
            return self._module._fails["set_tensor_address"]
        if name not in self._engine._on_host and (memory % 256 or not memory):
            raise Misuse(f"the address of {name} is null or no multiple of 256")
        self._state.changes += 1
        self._addresses[name] = memory
        return True

    def infer_shapes(self):
        if self._module._called("infer_shapes"):
            return self._module._fails["infer_shapes"]
        return [name for name in self._engine._inputs if name not in self._shapes()]

    def _shapes(self):
        fixed = {
            name: tuple(i.shape)
            for name, i in self._engine._inputs.items()
            if all(isinstance(n, int) for n in i.shape)
        }
        return fixed | self._given

    def get_tensor_shape(self, name):
        self._module._called("get_tensor_shape")
        return self._engine._shapes_for(self._shapes())[name]

    def execute_async_v3(self, stream_handle):
        if self._module._called("execute_async_v3"):
            return self._module._fails["execute_async_v3"]
        cuda, engine, shapes = self._cuda, self._engine, self._shapes()
        if cuda.recording is not None and cuda.refuses == "during":
            return self._says("operation not permitted when stream is capturing")
        missing = engine._inputs.keys() - shapes.keys()
        if missing:
            return self._says(f"no shape for {sorted(missing)}")
        missing = (engine._inputs.keys() | engine._outputs.keys()) - self._addresses.keys()
        if missing or self._memory is None:
            return self._says(f"no address for {sorted(missing) or 'activations'}")
        made = engine._shapes_for(shapes)
        reads, writes = self._spans(shapes, made)
        host = {
            name: array_at(self._addresses[name], shapes[name], np.int64).copy()
            for name in engine._on_host
        }
        do = _execution(engine, self._state, dict(self._addresses), shapes, made, host,
                        self._memory, cuda.recording is not None)  # fmt: skip
        if cuda.recording is None:
            self._state.queued += 1
        cuda.put(do, stream_handle, reads, [*writes, self._memory], "an engine", None)
        return True

    def _spans(self, shapes, made):
        """Where it reads and writes; outputs may lie over no input but the one that they update."""
        engine, at = self._engine, self._addresses

        def span(name, shape):
            return at[name], int(np.prod(shape)) * engine._dtype(name).itemsize

        reads = {n: span(n, shapes[n]) for n in engine._inputs if n not in engine._on_host}
        writes = {n: span(n, made[n]) for n in engine._outputs}
        for output, source in engine._aliases.items():
            if at[output] != at[source]:
                raise Misuse(f"{output} updates {source} in place, but has another address")
        for output, (pointer, n_bytes) in writes.items():
            others = [s for n, s in (reads | writes).items()
                      if n not in (output, engine._aliases.get(output))]  # fmt: skip
            if n_bytes and overlap(others, pointer, n_bytes):
                raise Misuse(f"{output} lies over another input or output")
        return [*reads.values()], [*writes.values()]


class CapturableContext(Context):
    """TensorRT for RTX's, which says whether it can be recorded."""

    def is_stream_capturable(self, stream):
        self._module._called("is_stream_capturable")
        return self._module._capturable


def _execution(engine, state, addresses, shapes, made, host, memory, recorded):
    """What an engine does at its turn; it does not keep its context alive."""
    changes = state.changes

    def read(name):
        if name in host:
            return host[name]
        return array_at(addresses[name], shapes[name], engine._dtype(name)).copy()

    def execute():
        state.queued -= not recorded
        if state.destroyed:
            raise Misuse("work runs whose context was destroyed")
        if recorded and state.changes != changes:
            raise Misuse("a recording runs whose context was changed")
        feeds = {name: read(name) for name in engine._inputs}
        array_at(*memory, np.uint8)[:] = GARBAGE
        results = engine._session.run(None, feeds)
        for name, result in zip(engine._outputs, results, strict=True):
            assert result.shape == made[name]
            array_at(addresses[name], result.shape, result.dtype)[...] = result

    return execute


FACES = {
    "": TensorRtStandIn, "Runtime": Runtime, "ICudaEngine": Engine,
    "IExecutionContext": CapturableContext, "IRuntimeConfig": RuntimeConfig,
    "IRuntimeCache": RuntimeCache,
}  # fmt: skip
"""TensorRT's class ("" is the module) -> the stand-in's."""


def faces():
    """TensorRT's class -> the names of it that the stand-in has."""
    return {
        theirs: sorted(name for name in dir(ours) if not name.startswith("_"))
        for theirs, ours in FACES.items()
    }
