"""Which layers to give back when a precision does not pass the gate, and how few are enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import onnx_ir as ir

from geomag_edge.calibration.quantization.formats.smooth import smooth
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.noise import NOISY, predicted_noise
from geomag_edge.calibration.quantization.recipes import find_recipe, in_4_bits, int8_linears
from geomag_edge.calibration.quantization.scales import Scales
from geomag_edge.disk.onnx_model import load_ir
from geomag_edge.manifest import Bundle

Node = tuple[str, str]
"""Graph and ONNX node."""

LEFT = 0.25
"""The part of its weights that a precision must keep narrow to be worth its name."""


def layers_by_noise(
    bundle: Bundle,
    recipe: str,
    source: str,
    scales: Scales,
    method: str,
    losses: Mapping[str, float],
) -> list[Node]:
    """(graph, node) of the layers that a recipe makes narrow, those to give back first in front.

    Layers that stay wide anyway are left out. The LLM's go by what they cost (`forced`), in 4 bits
    for every weight that they hold: giving back a small layer costs little space. Other graphs'
    layers go by the noise predicted for them. The graphs take turns, since these measures do not
    compare. The list ends where less than `LEFT` of the weights would stay narrow.

    Args:
        bundle: with the float32 graphs.
        recipe: one of `recipes.RECIPES`.
        source: the float32 graphs' precision.
        scales: what calibration saw.
        method: the calibrator.
        losses: of the LLM's layers, as the recipe has them.
    """
    sizes: dict[Node, int] = {}
    ranked: list[list[Node]] = []
    if losses:
        size = _sizes(load_ir(bundle.graph("llm", source)))
        cost = {n: x / size[n] for n, x in losses.items()} if in_4_bits(recipe) else losses
        ranked.append([("llm", n) for n in sorted(cost, key=lambda n: cost[n], reverse=True)])
        sizes |= {("llm", n): size[n] for n in losses}
    for graph, forms in find_recipe(recipe).items():
        if int8_linears not in forms.portable or graph == "llm":
            continue
        model = load_ir(bundle.graph(graph, source))
        size = _sizes(model)
        smoothed = smooth(model, scales.graph(graph), method=method)
        found = predicted_noise(model, smoothed, method)
        noise = {n: value for n, value in found.items() if value <= NOISY}
        ranked.append([(graph, n) for n in sorted(noise, key=lambda n: noise[n], reverse=True)])
        sizes |= {(graph, n): size[n] for n in noise}
    order = [key for turn in zip_longest(*ranked) for key in turn if key is not None]
    return _affordable(order, sizes)


def _sizes(model: ir.Model) -> dict[str, int]:
    return {x.name: x.weight.const_value.size for x in find_linears(model) if x.weight.const_value}


def _affordable(order: Sequence[Node], sizes: Mapping[Node, int]) -> list[Node]:
    """The beginning of the order that holds at most 1 - `LEFT` of the weights."""
    left, found = (1 - LEFT) * sum(sizes[key] for key in order), []
    for key in order:
        left -= sizes[key]
        if left < 0:
            break
        found.append(key)
    return found


def fewest(most: int, passes: Callable[[int], bool]) -> int | None:
    """How many layers to give back: twice as many until it passes, then fewer again.

    The gate is not quite monotonic, so this is a number that passes, next to one that does not, and
    not always the least.

    Args:
        most: that may be given back; 0 was tried before.
        passes: asks the gate.

    Returns:
        A number from 1 to `most`, or None if not even `most` passes.
    """
    refused, count = 0, 1
    while True:
        count = min(count, most)
        if count == refused:
            return None
        if passes(count):
            break
        refused, count = count, 2 * count
    while count - refused > 1:
        middle = (refused + count) // 2
        if passes(middle):
            count = middle
        else:
            refused = middle
    return count
