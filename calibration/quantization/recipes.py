"""Recipes: what each graph of the chain becomes. A recipe's name is its precision's name.

Every recipe works on the float32 graphs. What it leaves float32 is turned to half in the file that
TensorRT gets (`halved`), where strongly typed networks want it so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from geomag_edge.calibration.quantization.formats.fp8 import quantize_fp8
from geomag_edge.calibration.quantization.formats.half import to_half
from geomag_edge.calibration.quantization.formats.int4 import (
    BLOCK_OPSET,
    BlockWeight,
    as_qdq,
    last_layers,
    quantize_blocks,
)
from geomag_edge.calibration.quantization.formats.smooth import smooth
from geomag_edge.errors import InputError
from geomag_edge.graphs import GraphSpec

from .linears import find_linears
from .noise import NOISY, predicted_noise
from .qdq import quantize_linears
from .scales import GraphScales
from .tables import quantize_tables


@dataclass(frozen=True)
class Source:
    """A float32 graph to work on.

    Attributes:
        model: changed in place.
        spec: its contract.
        scales: what calibration saw of it.
        method: the calibrator.
        keep: names of nodes that stay wide.
        fitted: node name -> its weight in 4 bits, found before (`gptq`).
    """

    model: ir.Model
    spec: GraphSpec
    scales: GraphScales
    method: str
    keep: frozenset[str]
    fitted: Mapping[str, BlockWeight] = field(default_factory=dict)


Pass = Callable[[Source], Collection[str]]
"""Changes the model; returns the names of the nodes that are narrow now."""


def halved(source: Source) -> Collection[str]:
    """Everything in float16 that half can hold."""
    to_half(source.model, source.spec, source.keep & {n.name for n in source.model.graph})
    return []


def int8_linears(source: Source) -> Collection[str]:
    """Q/DQ in int8 around the linear layers, loud channels smoothed before; layers that would
    drown in noise all the same stay wide."""
    scales = smooth(source.model, source.scales, method=source.method)
    predicted = predicted_noise(source.model, scales, source.method)
    noisy = {name for name, noise in predicted.items() if noise > NOISY}
    return quantize_linears(source.model, scales, source.keep | noisy, source.method)


def int4_weights(source: Source) -> Collection[str]:
    """The linear layers' weights in 4 bits; the last layer's and those to keep wide in 8."""
    wide8 = source.keep | set(last_layers(source.model))
    weights = {name: w for name, w in source.fitted.items() if name not in wide8}
    weights |= quantize_blocks(source.model, WEIGHT_BLOCK, weights, wide8)
    as_qdq(source.model, weights)
    return list(weights)


def int8_weights(source: Source) -> Collection[str]:
    """The linear layers' weights in 8 bits; graphs too old for blocks stay as they are."""
    if source.model.opset_imports.get("", 1) < BLOCK_OPSET:
        return []
    every = [linear.name for linear in find_linears(source.model)]
    weights = quantize_blocks(source.model, WEIGHT_BLOCK, source.keep, wide8=every)
    as_qdq(source.model, weights)
    return list(weights)


def int8_tables(source: Source) -> Collection[str]:
    """Embedding tables as int8 rows."""
    return quantize_tables(source.model, source.keep)


def fp8_linears(source: Source) -> Collection[str]:
    """Q/DQ in E4M3 around the linear layers."""
    return quantize_fp8(source.model, source.scales, source.keep)


WEIGHT_BLOCK = 128
"""Rows that share a scale where weights alone are narrow."""


@dataclass(frozen=True)
class Forms:
    """How one graph is made.

    Attributes:
        portable: of the file that serves everybody without one of its own.
        for_tensorrt: whether TensorRT takes its integers too, with half around them; else it gets
            the float32 graph in half.
        onnxruntime: of ONNX Runtime's own file, where the portable one is slow there: with Q/DQ
            around one row it dequantises every weight at every token.
    """

    portable: tuple[Pass, ...]
    for_tensorrt: bool = True
    onnxruntime: tuple[Pass, ...] = ()


HALF = Forms((halved,))
INT8 = Forms((int8_linears,))
SMALL_PSC = Forms((int8_tables, int8_weights), for_tensorrt=False)  # takes no int8 in blocks
SMALL_EMBED = Forms((int8_tables,), for_tensorrt=False)  # would expand the table at every token

RECIPES: dict[str, dict[str, Forms]] = {
    "fp16": dict.fromkeys(
        ("encoder", "psc_select", "projector", "embed", "llm", "mask_head"), HALF
    ),
    "int8": {
        "encoder": INT8, "psc_select": SMALL_PSC, "embed": SMALL_EMBED,
        "llm": Forms((int8_linears,), onnxruntime=(int8_weights,)), "mask_head": INT8,
    },
    "int4-llm": {"llm": Forms((int4_weights,))},
    "int8+int4-llm": {
        "encoder": INT8, "psc_select": SMALL_PSC, "embed": SMALL_EMBED,
        "llm": Forms((int4_weights,)), "mask_head": INT8,
    },
    "fp8": {  # three bits of mantissa cost the mask head 3.7 points of mIoU on nano: it stays wide
        "encoder": Forms((fp8_linears,)), "embed": SMALL_EMBED, "llm": Forms((fp8_linears,)),
    },
}  # fmt: skip
"""Recipe -> graph -> how it is made. A graph that is not named stays as it is."""

CALIBRATED = frozenset({"int8", "int4-llm", "int8+int4-llm", "fp8"})
"""Recipes that need to know what the graphs see."""


def find_recipe(name: str) -> dict[str, Forms]:
    """The recipe of that name.

    Raises:
        InputError: no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def in_4_bits(recipe: str) -> bool:
    """Whether a recipe's LLM has weights in 4 bits."""
    forms = find_recipe(recipe).get("llm")
    return forms is not None and int4_weights in forms.portable


def kept_nodes(patterns: Collection[str], graph: str, model: ir.Model) -> frozenset[str]:
    """The nodes of a graph that patterns such as `encoder/node_linear_*` name."""
    inside = [p.partition("/")[2] for p in patterns if fnmatchcase(graph, p.partition("/")[0])]
    names = [linear.name for linear in find_linears(model)]
    names += [node.name for node in model.graph if node.name]
    return frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in inside))
