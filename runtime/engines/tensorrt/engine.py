"""TensorRT engines as an engine: `tensorrt` and `tensorrt-rtx`.

Opens engines/<target>/<precision>/ of a bundle, after their sha256 was checked, on one stream, with
a context for each profile and one activation memory for all of them: they never run at once.
Calls whose shapes recur are replayed as CUDA graphs (`cuda.replay`). The LLM's are if it
was built with a fixed cache; one that grows has another shape at every step.

Any thread may run, open and close, one at a time.

State of proof: the logic is tested on a stand-in for TensorRT that executes the graphs with ONNX
Runtime; names and signatures are those of tensorrt_rtx 1.7 (the API of TensorRT 11) and are checked
against it. No engine has been run.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geomag_edge.errors import EngineError
from geomag_edge.graphs import CHAIN, DYNAMIC, ENCODER, past_names, present_names
from geomag_edge.manifest import Bundle, DecoderShape
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.driver import CudaDriver
from geomag_edge.runtime.engines.cuda.feeds import on_device
from geomag_edge.runtime.engines.cuda.refusals import first_line
from geomag_edge.runtime.engines.cuda.replay import Arrays, Replays
from geomag_edge.runtime.engines.cuda.values import DeviceValues
from geomag_edge.runtime.engines.sharing import has_threads
from geomag_edge.runtime.engines.tensorrt.cache import FixedCache, GrowingCache
from geomag_edge.runtime.engines.tensorrt.contexts import Contexts
from geomag_edge.runtime.engines.tensorrt.fitting import FLAVOURS, built_by, fitting
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour, load_flavour, started
from geomag_edge.runtime.engines.tensorrt.log import first_error, logger_of, memory_ran_out
from geomag_edge.runtime.engines.tensorrt.profiles import FIXED
from geomag_edge.runtime.engines.tensorrt.record import BuildRecord, EngineFile
from geomag_edge.runtime.engines.tensorrt.work import ProfileWork, Workspace

_SPLIT = {"encoder": "n", "projector": "n", "mask_head": "m"}
"""Leading axis along which a call that is too large is made in parts."""

_NUMPY = {
    "FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32,
    "INT8": np.int8, "UINT8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class TensorRtEngine:
    """Opens the engines of a bundle that this GPU and this TensorRT can load.

    Args:
        name: "tensorrt" or "tensorrt-rtx".
        bundle: the bundle.
        precision: which set of engines.
        device, flavour: where and by what to run; None for the first GPU and the installed module.
        graphs: whose engines must be there.

    Raises:
        MissingExtraError: TensorRT or cuda-python is not installed.
        EngineError: no GPU, or no engines that fit it.
        BundleError: a build record is damaged.
    """

    graphs = CHAIN
    """The graphs that can be opened; `psc` has no engine, since the kernel runs between engines."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        precision: str,
        device: Device | None = None,
        flavour: Flavour | None = None,
        graphs: Sequence[str] = CHAIN,
    ) -> None:
        self.name, self.bundle, self.precision = name, bundle, precision
        # What needs neither TensorRT nor a GPU is checked first.
        records = built_by(bundle, name, precision)
        self.flavour = flavour or load_flavour(FLAVOURS[name])
        self.device = device or Device(CudaDriver())
        self.device.driver.make_current()
        self.record = fitting(records, self.flavour, self.device, graphs)
        self.log = logger_of(self.flavour)
        self.runtime = started(self.flavour, lambda: self.flavour.module.Runtime(self.log))
        if self.record.options.get("version_compatible"):
            self.runtime.engine_host_code_allowed = True
        self.workspace = Workspace(self.device)
        self.workspace.of(_activation_bytes(self.record))
        views = bundle.record(ENCODER.name, precision, "tensorrt")["inputs"][0]
        self.values = DeviceValues(self.device, views["dtype"])

    def session(self, graph: str) -> TensorRtSession:
        """Opens the engines of one graph, their files checked first."""
        return TensorRtSession(self, graph)

    def said(self, otherwise: str) -> str:
        """The first error in TensorRT's log since it was last cleared, in one line."""
        return first_error(self.log.lines) or otherwise

    def close(self) -> None:
        """Frees the activation memory, and gives back what the pools hold."""
        with contextlib.suppress(EngineError):  # of a device that failed nobody waits for anything
            self.device.sync()
            self.workspace = Workspace(self.device)
            self.device.sync()
            self.device.trim()


def _activation_bytes(record: BuildRecord) -> int:
    """What the builder says that the neediest profile of all takes."""
    files = [f for files in record.engines.values() for f in files if f.memory is not None]
    return max((max(f.memory["activation_bytes"]) for f in files if f.memory), default=0)


class TensorRtSession:
    """One graph's engines.

    Args:
        owner: the engine that opens it.
        graph: its name.

    Raises:
        EngineError: TensorRT refuses an engine.
        BundleError: a file is not what was built.
    """

    def __init__(self, owner: TensorRtEngine, graph: str) -> None:
        has_threads(self)  # and more that no fork can free: a context, memory of the device
        self._owner, self._device, self._graph = owner, owner.device, graph
        record, driver = owner.record, owner.device.driver
        driver.make_current()
        files = record.engines.get(graph)
        if not files:
            raise EngineError(f"{record.folder} has no engine of {graph}: build it again")
        self._files = files
        self._engines: dict[str, Any] | None = {f.file: self._load(f) for f in files}
        sm = "{}.{}".format(*driver.capability)
        self._contexts = {
            f.file: Contexts(owner.flavour, self._engines[f.file], f, graph, sm) for f in files
        }
        self._axes = {p["name"]: tuple(p["axes"]) for p in (*files[0].inputs, *files[0].outputs)}
        engine = self._engines[files[0].file]
        self._dtypes = _tensors(owner.flavour, engine, "INPUT")
        self._outputs = _tensors(owner.flavour, engine, "OUTPUT")
        self._on_host = {
            name for name in self._dtypes
            if engine.get_tensor_location(name) == owner.flavour.module.TensorLocation.HOST
        }  # fmt: skip
        self._cache: GrowingCache | FixedCache | None = None
        if graph == "llm":
            self._cache = self._new_cache(owner.bundle.manifest.decoder)
        self._works: dict[tuple[str, int], ProfileWork] = {}
        self._replays: dict[tuple[str, int], Replays] = {}
        self._refused: str | None = None
        built_on = record.built_on.get("gpu")
        elsewhere = f", built on {built_on}" if built_on and built_on != driver.name else ""
        self.provider = f"TensorRT {record.version} on {driver.name}{elsewhere}"
        if record.flavour == "tensorrt_rtx":
            self.provider = self.provider.replace("TensorRT", "TensorRT for RTX", 1)

    def _load(self, file: EngineFile) -> Any:
        """From the file as it is mapped: a copy on the host would take as much memory once more,
        which on shared memory is the device's."""
        owner = self._owner
        owner.log.lines.clear()
        load = owner.runtime.deserialize_cuda_engine
        path = owner.bundle.file(file.file)
        with path.open("rb") as opened:
            try:
                with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    engine = load(data)
                reason = "it does not say why"
            except (ValueError, RuntimeError) as e:  # an empty file; what the bindings raise
                engine, reason = None, first_line(e)
        if engine is None:
            remedy = "build it again on this machine"
            if memory_ran_out(owner.log.lines):
                remedy = "the device's memory ran out: end other programs, or take a smaller budget"
            raise EngineError(
                f"{owner.flavour.name} {owner.flavour.version} cannot load {file.file}: "
                f"{owner.said(reason)}; {remedy}"
            )
        return engine

    def _new_cache(self, shape: DecoderShape) -> GrowingCache | FixedCache:
        """The kind that the engines were built for."""
        present, record = present_names(shape.layers), self._owner.record
        size = (shape.kv_heads, shape.head_dim, record.limits.capacity, self._outputs[present[0]])
        if record.options.get("cache") == FIXED:
            return FixedCache(self._device, shape.layers, *size)
        return GrowingCache(self._device, present, *size)

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; kept values are `DeviceArray`s, and arrays of other libraries in
        device memory are taken as they are. Kept parts of the LLM's cache are good until the step
        after the next one."""
        if self._engines is None:
            raise EngineError(f"the session of {self._graph} is closed")
        self._device.driver.make_current()
        length = None
        if isinstance(self._cache, FixedCache):
            feeds, length = self._cache.feeds(feeds)
        on_host = {
            name: np.ascontiguousarray(feeds[name], self._dtypes[name])
            for name in self._on_host & feeds.keys()
        }
        others = {k: v for k, v in feeds.items() if k not in on_host}
        dtypes = {k: v for k, v in self._dtypes.items() if k not in on_host}
        parts = self._parts(on_device(self._device, others, dtypes))
        if len(parts) == 1:
            outputs = self._call(parts[0], on_host, keep)
        else:
            each = [self._call(part, on_host, frozenset(self._outputs)) for part in parts]
            outputs = {n: self._device.concat([part[n] for part in each]) for n in self._outputs}
        wanted = {name: value for name, value in outputs.items() if name not in keep}
        got = self._device.download(wanted) if wanted else {}
        if isinstance(self._cache, FixedCache):
            own = self._cache.present.keys() & got.keys()
            got |= {name: got[name][:, :, :length] for name in own}
        return {**outputs, **got}

    def _parts(self, arrays: Arrays) -> list[Arrays]:
        """The inputs in as many parts as the engines' limits ask for."""
        axis = _SPLIT.get(self._graph)
        along = {name for name in arrays if axis is not None and self._axes[name][0] == axis}
        if axis is None or not along:
            return [arrays]
        length = len(arrays[min(along)])
        most = max(p.axes[axis][2] for f in self._files for p in f.profiles)
        return [
            {
                name: a[start : start + most] if name in along and length > most else a
                for name, a in arrays.items()
            }
            for start in range(0, max(length, 1), most)
        ]

    def _call(
        self, arrays: Arrays, on_host: Mapping[str, np.ndarray], keep: frozenset[str]
    ) -> Arrays:
        """One call of the one profile that holds the inputs' sizes."""
        arrays = {name: self._device.aligned(array) for name, array in arrays.items()}
        shapes = {k: a.shape for k, a in arrays.items()} | {k: a.shape for k, a in on_host.items()}
        sizes = self._sizes(shapes)
        file, index = self._owner.record.pick(self._graph, sizes)
        work, replays = self._work(file, index)
        work.on_host, work.sizes = dict(on_host), sizes
        self._owner.log.lines.clear()
        if isinstance(self._cache, FixedCache):
            work.fixed_outputs = self._cache.present
        if not isinstance(self._cache, GrowingCache) and not on_host:
            outputs = replays.run(arrays, keep)
            self._heed(replays.refused)
            return outputs
        if isinstance(self._cache, GrowingCache):
            work.fixed_outputs = self._present(self._cache, arrays)
        outputs = work.outputs_for(arrays, keep)
        work.enqueue(arrays, outputs, self._device.driver.stream)
        return outputs

    def _work(self, file: EngineFile, profile: int) -> tuple[ProfileWork, Replays]:
        """The context of a profile, made when it is first asked for."""
        key = file.file, profile
        if key not in self._works:
            assert self._engines is not None
            work = ProfileWork(
                self._owner, self._graph, self._engines[file.file], self._contexts[file.file],
                profile, self._outputs, {p["name"]: tuple(p["axes"]) for p in file.outputs},
            )  # fmt: skip
            in_place: frozenset[str] = frozenset()
            if isinstance(self._cache, FixedCache):
                in_place = frozenset([*self._cache.past, *self._cache.present])
            replays = Replays(self._device, work, in_place)
            replays.refused = self._refused
            self._works[key], self._replays[key] = work, replays
        return self._works[key], self._replays[key]

    def _heed(self, refused: str | None) -> None:
        """What one profile was refused, all of the session's do without; the provider says so."""
        if refused is None or self._refused is not None:
            return
        self._refused = refused
        self.provider += f" (not replayed as CUDA graphs: {refused})"
        for replays in self._replays.values():
            replays.refuse(refused)

    def _present(self, cache: GrowingCache, arrays: Arrays) -> Arrays:
        layers = self._owner.bundle.manifest.decoder.layers
        past = {name: arrays[name] for name in past_names(layers)}
        return cache.outputs_for(past, arrays["attention_mask"].shape[1])

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Sizes of the dynamic axes.

        Raises:
            EngineError: two inputs do not agree.
        """
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            axes = self._axes[name]
            if len(axes) != len(shape):
                raise EngineError(f"{name} has shape {list(shape)}: expected {list(axes)}")
            for axis, size in zip(axes, shape, strict=True):
                if axis in DYNAMIC and sizes.setdefault(str(axis), size) != size:
                    raise EngineError(
                        f"the inputs of {self._graph} disagree on {axis}: {sizes[str(axis)]}, and "
                        f"{size} in {name} {list(shape)}"
                    )
        return sizes

    def close(self) -> None:
        """Frees engines and contexts, once all that was asked of them is done."""
        with contextlib.suppress(EngineError):  # of a device that failed nobody waits for anything
            self._device.sync()
        for contexts in self._contexts.values():
            contexts.keep()
        # What was made from another goes before it: recordings, contexts, their kernels, engines.
        self._replays, self._works = {}, {}
        self._contexts = {}
        self._engines = self._cache = None


def _tensors(flavour: Flavour, engine: Any, mode: str) -> dict[str, np.dtype[Any]]:
    """Inputs or outputs of an engine and their types.

    Raises:
        EngineError: a type that numpy does not have.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wanted = getattr(flavour.module.TensorIOMode, mode)
    found = {}
    for name in names:
        if engine.get_tensor_mode(name) != wanted:
            continue
        kind = engine.get_tensor_dtype(name).name
        if kind not in _NUMPY:
            raise EngineError(f"{name} is {kind}, which the runtime does not handle")
        found[name] = np.dtype(_NUMPY[kind])
    return found
