"""The small interface behind which every engine stands, and the way to open one by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from geomag_edge.arguments import path, text, told
from geomag_edge.cores import threads_of
from geomag_edge.errors import BundleError, CheckpointError, EngineError
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


def open_engine(
    name: str,
    bundle: Bundle,
    precision: str = "fp32",
    threads: int | None = None,
    checkpoint: str | Path | None = None,
) -> Engine:
    """Opens an engine on a bundle.

    Args:
        name: one of `ENGINES`.
        bundle: the bundle.
        precision: which set of graphs; `bf16` runs the fp32 graphs in bfloat16, `int8+bf16` the
            rest of the int8 graphs (`openvino`, or `auto`); `auto`, with engine `auto`, the
            fastest of all for each graph.
        threads: CPU threads of a graph; None leaves it to the engine where all of the machine is
            this process's, else as many as its cores and its quota are good for.
        checkpoint: for `torch`, the folder that the bundle was exported from, if it has moved.

    Raises:
        EngineError: unknown, or not able to run here.
        InputError: no number of threads.
    """
    if not isinstance(bundle, Bundle):
        raise BundleError(f"bundle is {told(bundle)}: give a Bundle, as Bundle.open returns it")
    text(precision, "precision", EngineError)
    threads_of(threads)
    if checkpoint is not None:
        checkpoint = path(checkpoint, "checkpoint", CheckpointError)
    if text(name, "engine", EngineError) not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: this version has {', '.join(ENGINES)}")
    if precision == ANY and name != "auto":
        raise EngineError(
            f"precision {ANY} is for engine auto: name one of the bundle's for {name}"
        )
    as_bf16 = graph_set(bundle, precision) != precision
    if as_bf16 and name not in (*BF16_ENGINES, "auto"):
        raise EngineError(
            f"{name} has no {BF16}: --engine openvino runs a bundle's fp32 graphs in bfloat16"
        )
    if name == "auto":
        from geomag_edge.runtime.auto import AutoEngine

        return AutoEngine(bundle, precision, threads)
    if name == "ort-cpu":
        from geomag_edge.runtime.ort import OrtEngine

        return OrtEngine(bundle, precision, threads)
    if name == "openvino":
        from geomag_edge.runtime.openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, precision, threads)
    if name == "ort-cuda":
        from geomag_edge.runtime.ort_cuda import OrtCudaEngine

        return OrtCudaEngine(bundle, precision)
    if name in ("tensorrt", "tensorrt-rtx"):
        from geomag_edge.runtime.tensorrt.engine import TensorRtEngine

        return TensorRtEngine(name, bundle, precision)
    from geomag_edge.runtime.torch_engine import TorchEngine

    return TorchEngine.open(bundle, precision, threads, checkpoint)


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
