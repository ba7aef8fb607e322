"""Which layers to give back first when a precision does not pass the gate."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from geomag_edge.manifest import Bundle

from .int4 import quantize_blocks
from .linears import find_linears
from .noise import predicted_noise
from .recipes import find_recipe, int4_weights, int8_linears
from .scales import GraphScales, Scales


def layers_by_noise(
    bundle: Bundle, recipe: str, source: str, scales: Scales, method: str
) -> list[tuple[str, str]]:
    """(graph, node) of every layer that a recipe makes narrow, the noisiest first.

    Layers of 8 and of 4 bits take turns: 4 bits are noisier by their nature, and would come first
    whatever they cost.

    Args:
        bundle: with the float32 graphs.
        recipe: its int8 layers count by `predicted_noise`, its int4 layers by their weights'.
        source: the float32 graphs' precision.
        scales: what calibration saw.
        method: the calibrator.
    """
    int8: dict[tuple[str, str], float] = {}
    int4: dict[tuple[str, str], float] = {}
    for graph, forms in find_recipe(recipe).items():
        if int8_linears in forms.portable:
            model = ir.load(bundle.graph(graph, source))
            found = predicted_noise(model, scales.graph(graph), method)
            int8 |= {(graph, node): value for node, value in found.items()}
        elif int4_weights in forms.portable:
            model = ir.load(bundle.graph(graph, source))
            found = weight_noise(model, scales.graph(graph))
            int4 |= {(graph, node): value for node, value in found.items()}
    ranked = [sorted(noise, key=lambda k: noise[k], reverse=True) for noise in (int8, int4)]
    return [key for pair in zip_longest(*ranked) for key in pair if key is not None]


def weight_noise(model: ir.Model, scales: GraphScales) -> dict[str, float]:
    """Noise over signal power of each layer's output if its weight has 4 bits, by node name."""
    weights = quantize_blocks(model, wide8=())
    found = {}
    for linear in find_linears(model):
        const = linear.weight.const_value
        if linear.name not in weights or const is None:
            continue
        wide = const.numpy().astype(np.float32)
        seen = scales.channels.get(linear.tensor)
        power = np.ones(len(wide)) if seen is None else np.square(seen.rms.astype(np.float64))
        error = np.square(wide - weights[linear.name].dequantized()).sum(1)
        found[linear.name] = float(power @ error) / max(
            float(power @ np.square(wide).sum(1)), 1e-30
        )
    return found
