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

from .linears import find_linears
from .nodes import Form, put_pairs
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
    return put_pairs(
        model, chosen, INT8, lambda linear: scales.tensors[linear.tensor].threshold(method)
    )


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


INT8 = Form("", np.int8, step_of, quantize_weight)
