"""What every recipe writes into a graph: constants, and Q/DQ pairs around linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from .linears import Linear


def constant(model: ir.Model, name: str, tensor: ir.TensorProtocol | NDArray) -> ir.Value:
    """A new constant of the graph."""
    if isinstance(tensor, np.ndarray | np.generic):
        tensor = ir.tensor(tensor, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
    )
    model.graph.register_initializer(value)
    return value


def drop_unread(model: ir.Model, weights: Iterable[ir.Value]) -> None:
    """Removes weights that no node reads any more, so that no file holds them twice."""
    for weight in weights:
        if not weight.uses() and not weight.is_graph_output() and weight.name:
            model.graph.initializers.pop(weight.name, None)


class Form(NamedTuple):
    """An 8-bit form of numbers.

    Attributes:
        suffix: of the names of what is written.
        dtype: NumPy's type of it.
        step_of: (largest magnitude, float type) -> the scale, f[].
        narrow: (weight, axis of output channels) -> `dtype` of the weight's shape, and f[channels].
    """

    suffix: str
    dtype: DTypeLike
    step_of: Callable[[float, np.dtype], NDArray[np.floating]]
    narrow: Callable[[NDArray, int], tuple[NDArray, NDArray[np.floating]]]


def put_pairs(
    model: ir.Model, linears: Sequence[Linear], form: Form, largest: Callable[[Linear], float]
) -> list[str]:
    """Puts Q/DQ around linear layers, in place; what several of them read is quantised once.

    Args:
        model: what the layers are in.
        linears: of it, with constant weights; the scales' type follows each weight's.
        form: the 8-bit form.
        largest: the magnitude up to which a layer's activation is kept.

    Returns:
        The layers' names.
    """
    activations: dict[ir.Value, ir.Value] = {}
    weights: dict[tuple[ir.Value, int], ir.Value] = {}
    for linear in linears:
        if linear.activation not in activations:
            activations[linear.activation] = _activation(model, linear, form, largest(linear))
        key = (linear.weight, linear.out_axis)
        if key not in weights:
            weights[key] = _weight(model, linear, form)
        linear.node.replace_input_with(0, activations[linear.activation])
        linear.node.replace_input_with(1, weights[key])
    drop_unread(model, {weight for weight, _ in weights})
    return [linear.name for linear in linears]


def _activation(model: ir.Model, linear: Linear, form: Form, largest: float) -> ir.Value:
    """The activation behind one Q/DQ pair, placed right before its first reader."""
    assert linear.weight.const_value is not None
    dtype, shape = linear.weight.const_value.dtype, linear.activation.shape
    name = f"{linear.activation.name}{form.suffix}"
    scale = constant(model, f"{name}_scale", form.step_of(largest, dtype.numpy()))
    zero = constant(model, f"{name}_zero_point", np.zeros((), form.dtype))
    narrow = ir.node("QuantizeLinear", [linear.activation, scale, zero], name=f"{name}_quantize")
    _describe(narrow, f"{name}_quantized", ir.DataType.from_numpy(np.dtype(form.dtype)), shape)
    wide = ir.node("DequantizeLinear", [narrow.outputs[0], scale, zero], name=f"{name}_dequantize")
    _describe(wide, f"{name}_dequantized", dtype, shape)
    model.graph.insert_before(linear.node, [narrow, wide])
    return wide.outputs[0]


def _weight(model: ir.Model, linear: Linear, form: Form) -> ir.Value:
    """The weight as a constant of 8 bits behind a DequantizeLinear."""
    const = linear.weight.const_value
    assert const is not None
    name = f"{linear.weight.name}_{linear.out_axis}{form.suffix}"
    codes, scales = form.narrow(const.numpy(), linear.out_axis)
    wide = ir.node(
        "DequantizeLinear",
        [
            constant(model, f"{name}_quantized", codes),
            constant(model, f"{name}_scale", scales),
            constant(model, f"{name}_zero_point", np.zeros(scales.shape, form.dtype)),
        ],
        {"axis": linear.out_axis},
        name=f"{name}_dequantize",
    )
    _describe(wide, f"{name}_dequantized", const.dtype, linear.weight.shape)
    model.graph.insert_before(linear.node, wide)
    return wide.outputs[0]


def _describe(node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    out = node.outputs[0]
    out.name, out.type, out.shape = name, ir.TensorType(dtype), shape
