"""Recipe `fp16`: a whole float32 graph in half precision, and what must not be.

A pass over the ONNX graph alone, so it needs no checkpoint and no torch, and it works on graphs
that hold Q/DQ. Other converters were tried on the shipped model's LLM: ONNX Runtime's halves the
rotary angles too (at position 3000 the keys are then off by 14 % of their scale, here by 0.06 %),
and what onnxconverter-common 1.16 writes is refused by ONNX Runtime, for a Cast whose declared type
it changed and whose own it did not. Both hold every weight in memory twice.

Three rules decide a node's precision:

- What multiplies matrices or normalises rows runs in half (`LayerNormalization` and
  `RMSNormalization` stay whole: their `stash_type` keeps the sums in float32).
- What half cannot hold stays wide (float32): positions and angles, running sums, powers, means,
  norms. Element-wise nodes that take such a value stay wide with it, until a matrix product.
- What is read by wide nodes alone is wide as well, since a cast in front costs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from geomag_edge.errors import ExportError, InputError
from geomag_edge.graphs import GraphSpec

HALF_MAX = float(np.finfo(np.float16).max)

COMPUTE = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "DequantizeLinear",
        "Gelu",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "QuantizeLinear",
        "RMSNormalization",
        "RotaryEmbedding",
        "Softmax",
    }
)
"""Run in half whatever they are given."""

WIDE = frozenset(
    {
        "Cos",
        "CumSum",
        "Exp",
        "Log",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Sin",
        "Sqrt",
    }
)
"""Overflow in half, or lose what makes them useful."""

SAFE_AGAIN = frozenset({"Cos", "Sin"})
"""Wide nodes whose results fit half well, so nothing behind them has to be wide."""


def to_half(model: ir.Model, spec: GraphSpec, keep: Collection[str] = ()) -> ir.Model:
    """Casts a float32 graph to float16, in place.

    Weights are cast while they are written, one at a time; scales of Q/DQ become float16 and
    their integers stay. Constants beyond half's range (masks of -3.4e38) become its largest.

    Args:
        model: a float32 graph, its weights in memory or mapped.
        spec: its contract: ports of dtype `float` become float16, all others stay.
        keep: names of nodes that stay float32 with casts around them.

    Returns:
        The same model.

    Raises:
        InputError: `keep` names a node that the graph does not have.
        ExportError: the graph has nested graphs, which this pass does not look into.
    """
    graph = model.graph
    unknown = sorted(set(keep) - {node.name or "" for node in graph})
    if unknown:
        raise InputError(
            f"graph {spec.name} has no node {unknown[0]!r} to keep in float32: names are those of "
            "the ONNX nodes"
        )
    if any(attr.type == ir.AttributeType.GRAPH for n in graph for attr in n.attributes.values()):
        raise ExportError(f"graph {spec.name} has nested graphs and cannot be cast to half")
    # Names the exporter left out, constants as initialisers, and every value's type.
    passes.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    passes.ShapeInferencePass()(model)
    half_ports = {p.name for p in (*spec.inputs, *spec.outputs) if p.dtype == "float"}
    wide = _wide_nodes(model, half_ports, frozenset(keep))
    _Caster(model, wide, half_ports).run()
    return model


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer()


@cache
def _takes_half(domain: str, op_type: str, version: int, index: int) -> bool:
    """Whether an op's input may be float16 by its schema (the scales of Resize may not)."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return domain == "com.microsoft"
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return "tensor(float16)" in allowed.get(formal.type_str, [formal.type_str])


def _wide_nodes(model: ir.Model, half_ports: set[str], keep: frozenset[str]) -> set[ir.Node]:
    """The nodes that stay float32."""
    graph = model.graph
    wide: set[ir.Node] = set()
    sticky = {v for v in graph.inputs if _is_float(v) and v.name not in half_ports}
    for node in graph:
        given = [v for v in node.inputs if v is not None and _is_float(v)]
        elementwise = node.op_type not in COMPUTE and node.domain == ""
        if (
            node.name in keep
            or node.domain not in ("", "com.microsoft")
            or node.op_type in WIDE
            or (node.op_type == "Cast" and not given)  # of whole numbers: positions, sizes
            or _fine(node)
            or (elementwise and any(v in sticky for v in given))
        ):
            wide.add(node)
        if node in wide and node.op_type not in SAFE_AGAIN:
            sticky.update(v for v in node.outputs if _is_float(v))
    for node in reversed(list(graph)):
        results = [v for v in node.outputs if _is_float(v)]
        if node in wide or node.op_type in COMPUTE or node.domain or not results:
            continue
        if all(_read_wide(v, wide, half_ports) for v in results):
            wide.add(node)
    return wide


def _read_wide(value: ir.Value, wide: set[ir.Node], half_ports: set[str]) -> bool:
    if value.is_graph_output() and value.name in half_ports:
        return False
    return all(node in wide for node, _ in value.uses())


def _fine(node: ir.Node) -> bool:
    """Whether a Q/DQ node's scales are too fine for half: off by 0.2 % of the largest or more."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    scale = node.inputs[1]
    if scale is None or scale.const_value is None or not _is_float(scale):
        return False
    exact = scale.const_value.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(exact.astype(np.float16).astype(np.float32) - exact).max(initial=0.0)
    return not off < 2e-3 * np.abs(exact).max(initial=1e-30)


def half_array(array: np.ndarray) -> np.ndarray:
    """float32 -> float16; finite values beyond half's range become its largest."""
    clipped = np.clip(array, -HALF_MAX, HALF_MAX)
    return np.where(np.isfinite(array), clipped, array).astype(np.float16)


class _Caster:
    """Gives every node its inputs in its precision; a value is cast at most once."""

    def __init__(self, model: ir.Model, wide: set[ir.Node], half_ports: set[str]):
        self.graph, self.wide, self.half_ports = model.graph, wide, half_ports
        self.versions = {**model.opset_imports}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.halved: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        graph = self.graph
        # Decided before any type changes: which inputs and outputs of which node are floats.
        nodes = list(graph)
        takes = {n: [i for i, v in enumerate(n.inputs) if _is_float(v)] for n in nodes}
        gives = {n: [v for v in n.outputs if _is_float(v)] for n in nodes}
        float_outputs = [v for v in graph.outputs if _is_float(v)]
        for value in graph.inputs:
            if value.name in self.half_ports and _is_float(value):
                value.dtype = ir.DataType.FLOAT16
        for node in nodes:
            for i in takes[node]:
                given = node.inputs[i]
                assert given is not None
                node.replace_input_with(i, self._as(given, self._wanted(node, i), node))
            if node not in self.wide:
                for value in gives[node]:
                    value.dtype = ir.DataType.FLOAT16
                _set_type_attributes(node)
        for value in float_outputs:
            self._declare(value)

    def _wanted(self, node: ir.Node, index: int) -> ir.DataType:
        version = self.versions.get(node.domain, 1)
        if node in self.wide or not _takes_half(node.domain, node.op_type, version, index):
            return ir.DataType.FLOAT
        return ir.DataType.FLOAT16

    def _as(self, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
        """The value in a precision, from a cast right behind where it is made."""
        if value.dtype == dtype:
            return value
        if _is_constant(value):
            return self._constant(value)
        if (value, dtype) not in self.casts:
            node = _cast(value, dtype)
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(user, node)
            else:
                self.graph.insert_after(producer, node)
            self.casts[value, dtype] = node.outputs[0]
        return self.casts[value, dtype]

    def _constant(self, value: ir.Value) -> ir.Value:
        """A weight in half, cast when it is written."""
        if value not in self.halved:
            tensor = value.const_value
            assert tensor is not None
            name = f"{value.name}_half"
            lazy = ir.LazyTensor(
                _halve(tensor),
                dtype=ir.DataType.FLOAT16,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
            made = ir.Value(
                name=name,
                shape=value.shape,
                type=ir.TensorType(ir.DataType.FLOAT16),
                const_value=lazy,
            )
            self.graph.register_initializer(made)
            self.halved[value] = made
        made = self.halved[value]
        if len(value.uses()) == 1 and not value.is_graph_output():
            # The caller is about to take the last reader away.
            self.graph.initializers.pop(value.name or "", None)
        return made

    def _declare(self, value: ir.Value) -> None:
        """Casts an output to what its port declares; its name stays on the output."""
        wanted = ir.DataType.FLOAT16 if value.name in self.half_ports else ir.DataType.FLOAT
        if value.dtype == wanted:
            return
        index = self.graph.outputs.index(value)
        name = value.name
        value.name = f"{name}_before_cast"
        node = _cast(value, wanted)
        node.outputs[0].name = name
        producer = value.producer()
        assert producer is not None
        self.graph.insert_after(producer, node)
        self.graph.outputs[index] = node.outputs[0]


def _halve(tensor: ir.TensorProtocol) -> Callable[[], ir.Tensor]:
    return lambda: ir.Tensor(half_array(tensor.numpy()))


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    suffix = "half" if dtype == ir.DataType.FLOAT16 else "wide"
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_to_{suffix}")
    made = node.outputs[0]
    made.name, made.dtype, made.shape = f"{value.name}_{suffix}", dtype, value.shape
    return node


def _set_type_attributes(node: ir.Node) -> None:
    """Results whose type is an attribute, not an input's."""
    for name in _type_attributes(node):
        attr = node.attributes.get(name)
        if attr is not None and attr.as_int() == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT16))
    if node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        fill = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
        if fill.dtype == np.float32:
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(half_array(fill)))


def _type_attributes(node: ir.Node) -> Iterable[str]:
    return {"Cast": ("to",), "DequantizeLinear": ("output_dtype",)}.get(node.op_type, ())
