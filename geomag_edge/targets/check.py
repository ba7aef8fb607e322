"""What a target refuses in a graph, found at export and not on the device.

Each rule reads the ONNX file alone; its message names the graph, the node and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.errors import MissingExtraError, TargetError
from geomag_edge.targets import Target

if TYPE_CHECKING:
    import onnx


def check_graph(path: Path, target: Target) -> None:
    """Refuses a graph that a target cannot take.

    Args:
        path: an ONNX file; its external data is not read.
        target: the rules.

    Raises:
        TargetError: names the graph, the first node at fault, the cause and the remedy.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as e:
        raise MissingExtraError(
            "checking a graph against a target needs the package 'onnx': pip install onnx"
        ) from e
    model = onnx.load(str(path), load_external_data=False)
    found = list(problems(model, target))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise TargetError(f"target {target.name!r} cannot take {path.name}: {found[0]}{more}")


def problems(model: onnx.ModelProto, target: Target) -> Iterator[str]:
    """Everything that the target refuses in a model, one sentence each."""
    yield from _operators(model, target)
    yield from _attention(model, target)
    yield from _opset(model, target)
    yield from _types(model, target)
    if target.layer_norm == "whole":
        yield from _layer_norms(model)
    if target.flavour is not None:
        yield from _quantisation(model)
        yield from _ranks(model)


def _opset(model: onnx.ModelProto, target: Target) -> Iterator[str]:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > target.opset_max:
            yield (
                f"it has opset {entry.version}, the newest that is read there is "
                f"{target.opset_max}; export with --target {target.name}"
            )


def _operators(model: onnx.ModelProto, target: Target) -> Iterator[str]:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            if target.flavour is None and any(
                (f.domain, f.name) == (node.domain, node.op_type) for f in model.functions
            ):
                continue
            if target.flavour is None and node.domain == "com.microsoft":
                continue
            yield (
                f"{_at(node)} is of the domain {node.domain!r}, for which there is no plugin "
                "there; keep it outside of the engine"
            )
        elif target.operators is not None and node.op_type not in target.operators:
            yield f"{_at(node)} is not among its operators; export with --target {target.name}"


def _attention(model: onnx.ModelProto, target: Target) -> Iterator[str]:
    for node in model.graph.node:
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            continue
        if target.attention == "decomposed" and target.operators is None:
            yield f"{_at(node)} must be decomposed; export with --target {target.name}"
        if target.flavour is None:
            continue
        if len([o for o in node.output if o]) > 1:
            yield f"{_at(node)} has several outputs, one is taken; keep the cache outside of it"
        if any(i for i in list(node.input)[4:6]):
            yield f"{_at(node)} has a past of its own; concatenate the cache before it"


def _types(model: onnx.ModelProto, target: Target) -> Iterator[str]:
    import onnx

    names = {"INT4": "int4", "UINT4": "int4", "FLOAT8E4M3FN": "fp8", "FLOAT8E5M2": "fp8",
             "INT8": "int8", "FLOAT16": "fp16"}  # fmt: skip
    seen = set()
    for tensor in model.graph.initializer:
        kind = names.get(onnx.TensorProto.DataType.Name(tensor.data_type))
        if kind and kind not in target.dtypes and kind not in seen:
            seen.add(kind)
            yield f"the weight {tensor.name!r} is {kind}, it takes {', '.join(target.dtypes)}"


def _layer_norms(model: onnx.ModelProto) -> Iterator[str]:
    """x - mean(x) whose square is averaged again: a LayerNormalization in pieces.

    In half precision TensorRT 10.3 loses most of a vision transformer's accuracy on it, silently.
    """
    maker = {o: n for n in model.graph.node for o in n.output}

    def made_by(name: str, *operators: str) -> Any:
        node = maker.get(name)
        while node is not None and node.op_type == "Cast":
            node = maker.get(node.input[0])
        return node if node is not None and node.op_type in operators else None

    for node in model.graph.node:
        if node.op_type != "ReduceMean":
            continue
        square = made_by(node.input[0], "Pow", "Mul")
        centred = square and made_by(square.input[0], "Sub")
        mean = centred and made_by(centred.input[1], "ReduceMean")
        if mean and mean.input[0] == centred.input[0]:
            yield (
                f"{_at(node)} belongs to a LayerNormalization in pieces, which loses accuracy in "
                "half precision there; export it whole (opset 17 or later)"
            )


def _quantisation(model: onnx.ModelProto) -> Iterator[str]:
    import onnx
    from onnx import numpy_helper

    values = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is None:
            continue
        kind = onnx.TensorProto.DataType.Name(zero.data_type)
        if kind.startswith("UINT"):
            yield f"{_at(node)} is unsigned ({kind}); quantise symmetrically to signed integers"
        elif (
            kind in ("INT8", "INT4")
            and zero.data_location != onnx.TensorProto.EXTERNAL
            and numpy_helper.to_array(zero).astype("int32").any()
        ):
            yield f"{_at(node)} has a zero point other than 0; quantise symmetrically"


def _ranks(model: onnx.ModelProto) -> Iterator[str]:
    from onnx import shape_inference

    if not any(
        n.op_type in ("ArgMax", "ArgMin", "TopK", "TensorScatter") for n in model.graph.node
    ):
        return
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    dims = {
        v.name: v.type.tensor_type.shape.dim
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
        if v.type.tensor_type.HasField("shape")
    }
    for node in inferred.node:
        shape = dims.get(node.input[0]) if node.input else None
        if shape is None:
            continue
        if node.op_type in ("ArgMax", "ArgMin", "TopK") and len(shape) == 1:
            yield f"{_at(node)} runs over a tensor's only axis; export the bundle again"
        if node.op_type == "TensorScatter" and not shape[-2].HasField("dim_value"):
            yield f"{_at(node)} has a cache of no fixed length; give it one"


def _at(node: Any) -> str:
    return f"node {node.name or node.output[0]!r} ({node.op_type})"
