"""The small interface behind which every engine stands, and the names of engines and precisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from geomag_edge.errors import EngineError
from geomag_edge.manifest import Bundle

GPU_ENGINES = ("ort-cuda", "tensorrt", "tensorrt-rtx")
"""Engines that need an NVIDIA GPU."""

ENGINES = ("auto", "torch", "ort-cpu", "openvino", *GPU_ENGINES)
"""Engines that this version can open; `auto` chooses among the others, graph by graph."""

BF16 = "bf16"
"""The precision that runs a bundle's fp32 graphs in bfloat16: half the bytes of every weight.
`int8+bf16` runs the int8 graphs with what is not quantised in bfloat16."""

ANY = "auto"
"""The precision of engine `auto` alone: for each graph the fastest of all that the bundle has."""

BF16_ENGINES = ("openvino",)
"""Engines that have `bf16`."""


class Session(Protocol):
    """One graph, ready to run.

    `provider` says what really runs it (for ONNX Runtime the execution provider).
    """

    provider: str

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Named inputs -> named outputs.

        Args:
            feeds: numpy arrays, or values that an earlier run of this engine has kept. Float
                arrays are cast to the graph's precision.
            keep: outputs to leave as the engine's own values (a key-value cache, say), which
                cost no copy and are only good as inputs of the same engine.
        """

    def close(self) -> None:
        """Frees the graph's memory."""


class Engine(Protocol):
    """Opens the graphs of one bundle in one precision.

    One whose sessions may run in several threads at once has `takes_several`, which is True; the
    queries of all others take turns.
    """

    name: str
    precision: str

    def session(self, graph: str) -> Session:
        """Opens a graph by its name in `geomag_edge.graphs`."""

    def close(self) -> None:
        """Frees what the engine holds itself."""


def graph_set(bundle: Bundle, precision: str) -> str:
    """The set of a bundle's graphs that a precision runs: its own, fp32's for `bf16`, int8's for
    `int8+bf16`."""
    if precision in bundle.manifest.graphs:
        return precision
    return "fp32" if precision == BF16 else precision.removesuffix(f"+{BF16}")


def graph_sets(bundle: Bundle, precision: str) -> list[str]:
    """As `graph_set`, or for `auto` every set that may run: all but those that failed a gate.

    Raises:
        EngineError: all of them did.
    """
    if precision != ANY:
        return [graph_set(bundle, precision)]
    reports = bundle.manifest.accuracy
    may_run = [
        name
        for name in bundle.manifest.graphs
        if all(v.get("ok", True) for v in (reports.get(name, {}).get("gate") or {}).values())
    ]
    if not may_run:
        raise EngineError("every precision of this bundle failed its gate: name one yourself")
    return may_run


def default_precision(bundle: Bundle) -> str:
    """The precision that runs when none is asked for: fp32, or the bundle's only one."""
    have = list(bundle.manifest.graphs)
    return have[0] if len(have) == 1 else "fp32"
