"""What one graph costs at given sizes: arithmetic, memory traffic, weights, live activations.

Shapes come from ONNX's own inference at fixed sizes, helped by folding the whole numbers that
shapes are made of. Needs `onnx` and reads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geomag_edge.disk.onnx_model import load_proto
from geomag_edge.errors import GeoMagError, MissingExtraError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Cost:
    """One run of a graph.

    Attributes:
        flops: multiply-adds times two, by the type that multiplies ("fp32", "fp16", "int8", ...).
        weight_bytes: of all initialisers, as stored.
        read_weight_bytes: of those that one run reads (an embedding table gives a few rows).
        traffic_bytes: weights, inputs and outputs of the layers that multiply, and the graph's own;
            the rest is taken to be fused with its neighbours.
        live_bytes: the most that intermediate tensors hold at once, inputs and outputs apart.
        input_bytes, output_bytes: of the graph.
        buffer_bytes: inputs and outputs without the cache's.
        kernels: layers that become a kernel of their own; `distinct_kernels`: without those of
            the same operator and shapes, which share their code.
        row_weight_bytes: of the weights that multiply more than one row.
    """

    flops: Mapping[str, float]
    weight_bytes: int
    read_weight_bytes: int
    traffic_bytes: int
    live_bytes: int
    input_bytes: int
    output_bytes: int
    buffer_bytes: int
    kernels: int
    distinct_kernels: int
    row_weight_bytes: int
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False, default_factory=dict)


class CostError(GeoMagError):
    """A graph's shapes could not be inferred."""


_CACHE = ("past_key_values.", "present.")

MULTIPLYING = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"})
_FREE = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "DequantizeLinear", "Shape"}
)
_FUSED = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Relu",
        "Gelu",
        "Sigmoid",
        "Tanh",
        "Erf",
        "Sqrt",
        "Reciprocal",
        "Pow",
        "Neg",
        "Cast",
        "Where",
        "Clip",
        "Exp",
        "QuantizeLinear",
        "Min",
        "Max",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "And",
        "Or",
        "Not",
        "IsNaN",
        "Expand",
        "Sin",
        "Cos",
        "Swish",
        "Transpose",
        "Slice",
        "Concat",
        "Softmax",
    }
)


def graph_cost(path: Path, sizes: Mapping[str, int]) -> Cost:
    """The cost of one run of an ONNX file.

    Args:
        path: the file; its external data is not read.
        sizes: a size for each dynamic axis of `geomag_edge.graphs` that the graph has.

    Raises:
        MissingExtraError: onnx is not installed.
        CostError: a shape depends on more than the sizes.
    """
    model = fixed(path, sizes)
    graph = model.graph
    shapes, types = _tensors(graph)
    initial = {t.name: t for t in graph.initializer}
    inputs = [v.name for v in graph.input if v.name not in initial]
    outputs = [v.name for v in graph.output]

    def nbytes(name: str) -> int:
        return _bytes_of(shapes[name], types[name], name, path)

    origins = _origins(graph.node)
    flops: dict[str, float] = {}
    touched = 0
    kernels = 0
    read = 0
    rowed: set[str] = set()
    distinct = set()
    for node in graph.node:
        used = [i for i in node.input if i]
        if node.op_type in MULTIPLYING:
            kind = _kind(node, origins, types)
            flops[kind] = flops.get(kind, 0.0) + _flops(node, shapes)
            touched += sum(
                nbytes(i) for i in used if i not in initial and origins(i) not in initial
            )
            touched += sum(nbytes(o) for o in node.output if o)
            rows = math.prod(shapes[node.output[0]][:-1])
            if node.op_type in ("MatMul", "Gemm") and rows > 1:
                rowed |= {origins(i) for i in used[:2]} & initial.keys()
        for name in used:
            if name in initial:
                whole = nbytes(name)
                looked_up = node.op_type in ("Gather", "GatherND") and node.input[0] == name
                read += min(whole, nbytes(node.output[0])) if looked_up else whole
        if node.op_type not in _FREE | _FUSED:
            kernels += 1
            distinct.add((node.op_type, *(shapes[i] for i in used)))
    given = sum(nbytes(n) for n in inputs)
    taken = sum(nbytes(n) for n in outputs)
    return Cost(
        flops=flops,
        weight_bytes=sum(
            _bytes_of(tuple(t.dims), t.data_type, t.name, path) for t in initial.values()
        ),
        read_weight_bytes=read,
        traffic_bytes=touched + read + given + taken,
        live_bytes=_live(graph, nbytes, initial, inputs, outputs),
        input_bytes=given,
        output_bytes=taken,
        buffer_bytes=sum(nbytes(n) for n in (*inputs, *outputs) if not n.startswith(_CACHE)),
        kernels=kernels,
        distinct_kernels=len(distinct),
        row_weight_bytes=sum(nbytes(n) for n in rowed),
        shapes=shapes,
    )


def fixed(path: Path, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The model with its dynamic axes fixed and every shape inferred.

    Raises:
        MissingExtraError: onnx is not installed.
        CostError: a shape depends on more than the sizes.
    """
    try:
        from onnx import shape_inference
    except ImportError as e:
        raise MissingExtraError(
            "the fit check reads graphs with the package 'onnx', which is not installed: "
            "pip install onnx"
        ) from e
    model = load_proto(path)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                if dim.dim_param not in sizes:
                    raise CostError(f"{path.name}: no size given for the axis {dim.dim_param}")
                size = int(sizes[dim.dim_param])
                dim.Clear()
                dim.dim_value = size
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del model.graph.value_info[:]
    for _ in range(8):
        model = shape_inference.infer_shapes(model, data_prop=True)
        if not _unknown(model.graph):
            return model
        if not _fold(model):
            break
    node, name = _unknown(model.graph)[0]
    raise CostError(f"{path.name}: the shape of {name!r} after node {node} could not be inferred")


def _unknown(graph: onnx.GraphProto) -> list[tuple[str, str]]:
    shapes, _ = _tensors(graph)
    return [(n.name, o) for n in graph.node for o in n.output if o and o not in shapes]


def _tensors(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Every tensor's shape (if wholly known) and element type."""
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
            types[value.name] = tensor.elem_type
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        types[tensor.name] = tensor.data_type
    return shapes, types


_FOLDED = frozenset(
    {
        "Shape",
        "Size",
        "Range",
        "Gather",
        "Slice",
        "Concat",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Min",
        "Max",
        "Cast",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Where",
        "Equal",
        "Less",
        "Greater",
        "ConstantOfShape",
        "ReduceProd",
        "ReduceMax",
        "Neg",
        "Not",
        "Constant",
        "Expand",
    }
)
_SMALL = 65536
"""Elements of a folded tensor at most: shapes and ranges of positions, not weights."""


def _fold(model: onnx.ModelProto) -> bool:
    """Replaces nodes that compute whole numbers from known ones by their results."""
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    shapes, _ = _tensors(graph)
    known: dict[str, Any] = {}
    for tensor in graph.initializer:
        whole = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        small = math.prod(tensor.dims) <= _SMALL
        if whole and small and tensor.data_location != onnx.TensorProto.EXTERNAL:
            known[tensor.name] = numpy_helper.to_array(tensor)
    left, changed = [], False
    for node in graph.node:
        made = None
        used = [i for i in node.input if i]
        if node.op_type == "Shape" and used[0] in shapes:
            attributes = {a.name: a.i for a in node.attribute}
            axes = slice(attributes.get("start", 0), attributes.get("end"))
            made = np.array(shapes[used[0]][axes], np.int64)
        elif node.op_type in _FOLDED and node.domain == "" and all(i in known for i in used):
            opsets = list(model.opset_import)
            one = onnx.helper.make_graph(
                [node],
                "one",
                [
                    onnx.helper.make_tensor_value_info(
                        i, onnx.helper.np_dtype_to_tensor_dtype(known[i].dtype), known[i].shape
                    )
                    for i in dict.fromkeys(used)
                ],
                [onnx.ValueInfoProto(name=node.output[0])],
            )
            maker = onnx.helper.make_model(one, opset_imports=opsets, ir_version=model.ir_version)
            results: Any = ReferenceEvaluator(maker).run(None, known)
            result = np.asarray(results[0])
            made = result if result.size <= _SMALL and result.dtype.kind in "ib" else None
        if made is None or len(node.output) != 1:
            left.append(node)
            continue
        known[node.output[0]] = made
        graph.initializer.append(numpy_helper.from_array(made, node.output[0]))
        changed = True
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in left]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    return changed


_BITS = {
    "FLOAT": 32, "FLOAT16": 16, "BFLOAT16": 16, "DOUBLE": 64, "INT64": 64, "INT32": 32, "INT8": 8,
    "UINT8": 8, "BOOL": 8, "INT16": 16, "UINT16": 16, "INT4": 4, "UINT4": 4, "FLOAT8E4M3FN": 8,
    "FLOAT8E5M2": 8,
}  # fmt: skip


def _bytes_of(shape: tuple[int, ...], kind: int, name: str, path: Path) -> int:
    import onnx

    try:
        bits = _BITS[onnx.TensorProto.DataType.Name(kind)]
    except KeyError as e:
        raise CostError(f"{path.name}: {name!r} has an element type without a known size") from e
    return -(-math.prod(shape) * bits // 8)


_KINDS = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "fp16", "INT8": "int8", "INT4": "int4",
          "FLOAT8E4M3FN": "fp8"}  # fmt: skip


def _origins(nodes: Iterable[Any]) -> Any:
    """name -> the tensor that a dequantise node (through reshapes) reads, or the name itself."""
    maker = {o: n for n in nodes for o in n.output}

    def origin(name: str) -> str:
        seen = name
        while (node := maker.get(seen)) is not None:
            if node.op_type == "DequantizeLinear":
                return str(node.input[0])
            if node.op_type not in ("Reshape", "Transpose", "Cast", "Squeeze", "Unsqueeze"):
                break
            seen = node.input[0]
        return name

    return origin


def _kind(node: Any, origins: Any, types: Mapping[str, int]) -> str:
    """The type that a layer multiplies in: the wider one of its two operands."""
    import onnx

    names = [
        _KINDS.get(onnx.TensorProto.DataType.Name(types[origins(i)]), "fp32")
        for i in node.input[:2]
    ]
    order = ["fp32", "fp16", "fp8", "int8", "int4"]
    return min(names, key=order.index)


def _flops(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    out = shapes[node.output[0]]
    first, second = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type == "MatMul":
        return 2.0 * math.prod(out) * first[-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2.0 * math.prod(out) * first[0 if transposed else 1]
    if node.op_type == "Conv":
        return 2.0 * math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2.0 * math.prod(first) * math.prod(second[1:])
    # Attention [b,h,t,d] x [b,h,s,d]: scores and values
    return 4.0 * math.prod(first) * second[-2]


def _live(
    graph: Any, nbytes: Any, initial: Mapping[str, Any], inputs: list[str], outputs: list[str]
) -> int:
    """The most bytes alive at once in the file's order; views and fused values hold none."""
    roots: dict[str, str] = {}

    def root(name: str) -> str:
        while name in roots:
            name = roots[name]
        return name

    for node in graph.node:
        if node.op_type in _FREE and node.input:
            roots[node.output[0]] = node.input[0]
    last: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in node.input:
            if name:
                last[root(name)] = i
    apart = {root(n) for n in (*initial, *inputs, *outputs)}
    alive: dict[str, int] = {}
    peak = 0
    for i, node in enumerate(graph.node):
        for name in node.output:
            if name and name not in roots and name not in apart and name in last:
                alive[name] = nbytes(name)
        # A transposed convolution is a matrix product, scattered: its sides exist twice.
        twice = node.op_type == "ConvTranspose"
        copies = nbytes(node.input[0]) + nbytes(node.output[0]) if twice else 0
        peak = max(peak, sum(alive.values()) + copies)
        for name in {root(n) for n in node.input if n}:
            if last.get(name) == i:
                alive.pop(name, None)
    return peak
