"""SmoothQuant-style migration: loud input channels become quieter, their weights' rows louder.

Exact in float: what a norm's gain (and bias) loses in a channel, the rows of the weights that read
it win. The gated product of an LLM's feed-forward block has no gain, but one of its factors comes
from a linear layer, whose columns can lose as much: that is where the loudest activations are. Only
where nothing else reads such an activation; in all other places it stays as it is.

After Xiao et al., "SmoothQuant" (arXiv 2211.10438). onnxruntime.quantization's own option for it
looks for ReduceMean-style norms in a file on disk and takes no statistics from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from geomag_edge.calibration.quantization.linears import Linear, find_linears
from geomag_edge.calibration.quantization.nodes import constant, drop_unread
from geomag_edge.calibration.quantization.qdq import LEVELS
from geomag_edge.calibration.quantization.ranges import METHODS
from geomag_edge.calibration.quantization.scales import Channels, GraphScales, TensorScale

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""How much of a channel's loudness moves into the weights; each group takes the best or none."""
WORTH = 0.8
"""Smoothing is taken where it leaves at most this part of the predicted error."""
ROWS = 100_000
"""A smoothed activation's threshold is what so many rows would show, going by the rows there were:
the largest of n normal values grows as the root of log n. Without this margin an alpha of 1, which
puts every channel's largest value at the threshold, made the error of the shipped model's prompt
tower up to 50 times larger, since any new outlier is clipped."""
GAINS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "Mul": (0, 1)}
"""Operators that end in a product with a constant vector, and which inputs hold it (and a bias)."""


@dataclass(frozen=True)
class Group:
    """An activation that may be smoothed: the node that makes it, and all that reads it."""

    node: ir.Node
    linears: tuple[Linear, ...]

    @property
    def tensor(self) -> str:
        """The activation's name."""
        return self.node.outputs[0].name or ""

    def weights(self) -> NDArray[np.float32]:
        """The readers' weights side by side, f32[in, out]."""
        return np.concatenate([_rows(linear) for linear in self.linears], axis=1)


def smooth(
    model: ir.Model, scales: GraphScales, alpha: float | None = None, method: str = "mse"
) -> GraphScales:
    """Smooths a graph in place where that is predicted to lower its int8 error.

    Args:
        model: float32, not quantised yet.
        scales: what calibration saw of it.
        alpha: 0..1 for all groups, whatever the prediction; None chooses for each.
        method: the calibrator that an unsmoothed activation would be quantised with.

    Returns:
        The scales of the smoothed graph. A smoothed activation has the same threshold for every
        method, from its channels' largest magnitudes: more is not known without another capture.
    """
    tensors, channels = dict(scales.tensors), dict(scales.channels)
    for group in find_groups(model, scales.channels):
        seen = channels[group.tensor]
        weight, count = group.weights(), tensors[group.tensor].seen
        if alpha is None:
            plain = tensors[group.tensor].threshold(method)
            factors = _best(seen, weight, plain, count)
        else:
            factors = _factors(seen, weight, alpha)
        if factors is None:
            continue
        _apply(model, group, factors)
        calm = Channels(seen.absmax / factors, seen.rms / factors)
        channels[group.tensor] = calm
        threshold = smoothed_threshold(seen, factors, count)
        tensors[group.tensor] = TensorScale(dict.fromkeys(METHODS, threshold), count)
    return replace(scales, tensors=tensors, channels=channels)


def find_groups(model: ir.Model, channels: Mapping[str, Channels]) -> Iterator[Group]:
    """The activations that can be smoothed exactly, of those whose channels are known."""
    readers: dict[ir.Value, list[Linear]] = {}
    for linear in find_linears(model):
        readers.setdefault(linear.activation, []).append(linear)
    for value, linears in readers.items():
        node = value.producer()
        if node is None or node.op_type not in GAINS or value.is_graph_output():
            continue
        seen = channels.get(value.name or "")
        if seen is None or not seen.absmax.any():
            continue
        if {use.node for use in value.uses()} != {linear.node for linear in linears}:
            continue
        if any(linear.node.op_type not in ("MatMul", "Gemm") for linear in linears):
            continue
        if _constants(node, len(seen.absmax)) or _factor_layer(node):
            yield Group(node, tuple(linears))


def smoothed_threshold(seen: Channels, factors: NDArray[np.float32], count: int) -> float:
    """The threshold of a smoothed activation of which `count` values were seen; see `ROWS`."""
    rows = max(count / len(factors), 2.0)
    margin = max(1.0, np.sqrt(np.log(ROWS) / np.log(rows)))
    return float((seen.absmax / factors).max() * margin)


def predicted_error(
    seen: Channels, weight: NDArray[np.float32], factors: NDArray[np.float32], threshold: float
) -> float:
    """The expected squared error of the readers' outputs for one row, rounding taken as noise.

    On the shipped model's layers this is within a few per cent of what they lose.

    Args:
        seen: the activation's channels before smoothing, [in].
        weight: f32[in, out], before smoothing.
        factors: what the activation is divided by, f32[in].
        threshold: of the smoothed activation.
    """
    scaled = weight * factors[:, None]
    step = threshold / LEVELS
    from_activation = step**2 / 12 * float(np.square(scaled).sum())
    weight_steps = np.abs(scaled).max(axis=0) / LEVELS
    power = float(np.square(seen.rms / factors).sum())
    return from_activation + power * float(np.square(weight_steps).sum()) / 12


def _best(
    seen: Channels, weight: NDArray[np.float32], threshold: float, count: int
) -> NDArray[np.float32] | None:
    """The factors of the least predicted error, None where smoothing is not `WORTH` it."""
    least = WORTH * predicted_error(seen, weight, np.ones_like(seen.absmax), threshold)
    best = None
    for alpha in ALPHAS:
        factors = _factors(seen, weight, alpha)
        error = predicted_error(seen, weight, factors, smoothed_threshold(seen, factors, count))
        if error < least:
            least, best = error, factors
    return best


def _factors(seen: Channels, weight: NDArray[np.float32], alpha: float) -> NDArray[np.float32]:
    """What each channel is divided by; 1 on (geometric) average, and for silent channels."""
    loud = np.maximum(seen.absmax.astype(np.float64), 1e-5 * float(seen.absmax.max()))
    heavy = np.abs(weight).max(axis=1).astype(np.float64)
    heavy = np.maximum(heavy, 1e-5 * max(float(heavy.max()), 1e-30))
    logs = alpha * np.log(loud) - (1 - alpha) * np.log(heavy)
    return np.exp(logs - logs.mean()).astype(np.float32)


def _constants(node: ir.Node, channels: int) -> list[int]:
    """Which inputs of the node hold its gain and bias; empty unless all that it takes are
    constant vectors over the last axis."""
    found = []
    for index in GAINS[node.op_type]:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or not value.is_initializer() or value.const_value is None:
            continue
        shape = list(value.const_value.shape)
        if shape and shape[-1] == channels and all(dim == 1 for dim in shape[:-1]):
            found.append(index)
    if node.op_type == "Mul":
        return found if len(found) == 1 else []
    if node.attributes.get_int("axis", -1) != -1:
        return []
    taken = [i for i in GAINS[node.op_type] if i < len(node.inputs) and node.inputs[i] is not None]
    return found if found == taken else []


def _apply(model: ir.Model, group: Group, factors: NDArray[np.float32]) -> None:
    """Divides the gain, or the columns of the layer that makes a factor; multiplies the rows."""
    gains = _constants(group.node, len(factors))
    for index in gains:
        _replace(model, group.node, index, _array(group.node, index) / factors)
    layer = None if gains else _factor_layer(group.node)
    if layer is not None:
        _replace(model, layer, 1, _array(layer, 1) / factors)
    for linear in group.linears:
        across = (-1, 1) if linear.in_axis == 0 else (1, -1)
        _replace(model, linear.node, 1, _array(linear.node, 1) * factors.reshape(across))


def _factor_layer(node: ir.Node) -> ir.Node | None:
    """The MatMul with a constant weight that makes one factor of a product and nothing else."""
    if node.op_type != "Mul":
        return None
    for value in reversed(node.inputs):
        made_by = value.producer() if value is not None else None
        if made_by is None or made_by.op_type != "MatMul" or value is None:
            continue
        if value.is_graph_output() or {use.node for use in value.uses()} != {node}:
            continue
        weight = made_by.inputs[1]
        if weight is not None and weight.is_initializer() and weight.const_value is not None:
            return made_by
    return None


def _array(node: ir.Node, index: int) -> NDArray[np.float32]:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _rows(linear: Linear) -> NDArray[np.float32]:
    array = _array(linear.node, 1)
    return array if linear.in_axis == 0 else array.T


def _replace(model: ir.Model, node: ir.Node, index: int, array: NDArray) -> None:
    """Gives a node a constant of its own, since others may read the old one."""
    old = node.inputs[index]
    assert old is not None
    name = f"{old.name}_smoothed_for_{node.name}"
    while name in model.graph.initializers:
        name += "_again"
    node.replace_input_with(index, constant(model, name, np.ascontiguousarray(array)))
    drop_unread(model, [old])
