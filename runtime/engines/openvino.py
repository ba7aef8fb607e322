"""OpenVINO as an engine: `openvino`, on the CPU.

A graph's arithmetic is told to OpenVINO, never left to its default, which is bfloat16 wherever the
CPU has it: float32 keeps a bundle's answers, and bfloat16 is asked for by the precision `bf16`. In
an int8 graph, what is not quantised stays in float32, so that quantisation's loss, which the gate
has judged, is the only one, unless `int8+bf16` is asked for. Integer products are exact on every
CPU: where OpenVINO's would saturate, its Q/DQ are computed as what they say, in floats.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geomag_edge.cores import threads_of
from geomag_edge.errors import EngineError, MissingExtraError
from geomag_edge.graphs import ENCODER
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.engine import graph_set
from geomag_edge.runtime.engines.exact import PROBE, integer_error, is_exact, mentions
from geomag_edge.runtime.engines.sharing import has_threads

BF16_GRAPHS = frozenset({"encoder", "llm", "mask_head"})
"""What `bf16` runs in bfloat16. The others stay in float32: crops must be the exact ones, an
embedding is a look-up, and the projector is 1 % of the time but reads positions as sines of large
angles, which bfloat16 got 5 % wrong."""


WITHOUT_INTEGERS = {"LP_TRANSFORMS_MODE": False}
"""Leaves Q/DQ as they stand in the file. Without VNNI that takes hardly longer than integers."""


class OpenVinoEngine:
    """Opens a bundle's graphs as OpenVINO models on the CPU.

    Args:
        bundle: the bundle.
        precision: a set of its graphs; `bf16`, which runs the fp32 graphs in bfloat16; or
            `int8+bf16`, the int8 graphs with what is not quantised in bfloat16.
        threads: CPU threads of a graph; None is what this process may use (`geomag_edge.cores`).

    Raises:
        MissingExtraError: no OpenVINO.
        EngineError: bfloat16 on a CPU that has none.
    """

    name = "openvino"
    takes_several = True

    def __init__(self, bundle: Bundle, precision: str, threads: int | None):
        try:
            import openvino
        except ImportError as e:
            raise MissingExtraError(
                'the openvino engine needs OpenVINO: pip install "geomag-edge[openvino]"'
            ) from e
        self.bundle, self.precision, self.threads = bundle, precision, threads
        self._core = openvino.Core()
        has_threads(self._core)
        self._in_bf16 = graph_set(bundle, precision) != precision
        if self._in_bf16:
            bundle.record(ENCODER.name, graph_set(bundle, precision))  # refused on every CPU alike
            able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in able:
                raise EngineError(
                    f"this CPU has no bfloat16: use --precision {graph_set(bundle, precision)}"
                )

    def session(self, graph: str) -> OpenVinoSession:
        """Opens one graph, its files checked first."""
        if graph == "psc":
            from geomag_edge.cpp_ext.openvino_op import psc_crop_extension

            self._core.add_extension(psc_crop_extension())
        arithmetic = "bf16" if self._in_bf16 and graph in BF16_GRAPHS else "f32"
        stored = graph_set(self.bundle, self.precision)
        path = self.bundle.graph(graph, stored, "openvino")
        return OpenVinoSession(self._core, path, arithmetic, self.threads)

    @functools.cached_property
    def exact_integers(self) -> bool:
        """Whether int8 is computed exactly on this CPU, found by trying."""
        return is_exact(OpenVinoSession(self._core, PROBE, "f32", threads=1))

    def close(self) -> None:
        """Nothing is held beyond the sessions."""


class OpenVinoSession:
    """One compiled model and its request.

    Args:
        core: an `openvino.Core`.
        path: the graph.
        arithmetic: "f32" or "bf16", of whatever is not quantised.
        threads: CPU threads; None is what this process may use.

    Raises:
        InputError: no number of threads.
        EngineError: a graph that OpenVINO cannot load.
    """

    def __init__(self, core: Any, path: Path, arithmetic: str, threads: int | None = None):
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": arithmetic,
            "PERFORMANCE_HINT": "LATENCY",
            # Bound to cores, all processes of N threads would share the first N and leave the rest.
            "ENABLE_CPU_PINNING": False,
            # Where the CPU is able to, OpenVINO would round the activations before narrow weights.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if mentions(path, b"QuantizeLinear") and saturates():
            settings |= WITHOUT_INTEGERS
        if (threads := threads_of(threads)) is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
            self._request = self._compiled.create_infer_request()
        except Exception as e:
            raise EngineError(f"OpenVINO cannot load {path.name}: {_reason(e)}") from e
        has_threads(self._compiled, self._request)
        self._turn = threading.Lock()
        used = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        self.provider = f"OpenVINO CPU {used.to_string()}"
        self._inputs = {
            port.get_any_name(): port.get_element_type().to_dtype()
            for port in self._compiled.inputs
        }
        self._outputs = {
            port.get_any_name(): (port.get_element_type(), _least_shape(port.get_partial_shape()))
            for port in self._compiled.outputs
        }

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; kept values are `openvino.Tensor`s that no later run touches."""
        import openvino

        for name in feeds:
            if name not in self._inputs:
                have = ", ".join(self._inputs)
                raise EngineError(f"the graph has no input {name!r}: it has {have}")
        for name in self._inputs:
            if name not in feeds:
                raise EngineError(f"the graph needs the input {name!r}, which was not given")
        try:
            tensors, arrays = {}, []  # a shared tensor does not keep its array alive
            for name, dtype in self._inputs.items():
                value = feeds[name]
                if not isinstance(value, openvino.Tensor):
                    arrays.append(np.ascontiguousarray(value, dtype=dtype))
                    value = openvino.Tensor(arrays[-1], shared_memory=arrays[-1].size > 0)
                tensors[name] = value
            # Outputs are written where no earlier run's are, so none of them needs a copy.
            found = {name: openvino.Tensor(*form) for name, form in self._outputs.items()}
            with self._turn:  # there is one request, whatever thread asks
                for name, tensor in (tensors | found).items():
                    self._request.set_tensor(name, tensor)
                self._request.infer()
        except Exception as e:
            raise EngineError(f"OpenVINO failed on a graph: {_reason(e)}") from e
        return {name: t if name in keep else t.data for name, t in found.items()}

    def close(self) -> None:
        """Drops the request and the model, and with them their memory."""
        del self._request, self._compiled


@functools.cache
def saturates() -> bool:
    """Whether OpenVINO's integer products are cut to 16 bits on this CPU, found by trying: so it
    is without VNNI, and with oneDNN held to fewer instruction sets than the CPU has."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(PROBE), "CPU", {"INFERENCE_NUM_THREADS": 1})
    return integer_error(lambda x: compiled({"x": x})[0]) > 0


def _least_shape(shape: Any) -> Any:
    """An output's shape where it is fixed, else an empty one, which OpenVINO then enlarges."""
    import openvino

    return shape.to_shape() if shape.is_static else openvino.Shape([0])


def _reason(e: Exception) -> str:
    """The last line that says something: OpenVINO puts places in its own source before it."""
    lines = [line.strip() for line in str(e).splitlines()]
    return next((line for line in reversed(lines) if line), type(e).__name__)
