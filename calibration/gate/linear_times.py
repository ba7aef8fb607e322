"""What quantising one linear layer gains on an engine: each shape timed alone, wide and narrow.

A layer's time hardly depends on its values, and a model has few different layers, so every distinct
(operator, weight, activation) is built as a model of one layer, once in float32 and once with its
Q/DQ, and both are timed in turn. What an engine fuses across layers is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from geomag_edge.calibration.quantization.linears import Linear, find_linears
from geomag_edge.calibration.quantization.qdq import quantize_linears
from geomag_edge.calibration.quantization.scales import GraphScales, TensorScale
from geomag_edge.disk.onnx_model import load_ir, load_proto
from geomag_edge.errors import InputError
from geomag_edge.runtime.engines.engine import Session
from geomag_edge.runtime.engines.ort import inference_session

ROUNDS = 7

OpenSession = Callable[[Path], Session]
"""Opens one ONNX file on the engine in question."""


@dataclass(frozen=True)
class Shape:
    """What a layer's time depends on."""

    op: str
    weight: tuple[int, ...]
    activation: tuple[int, ...]
    attributes: tuple[tuple[str, str], ...]


def openers(threads: int | None) -> dict[str, OpenSession]:
    """Engines on which layers can be timed here; each is imported when it is opened."""

    def on_ort(path: Path) -> Session:
        from geomag_edge.runtime.engines.ort import OrtSession

        return OrtSession(path, threads)

    def on_openvino(path: Path) -> Session:
        import openvino

        from geomag_edge.runtime.engines.openvino import OpenVinoSession

        return OpenVinoSession(openvino.Core(), path, "f32", threads)

    return {"ort-cpu": on_ort, "openvino": on_openvino}


def activation_shapes(path: Path, inputs: Mapping[str, NDArray]) -> dict[str, tuple[int, ...]]:
    """node name -> shape of the activation that it reads, for one run of a float32 graph.

    Args:
        path: the graph.
        inputs: of that run.
    """
    linears = {linear.name: linear.tensor for linear in find_linears(load_ir(path))}
    model = load_proto(path)
    given = {value.name for value in model.graph.input}
    have = given | {value.name for value in model.graph.output}
    wanted = sorted(set(linears.values()) - have)
    kind = onnx.TensorProto.FLOAT
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, kind, None) for n in wanted)
    session = inference_session(model.SerializeToString(), weights=path.parent)
    names = [value.name for value in session.get_outputs()]
    shapes = {
        n: tuple(v.shape) for n, v in zip(names, session.run(None, dict(inputs)), strict=True)
    }
    shapes |= {name: tuple(value.shape) for name, value in inputs.items()}
    return {node: shapes[tensor] for node, tensor in linears.items()}


def shape_of(linear: Linear, activation: tuple[int, ...]) -> Shape:
    """The key under which a layer's time is known."""
    assert linear.weight.const_value is not None
    attributes = tuple(
        (name, str(attribute.value)) for name, attribute in sorted(linear.node.attributes.items())
    )
    weight = tuple(int(d) for d in linear.weight.const_value.shape.numpy())
    return Shape(linear.node.op_type, weight, activation, attributes)


def gain_ms(
    linear: Linear, activation: tuple[int, ...], open_session: OpenSession, folder: Path
) -> float:
    """Milliseconds that a run of this layer is shorter with Q/DQ (negative: longer).

    Args:
        linear: of a float32 model.
        activation: the shape of its input.
        open_session: opens a file on the engine.
        folder: scratch.
    """
    feeds = {"x": np.random.default_rng(0).normal(size=activation).astype(np.float32)}
    sessions = []
    for narrow in (False, True):
        path = folder / f"{'narrow' if narrow else 'wide'}.onnx"
        ir.save(_alone(linear, activation, narrow), path)
        sessions.append(open_session(path))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        for session, seen in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            seen.append((time.perf_counter() - start) * 1e3)
    for session in sessions:
        session.close()
    wide, narrow_ms = (median(seen[1:]) for seen in times)  # the first run warms up
    return wide - narrow_ms


def _alone(linear: Linear, activation: tuple[int, ...], narrow: bool) -> ir.Model:
    """A model of this one layer."""
    weight = linear.weight.const_value
    if weight is None:
        raise InputError(f"layer {linear.name} has no constant weight")
    held = ir.tensor(np.ascontiguousarray(weight.numpy(), dtype=np.float32), name="w")
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(activation))
    w = ir.Value(
        name="w",
        type=ir.TensorType(held.dtype),
        shape=ir.Shape(held.numpy().shape),
        const_value=held,
    )
    attributes: list[Any] = list(linear.node.attributes.values())
    node = ir.Node("", linear.node.op_type, [x, w], attributes, name="layer", num_outputs=1)
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 21}, name="layer"
    )
    model = ir.Model(graph, ir_version=10)
    if narrow:
        thresholds = dict.fromkeys(("minmax", "percentile", "entropy", "mse"), 4.0)
        quantize_linears(model, GraphScales("", {"x": TensorScale(thresholds, 1)}), (), "minmax")
    return model
