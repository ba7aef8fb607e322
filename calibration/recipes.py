"""Recipes: what each graph of the chain becomes. A recipe's name is its precision's name.

Every recipe works on the float32 graphs. What it leaves float32 is turned to half in the file that
TensorRT gets (`halved`), where strongly typed networks want it so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from geomag_edge.errors import InputError
from geomag_edge.graphs import GraphSpec

from .half import to_half
from .int4 import as_qdq, quantize_blocks
from .linears import find_linears
from .qdq import quantize_linears
from .scales import GraphScales
from .smooth import smooth


@dataclass(frozen=True)
class Source:
    """A float32 graph to work on.

    Attributes:
        model: changed in place.
        spec: its contract.
        scales: what calibration saw of it.
        method: the calibrator.
        keep: names of nodes that stay wide.
    """

    model: ir.Model
    spec: GraphSpec
    scales: GraphScales
    method: str
    keep: frozenset[str]


Pass = Callable[[Source], Collection[str]]
"""Changes the model; returns the names of the nodes that are narrow now."""


def halved(source: Source) -> Collection[str]:
    """Everything in float16 that half can hold."""
    to_half(source.model, source.spec, source.keep & {n.name for n in source.model.graph})
    return []


def int8_linears(source: Source) -> Collection[str]:
    """Q/DQ in int8 around the linear layers, loud channels smoothed before."""
    scales = smooth(source.model, source.scales, method=source.method)
    return quantize_linears(source.model, scales, source.keep, source.method)


def int4_linears(source: Source) -> Collection[str]:
    """The linear layers' weights in 4 bits."""
    importance = {name: seen.rms**2 for name, seen in source.scales.channels.items()}
    weights = quantize_blocks(source.model, keep=source.keep, importance=importance)
    as_qdq(source.model, weights)
    return list(weights)


RECIPES: dict[str, dict[str, tuple[Pass, ...]]] = {
    "fp16": dict.fromkeys(
        ("encoder", "psc_select", "projector", "embed", "llm", "mask_head"), (halved,)
    ),
    "int8": {"encoder": (int8_linears,), "llm": (int8_linears,), "mask_head": (int8_linears,)},
    "int4-llm": {"llm": (int4_linears,)},
    "int8+int4-llm": {
        "encoder": (int8_linears,), "llm": (int4_linears,), "mask_head": (int8_linears,),
    },
}  # fmt: skip
"""Recipe -> graph -> passes. A graph that is not named stays as it is."""

CALIBRATED = frozenset({"int8", "int4-llm", "int8+int4-llm", "fp8"})
"""Recipes that need to know what the graphs see."""


def find_recipe(name: str) -> dict[str, tuple[Pass, ...]]:
    """The recipe of that name.

    Raises:
        InputError: no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def kept_nodes(patterns: Collection[str], graph: str, model: ir.Model) -> frozenset[str]:
    """The nodes of a graph that patterns such as `encoder/node_linear_*` name."""
    inside = [p.partition("/")[2] for p in patterns if fnmatchcase(graph, p.partition("/")[0])]
    names = [linear.name for linear in find_linears(model)]
    names += [node.name for node in model.graph if node.name]
    return frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in inside))
