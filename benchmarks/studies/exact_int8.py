"""Every int8 layer of a bundle against exact integer arithmetic, on this machine's CPU engines.

    python -m geomag_edge.benchmarks.studies.exact_int8 --bundle BUNDLE [--precision int8]

Each layer with quantised weights is cut out of its graph with its own weights and scales and asked
alone, by activations that are whole steps: random ones, and ones at the ends of their range, where
sums of pairs of products leave 16 bits. So no rounding of an activation is left to chance and what
differs is the integer product. Layers with weights in blocks get activations of one magnitude,
which ONNX Runtime's rounding of them to 8 bits leaves as they are. `as opened by others` is ONNX
Runtime with its defaults. No time is taken. The last line of stdout is one JSON.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.errors import EngineError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.ort import OrtSession

ROWS, SIDE = 9, 8
"""Rows of a matrix product and the least side of a convolution's input."""
LINEARS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
FORMS = {"ort-cpu": "onnxruntime", "openvino": "openvino"}


@dataclass
class Layer:
    """One layer cut out: a model of input `x`, weights in steps, step sizes, the input's shape."""

    graph: str
    node: onnx.NodeProto
    model: onnx.ModelProto
    steps: NDArray[np.int8]
    weight_step: NDArray[np.float32]
    step: float
    shape: tuple[int, ...]

    @property
    def in_blocks(self) -> bool:
        """Whether rows of the weight share scales block by block."""
        return self.weight_step.ndim == 2


def main() -> None:
    """Parses, compares, writes the result."""
    args = parser_of(__doc__, bundle=REQUIRED, precision="int8", name="nano").parse_args()
    report = measure(Bundle.open(args.bundle), args.precision)
    publish(report, as_markdown(report), args.results, f"exact_int8_{args.name}")


def measure(bundle: Bundle, precision: str) -> dict[str, Any]:
    """The largest error of every engine's layers, over each layer's own scale, by graph."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for engine, form in FORMS.items():
            for graph in CHAIN:
                layers = list(layers_of(bundle.graph(graph, precision, form), graph))
                if not layers:
                    continue
                errors, others = [], []
                for layer in layers:
                    path = Path(folder) / "layer.onnx"
                    onnx.save(layer.model, path)
                    for q in activations(layer, rng):
                        x, right = q * np.float32(layer.step), exact(layer, q)
                        scale = max(float(np.abs(right).max()), 1e-12)
                        got = opened(engine, path).run({"x": x})["y"]
                        errors.append(float(np.abs(got - right).max()) / scale)
                        if engine == "ort-cpu":
                            plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
                            got = plain.run(None, {"x": x})[0]
                            others.append(float(np.abs(got - right).max()) / scale)
                rows.append(
                    {"engine": engine, "graph": graph, "layers": len(layers),
                     "error": max(errors), "as_opened_by_others": max(others, default=None)}
                )  # fmt: skip
    return {
        "command": "python -m geomag_edge.benchmarks.studies.exact_int8 --bundle BUNDLE",
        "bundle": bundle.root.resolve().name,
        "precision": precision,
        "machine": machine(None, ("onnxruntime", "openvino", "onnx", "numpy")),
        "rows": rows,
    }


def opened(engine: str, path: Path) -> Any:
    """A layer on an engine, as the runtime opens graphs."""
    if engine == "ort-cpu":
        return OrtSession(path, threads=1)
    try:
        import openvino
    except ImportError as e:
        raise EngineError('openvino is not installed: pip install "geomag-edge[openvino]"') from e
    from geomag_edge.runtime.engines.openvino import OpenVinoSession

    return OpenVinoSession(openvino.Core(), path, "f32", threads=1)


def layers_of(path: Path, graph: str) -> Iterator[Layer]:
    """The layers of a graph whose weights are int8 constants."""
    model = onnx.load(path)
    made = {output: node for node in model.graph.node for output in node.output}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    [opset] = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    for node in model.graph.node:
        weight = made.get(node.input[1]) if node.op_type in LINEARS else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        steps = constants.get(weight.input[0])
        if steps is None or steps.dtype != np.int8:
            continue
        restored = made.get(node.input[0])
        narrow = restored is not None and restored.op_type == "DequantizeLinear"
        nodes = [weight, node]
        step = 1 / 64
        if narrow and restored is not None:
            nodes = [made[restored.input[0]], restored, *nodes]
            step = float(constants[restored.input[1]])
        shape = _shape(node, steps)
        yield Layer(
            graph, node, _cut(nodes, node, shape, constants, opset), steps,
            constants[weight.input[1]].astype(np.float32), step, shape,
        )  # fmt: skip


def _shape(node: onnx.NodeProto, steps: NDArray) -> tuple[int, ...]:
    if node.op_type == "MatMul":
        return ROWS, steps.shape[0]
    if node.op_type == "Gemm":
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        return ROWS, steps.shape[1 if turned else 0]
    side = max(SIDE, 2 * steps.shape[2])
    return 1, steps.shape[1 if node.op_type == "Conv" else 0], side, side


def _cut(
    nodes: list[onnx.NodeProto],
    last: onnx.NodeProto,
    shape: tuple[int, ...],
    constants: dict[str, NDArray],
    opset: int,
) -> onnx.ModelProto:
    """The nodes as a model of their own, without the layer's bias."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    kept[0 if len(kept) > 2 else -1].input[0] = "x"
    kept[-1].output[0] = "y"
    del kept[-1].input[2:]
    names = {name for node in kept for name in node.input if name in constants}
    graph = helper.make_graph(
        kept,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(constants[name], name) for name in sorted(names)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def activations(layer: Layer, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Steps [shape]: at one end, at either end and, where they stay as they are, anywhere."""
    ends = rng.choice([-127.0, 127.0], layer.shape)
    found = [np.full(layer.shape, 127.0), ends]
    if not layer.in_blocks:
        found.append(rng.integers(-127, 128, layer.shape).astype(float))
    return [q.astype(np.float32) for q in found]


def exact(layer: Layer, q: NDArray[np.float32]) -> NDArray[np.float64]:
    """The layer in whole numbers (as float64, which holds them), times its steps."""
    weight = layer.steps.astype(np.float64)
    if layer.in_blocks:
        block = layer.steps.shape[0] // layer.weight_step.shape[0]
        weight = weight * np.repeat(layer.weight_step.astype(np.float64), block, axis=0)
        return q.astype(np.float64) @ weight * layer.step
    node = onnx.NodeProto.FromString(layer.node.SerializeToString())
    del node.input[:]
    node.input.extend(["x", "w"])
    node.output[0] = "y"
    kind = TensorProto.DOUBLE
    graph = helper.make_graph(
        [node],
        "exact",
        [helper.make_tensor_value_info(n, kind, None) for n in ("x", "w")],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    feeds = {"x": q.astype(np.float64), "w": weight}
    whole = np.asarray(next(iter(ReferenceEvaluator(model).run(None, feeds))))
    scale = layer.weight_step.astype(np.float64) * layer.step
    return whole * (scale.reshape(1, -1, 1, 1) if whole.ndim == 4 else scale)


def as_markdown(report: dict[str, Any]) -> str:
    """A table, by engine and graph."""
    said = f"{described(report['machine'])}. Largest error of any layer over that layer's scale."
    rows = (
        (row["engine"], row["graph"], row["layers"], f"{row['error']:.1e}",
         "-" if row["as_opened_by_others"] is None else f"{row['as_opened_by_others']:.1e}")
        for row in report["rows"]
    )  # fmt: skip
    title = f"int8 layers of `{report['bundle']}` against exact integer arithmetic"
    table = table_of("engine | graph | layers | error | as opened by others", rows)
    return page_of(title, report, said, table)


if __name__ == "__main__":
    main()
