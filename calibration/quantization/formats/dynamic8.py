"""Linear layers in int8 with activations measured while they run: ONNX Runtime's form of an LLM.

The standard pair DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime turns into one kernel
each. It needs no calibration, and a prompt's outliers do not depend on what calibration saw. Its
weights are the integers and scales that `qdq` writes. TensorRT takes no such graph.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from geomag_edge.calibration.quantization.linears import Linear, find_linears
from geomag_edge.calibration.quantization.nodes import constant
from geomag_edge.calibration.quantization.qdq import quantize_weight


def dynamic_int8(model: ir.Model, keep: Collection[str] = frozenset()) -> list[str]:
    """Turns a decoder's linear layers (MatMul with a constant weight) to int8, in place.

    Args:
        model: float32; ONNX Runtime has no such kernels for half.
        keep: names of nodes that stay wide.

    Returns:
        The names of the quantised nodes.
    """
    chosen = [
        linear
        for linear in find_linears(model)
        if linear.node.op_type == "MatMul"
        and linear.name not in keep
        and linear.weight.const_value is not None
        and linear.weight.const_value.dtype == ir.DataType.FLOAT
    ]
    activations: dict[ir.Value, ir.Node] = {}
    weights: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
    for linear in chosen:
        if linear.activation not in activations:
            name = linear.activation.name
            node = ir.node(
                "DynamicQuantizeLinear", [linear.activation], num_outputs=3, name=f"{name}_dynamic"
            )
            for value, suffix in zip(node.outputs, ("u8", "step", "zero"), strict=True):
                value.name = f"{name}_{suffix}"
            model.graph.insert_before(linear.node, node)
            activations[linear.activation] = node
        if linear.weight not in weights:
            weights[linear.weight] = _weight(model, linear)
        _multiply(model, linear, activations[linear.activation], weights[linear.weight])
    for weight in weights:
        if not weight.uses() and not weight.is_graph_output():
            model.graph.initializers.pop(weight.name or "", None)
    return [linear.name for linear in chosen]


def _weight(model: ir.Model, linear: Linear) -> tuple[ir.Value, ir.Value, ir.Value]:
    """int8[K,N], f32[N] scales, and int8[N] zeros (without them kernels are not fused)."""
    name = linear.weight.name
    assert linear.weight.const_value is not None
    values, steps = quantize_weight(linear.weight.const_value.numpy(), linear.out_axis)
    return (
        constant(model, f"{name}_i8", values),
        constant(model, f"{name}_step", steps),
        constant(model, f"{name}_zero", np.zeros(steps.shape, np.int8)),
    )


def _multiply(
    model: ir.Model,
    linear: Linear,
    activation: ir.Node,
    weight: tuple[ir.Value, ir.Value, ir.Value],
) -> None:
    """MatMulInteger, then both scales: the shape that ONNX Runtime's fusion looks for."""
    name, result = linear.name, linear.node.outputs[0]
    values, steps, zeros = weight
    u8, step, zero = activation.outputs
    product = ir.node("MatMulInteger", [u8, values, zero, zeros], name=f"{name}_integer")
    wide = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_f32")
    scale = ir.node("Mul", [step, steps], name=f"{name}_scale")
    scaled = ir.node("Mul", [wide.outputs[0], scale.outputs[0]], name=name)
    for node in (product, wide, scale):
        node.outputs[0].name = f"{node.name}_out"
    made = scaled.outputs[0]
    made.name, made.type, made.shape = result.name, result.type, result.shape
    ir.convenience.replace_nodes_and_values(
        model.graph, linear.node, [linear.node], [product, wide, scale, scaled], [result], [made]
    )
