"""A quantised graph whose Q/DQ pairs can be switched off one by one while it runs.

Each pair on an activation becomes `Where(wide[i], x, DequantizeLinear(QuantizeLinear(x)))`, with
`wide` a further input: one session answers what every single layer costs. Weights stay quantised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.disk.onnx_model import load_proto
from geomag_edge.errors import EngineError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.ort import inference_session

FLAGS = "wide"


def switchable(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """Adds the switches, in place.

    Args:
        model: with explicit Q/DQ; external data is not read.

    Returns:
        For each switch, the names of the nodes that read its activation.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    switches: list[tuple[str, ...]] = []
    for node in graph.node:
        nodes.append(node)
        quantized = made_by.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantized is None or quantized.op_type != "QuantizeLinear":
            continue
        restored, index = node.output[0], len(switches)
        switches.append(tuple(reader.name for reader in readers.get(restored, ())))
        flag, chosen = f"{FLAGS}_{index}", f"{restored}_switched"
        graph.initializer.append(numpy_helper.from_array(np.array(index, np.int64), f"{flag}_at"))
        nodes.append(helper.make_node("Gather", [FLAGS, f"{flag}_at"], [flag]))
        nodes.append(helper.make_node("Where", [flag, quantized.input[0], restored], [chosen]))
        for reader in readers.get(restored, ()):
            names = [chosen if name == restored else name for name in reader.input]
            del reader.input[:]
            reader.input.extend(names)
    del graph.node[:]
    graph.node.extend(nodes)
    if switches:
        shape = [len(switches)]
        graph.input.append(helper.make_tensor_value_info(FLAGS, TensorProto.BOOL, shape))
    return switches


class SwitchEngine:
    """ONNX Runtime on the CPU with switchable graphs; see `runtime.engine.Engine`.

    Attributes:
        switches: graph -> for each switch, the nodes that it feeds. Known once a graph is open.
        wide: (graph, node) pairs that run on what was not quantised. Nodes that read the same
            activation share a switch, which is off only if all of them are here.
    """

    name = "ort-cpu"

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None):
        self.bundle, self.precision, self.threads = bundle, precision, threads
        self.switches: dict[str, list[tuple[str, ...]]] = {}
        self.wide: Collection[tuple[str, str]] = frozenset()

    def session(self, graph: str) -> SwitchSession:
        """Opens a graph, its files checked first."""
        return SwitchSession(self, graph)

    def nodes(self) -> list[tuple[str, str]]:
        """Every node that reads a quantised activation, in the order of the chain's graphs."""
        every = [
            (graph, node)
            for graph, switches in self.switches.items()
            for nodes in switches
            for node in nodes
        ]
        return list(dict.fromkeys(every))

    def sharing(self, key: tuple[str, str]) -> set[tuple[str, str]]:
        """The nodes that read the same activation as this one, itself among them."""
        graph, node = key
        shared = {other for nodes in self.switches[graph] if node in nodes for other in nodes}
        return {(graph, other) for other in shared}

    def close(self) -> None:
        """Nothing is held beyond the sessions."""


class SwitchSession:
    """One graph of a `SwitchEngine`."""

    provider = "CPUExecutionProvider"

    def __init__(self, engine: SwitchEngine, graph: str):
        self._engine, self._graph = engine, graph
        path: Path = engine.bundle.graph(graph, engine.precision)
        model = load_proto(path)
        self._outputs = [output.name for output in model.graph.output]
        self._inputs = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in model.graph.input
        }
        engine.switches[graph] = switchable(model)
        try:
            self._session = inference_session(
                model.SerializeToString(), engine.threads, path.parent
            )
        except Exception as e:
            reason = str(e).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime cannot load {path.name}: {reason}") from e

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; the engine's `wide` decides."""
        arrays: dict[str, NDArray] = {
            name: np.ascontiguousarray(value, dtype=self._inputs[name])
            for name, value in feeds.items()
        }
        switches = self._engine.switches[self._graph]
        if switches:
            wide = {node for graph, node in self._engine.wide if graph == self._graph}
            arrays[FLAGS] = np.array([wide.issuperset(nodes) for nodes in switches])
        return dict(zip(self._outputs, self._session.run(None, arrays), strict=True))

    def close(self) -> None:
        """Drops the session, and with it its memory."""
        del self._session
