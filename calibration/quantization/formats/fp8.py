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

from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.nodes import Form, put_pairs
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
    return put_pairs(
        model, chosen, E4M3, lambda linear: scales.tensors[linear.tensor].threshold("minmax")
    )


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


E4M3 = Form("_fp8", ml_dtypes.float8_e4m3fn, _scale, fp8_weight)
