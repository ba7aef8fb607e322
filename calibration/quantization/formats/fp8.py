"""Recipe `fp8`: 8-bit floats (E4M3) around linear layers, for GPUs of compute 8.9 and up.

Explicit Q/DQ in standard ONNX (opset 19 and later): one scale for an activation, one for each
output channel of a weight, both the largest magnitude over 448. An 8-bit float keeps 3 bits of
mantissa at every size, so clipping the largest would gain nothing.
"""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from geomag_edge.calibration.quantization.linears import Linear, find_linears
from geomag_edge.calibration.quantization.scales import GraphScales
from geomag_edge.errors import InputError

LARGEST = 448.0
"""The largest finite E4M3."""

FP8_OPSET = 19
"""The first opset whose QuantizeLinear makes 8-bit floats."""

PRODUCTS = frozenset({"MatMul", "Gemm"})
"""TensorRT's 8-bit float kernels are matrix products; convolutions here are 1 % of the time."""


def quantize_fp8(
    model: ir.Model, scales: GraphScales, keep: Collection[str] = frozenset()
) -> list[str]:
    """Puts E4M3 Q/DQ around a graph's matrix products with constant weights, in place.

    Args:
        model: float32 or float16; the scales' type follows each weight's.
        scales: what calibration saw of this graph.
        keep: names of nodes that stay wide.

    Returns:
        The names of the quantised nodes. A layer that calibration never saw stays wide.

    Raises:
        InputError: the graph's opset has no 8-bit floats.
    """
    opset = model.opset_imports.get("", 1)
    if opset < FP8_OPSET:
        raise InputError(f"8-bit floats need opset {FP8_OPSET} or later, the graph has {opset}")
    chosen = [
        linear
        for linear in find_linears(model)
        if linear.node.op_type in PRODUCTS
        and linear.name not in keep
        and linear.tensor in scales.tensors
    ]
    activations: dict[ir.Value, ir.Value] = {}
    weights: dict[tuple[ir.Value, int], ir.Value] = {}
    for linear in chosen:
        if linear.activation not in activations:
            largest = scales.tensors[linear.tensor].threshold("minmax")
            activations[linear.activation] = _activation(model, linear, largest)
        key = (linear.weight, linear.out_axis)
        if key not in weights:
            weights[key] = _weight(model, linear)
        linear.node.replace_input_with(0, activations[linear.activation])
        linear.node.replace_input_with(1, weights[key])
    for weight, _ in weights:
        if not weight.uses() and not weight.is_graph_output():
            model.graph.initializers.pop(weight.name or "", None)
    return [linear.name for linear in chosen]


def fp8_weight(weight: NDArray[np.floating], out_axis: int) -> tuple[NDArray, NDArray[np.floating]]:
    """A weight as E4M3 with one scale for each output channel.

    Args:
        weight: f[.,.] of a matrix product.
        out_axis: its axis of output channels.

    Returns:
        float8_e4m3fn of the weight's shape, and f[channels] of the weight's type.
    """
    wide = np.moveaxis(weight.astype(np.float32), out_axis, 0)
    scale = _scale(np.abs(wide).max(axis=1, initial=0.0), weight.dtype)
    narrow = np.clip(wide / scale.astype(np.float32)[:, None], -LARGEST, LARGEST)
    codes = np.moveaxis(narrow, 0, out_axis).astype(ml_dtypes.float8_e4m3fn)
    return np.ascontiguousarray(codes), scale


def _scale(largest: NDArray | float, dtype: np.dtype) -> NDArray[np.floating]:
    """1 where all is 0; never below the normal numbers of `dtype`."""
    scale = np.asarray(largest, np.float64) / LARGEST
    scale = np.where(scale > 0, scale, 1.0)
    return np.maximum(scale, float(np.finfo(dtype).tiny)).astype(dtype)


def _activation(model: ir.Model, linear: Linear, largest: float) -> ir.Value:
    assert linear.weight.const_value is not None
    name, dtype = linear.activation.name, linear.weight.const_value.dtype
    scale = _constant(model, f"{name}_fp8_scale", _scale(largest, dtype.numpy()))
    zero = _constant(model, f"{name}_fp8_zero", np.zeros((), ml_dtypes.float8_e4m3fn))
    narrow = ir.node("QuantizeLinear", [linear.activation, scale, zero], name=f"{name}_to_fp8")
    _describe(narrow, f"{name}_fp8", ir.DataType.FLOAT8E4M3FN, linear.activation.shape)
    wide = ir.node("DequantizeLinear", [narrow.outputs[0], scale, zero], name=f"{name}_from_fp8")
    _describe(wide, f"{name}_fp8_wide", dtype, linear.activation.shape)
    model.graph.insert_before(linear.node, [narrow, wide])
    return wide.outputs[0]


def _weight(model: ir.Model, linear: Linear) -> ir.Value:
    tensor = linear.weight.const_value
    assert tensor is not None
    name = f"{linear.weight.name}_{linear.out_axis}"
    codes, scales = fp8_weight(tensor.numpy(), linear.out_axis)
    zeros = np.zeros(scales.shape, ml_dtypes.float8_e4m3fn)
    wide = ir.node(
        "DequantizeLinear",
        [
            _constant(model, f"{name}_fp8", codes),
            _constant(model, f"{name}_fp8_scale", scales),
            _constant(model, f"{name}_fp8_zero", zeros),
        ],
        {"axis": linear.out_axis},
        name=f"{name}_from_fp8",
    )
    _describe(wide, f"{name}_fp8_wide", tensor.dtype, linear.weight.shape)
    model.graph.insert_before(linear.node, wide)
    return wide.outputs[0]


def _constant(model: ir.Model, name: str, array: NDArray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _describe(node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    out = node.outputs[0]
    out.name, out.type, out.shape = name, ir.TensorType(dtype), shape
