"""ONNX Runtime as an engine: `ort-cpu`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from geomag_edge.cores import may_spin, threads_of
from geomag_edge.errors import EngineError, GeoMagError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.exact import PROBE, is_exact, mentions
from geomag_edge.runtime.engines.sharing import has_threads, is_fork

FATAL = 4

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def quiet_options() -> ort.SessionOptions:
    """Options of a session that says what is wrong in its exceptions alone, which become our one
    line; else ONNX Runtime writes its own, in colour, before them."""
    ort.set_default_logger_severity(FATAL)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    return options


@functools.cache
def _share_arena() -> None:
    """One arena for all graphs, grown by what is asked for.

    By default every session keeps its own and grows it in powers of two, which leaves memory
    unused once for every graph.
    """
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    as_requested = ort.OrtArenaCfg({"arena_extend_strategy": 1})
    ort.create_and_register_allocator(memory, as_requested)


def inference_session(
    model: Path | bytes,
    threads: int | None = None,
    weights: Path | None = None,
    share_arena: bool = False,
) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU whose integer products are exact on every CPU.

    Without VNNI, ONNX Runtime adds pairs of u8 x s8 products in 16 bits, which saturate: an int8
    layer is up to half wrong on such a CPU and right on another. `session.x64quantprecision` turns
    weights to u8 there (and only there), whose kernel adds in 32 bits.

    Args:
        model: a file, or a serialised model.
        threads: CPU threads; None is what this process may use (`geomag_edge.cores`).
        weights: folder of a serialised model's external weights.
        share_arena: take memory from the one arena that all of a chain's graphs share.
    """
    options = quiet_options()
    options.add_session_config_entry("session.x64quantprecision", "1")
    if weights is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(weights.resolve()))
    if share_arena and not is_fork():  # another thread may have held its lock when we were forked
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    set_threads(options, threads)
    # A bias in whole steps of activation times weight does not fit 32 bits where a channel's
    # weights are tiny: the layer would be up to half wrong, on any CPU.
    without = ["WeightBiasQuantization"]
    if mentions(model, b"block_size"):
        # This pass gives weights in blocks a zero point of a rank that their kernel then refuses;
        # what it does for other layers, the one behind `x64quantprecision` does as well.
        without.append("QDQS8ToU8Transformer")
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=without,
    )
    has_threads(session)
    return session


def set_threads(options: ort.SessionOptions, threads: int | None) -> None:
    """A session's threads: those asked for or those that are ours, idle without using time up.

    Raises:
        InputError: no number of threads.
    """
    threads = threads_of(threads)
    if threads is not None:
        options.intra_op_num_threads = threads
    if not may_spin(threads):
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")


class OrtEngine:
    """Opens a bundle's graphs as ONNX Runtime sessions on the CPU."""

    name = "ort-cpu"
    takes_several = True

    def __init__(self, bundle: Bundle, precision: str, threads: int | None):
        self.bundle, self.precision, self.threads = bundle, precision, threads

    def session(self, graph: str) -> OrtSession:
        """Opens one graph, its files checked first."""
        return OrtSession(self.bundle.graph(graph, self.precision, "onnxruntime"), self.threads)

    @functools.cached_property
    def exact_integers(self) -> bool:
        """Whether int8 is computed exactly on this CPU, found by trying."""
        return is_exact(OrtSession(PROBE, threads=1))

    def close(self) -> None:
        """Nothing is held beyond the sessions."""


class OrtSession:
    """One ONNX Runtime session."""

    def __init__(self, path: Path, threads: int | None = None):
        try:
            self._session = inference_session(path, threads, share_arena=True)
            self._types = {i.name: _NUMPY[i.type] for i in self._session.get_inputs()}
        except Exception as e:
            raise EngineError(f"ONNX Runtime cannot load {path.name}: {_reason(e)}") from e
        self.provider = self._session.get_providers()[0]
        self._outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; kept values are `OrtValue`s."""
        try:
            if not keep:
                arrays = {
                    k: v.numpy() if isinstance(v, ort.OrtValue) else self._cast(k, v)
                    for k, v in feeds.items()
                }
                return dict(zip(self._outputs, self._session.run(None, arrays), strict=True))
            return self._run_bound(feeds, keep)
        except GeoMagError:
            raise
        except Exception as e:
            raise EngineError(f"ONNX Runtime failed on a graph: {_reason(e)}") from e

    def _run_bound(self, feeds: Mapping[str, Any], keep: frozenset[str]) -> dict[str, Any]:
        """Through I/O binding, so that kept outputs are neither copied out nor in."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            if not isinstance(value, ort.OrtValue):
                value = ort.OrtValue.ortvalue_from_numpy(self._cast(name, value))
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: v if name in keep else v.numpy() for name, v in values}

    def _cast(self, name: str, value: Any) -> np.ndarray:
        try:
            wanted = self._types[name]
        except KeyError as e:
            raise EngineError(
                f"the graph has no input {name!r}: it has {', '.join(self._types)}"
            ) from e
        return np.ascontiguousarray(value, dtype=wanted)

    def close(self) -> None:
        """Drops the session, and with it its memory."""
        del self._session


def _reason(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
