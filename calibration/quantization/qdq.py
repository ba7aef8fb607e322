"""int8 as explicit QuantizeLinear/DequantizeLinear around linear layers, in standard ONNX.

One file serves ONNX Runtime, OpenVINO and TensorRT: int8 only, symmetric, zero points present and
0, activations per tensor, weights per output channel as int8 constants behind a DequantizeLinear
alone. `onnxruntime.quantization.quantize_static` is not used: at opset 23 it writes files that ONNX
Runtime refuses, it holds every activation to calibrate, and it takes no layers' own ranges.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .linears import Linear, find_linears
from .scales import GraphScales

LEVELS = 127
"""Steps on either side of 0; -128 stays unused, so that the range is symmetric."""


def quantize_linears(
    model: ir.Model,
    scales: GraphScales,
    keep: Collection[str] = frozenset(),
    method: str = "mse",
) -> list[str]:
    """Puts int8 Q/DQ around a graph's linear layers, in place.

    Args:
        model: at opset 20 or later, float32 or float16; the scales' type follows each weight's.
        scales: what calibration saw of this graph; `smooth` returns it for a smoothed one.
        keep: names of nodes that stay wide.
        method: which threshold to use, one of `ranges.METHODS`.

    Returns:
        The names of the quantised nodes. A layer that calibration never saw stays wide.
    """
    chosen = [
        linear
        for linear in find_linears(model)
        if linear.name not in keep and linear.tensor in scales.tensors
    ]
    activations: dict[ir.Value, ir.Value] = {}
    weights: dict[tuple[ir.Value, int], ir.Value] = {}
    for linear in chosen:
        if linear.activation not in activations:
            threshold = scales.tensors[linear.tensor].threshold(method)
            activations[linear.activation] = _activation(model, linear, threshold)
        key = (linear.weight, linear.out_axis)
        if key not in weights:
            weights[key] = _weight(model, linear)
        linear.node.replace_input_with(0, activations[linear.activation])
        linear.node.replace_input_with(1, weights[key])
    _drop_unread(model, {weight for weight, _ in weights})
    return [linear.name for linear in chosen]


def quantize_weight(
    weight: NDArray[np.floating], out_axis: int
) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
    """A weight as int8 with one scale for each output channel.

    Args:
        weight: float32 or float16, any rank.
        out_axis: its axis of output channels.

    Returns:
        int8 of the weight's shape, and the scales, of the weight's type: f[channels].
    """
    others = tuple(axis for axis in range(weight.ndim) if axis != out_axis % weight.ndim)
    wide = weight.astype(np.float32)
    scale = step_of(np.abs(wide).max(axis=others, initial=0.0), weight.dtype)
    shape = [-1 if axis == out_axis % weight.ndim else 1 for axis in range(weight.ndim)]
    steps = np.rint(wide / scale.astype(np.float32).reshape(shape))
    return np.clip(steps, -LEVELS, LEVELS).astype(np.int8), scale


def step_of(threshold: NDArray | float, dtype: np.dtype) -> NDArray[np.floating]:
    """The quantisation step of a threshold; 1 where all is 0, and never below the normal numbers
    of `dtype`, whose reciprocal some runtimes take."""
    step = np.asarray(threshold, np.float64) / LEVELS
    step = np.where(step > 0, step, 1.0)
    return np.maximum(step, float(np.finfo(dtype).tiny)).astype(dtype)


def _activation(model: ir.Model, linear: Linear, threshold: float) -> ir.Value:
    """The activation behind one Q/DQ pair, placed right before its first reader."""
    assert linear.weight.const_value is not None
    name, dtype = linear.activation.name, linear.weight.const_value.dtype
    scale = _constant(model, f"{name}_scale", step_of(threshold, dtype.numpy()))
    zero = _constant(model, f"{name}_zero_point", np.zeros((), np.int8))
    quantized = ir.node("QuantizeLinear", [linear.activation, scale, zero], name=f"{name}_quantize")
    _name(quantized, f"{name}_quantized", ir.DataType.INT8, linear.activation.shape)
    restored = ir.node(
        "DequantizeLinear", [quantized.outputs[0], scale, zero], name=f"{name}_dequantize"
    )
    _name(restored, f"{name}_dequantized", dtype, linear.activation.shape)
    model.graph.insert_before(linear.node, [quantized, restored])
    return restored.outputs[0]


def _weight(model: ir.Model, linear: Linear) -> ir.Value:
    """The weight as an int8 constant behind a DequantizeLinear."""
    weight, const = linear.weight, linear.weight.const_value
    assert const is not None
    name = f"{weight.name}_{linear.out_axis}"
    values, steps = quantize_weight(const.numpy(), linear.out_axis)
    quantized = _constant(model, f"{name}_quantized", values)
    scale = _constant(model, f"{name}_scale", steps)
    zero = _constant(model, f"{name}_zero_point", np.zeros(steps.shape, np.int8))
    restored = ir.node(
        "DequantizeLinear",
        [quantized, scale, zero],
        {"axis": linear.out_axis},
        name=f"{name}_dequantize",
    )
    _name(restored, f"{name}_dequantized", const.dtype, ir.Shape(values.shape))
    model.graph.insert_before(linear.node, restored)
    return restored.outputs[0]


def _constant(model: ir.Model, name: str, array: NDArray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _name(node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    out = node.outputs[0]
    out.name, out.type, out.shape = name, ir.TensorType(dtype), shape


def _drop_unread(model: ir.Model, weights: set[ir.Value]) -> None:
    """Removes weights that no node reads any more, so that no file holds them twice."""
    for weight in weights:
        if not weight.uses() and not weight.is_graph_output() and weight.name:
            del model.graph.initializers[weight.name]
