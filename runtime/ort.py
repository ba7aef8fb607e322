"""ONNX Runtime as an engine: `ort-cpu`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from geomag_edge.errors import EngineError, GeoMagError
from geomag_edge.manifest import Bundle

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


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


class OrtEngine:
    """Opens a bundle's graphs as ONNX Runtime sessions on the CPU."""

    name = "ort-cpu"

    def __init__(self, bundle: Bundle, precision: str, threads: int | None):
        self.bundle, self.precision, self.threads = bundle, precision, threads

    def session(self, graph: str) -> OrtSession:
        """Opens one graph, its files checked first."""
        return OrtSession(self.bundle.graph(graph, self.precision, "onnxruntime"), self.threads)

    def close(self) -> None:
        """Nothing is held beyond the sessions."""


class OrtSession:
    """One ONNX Runtime session."""

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ):
        _share_arena()
        options = ort.SessionOptions()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.log_severity_level = 3  # warnings about shapes would drown the one-line errors
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception as e:
            reason = str(e).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime cannot load {path.name}: {reason}") from e
        self.provider = self._session.get_providers()[0]
        self._types = {i.name: _NUMPY[i.type] for i in self._session.get_inputs()}
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
            reason = str(e).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime failed on a graph: {reason}") from e

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
