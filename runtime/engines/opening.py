"""The way to open any engine by name."""

from __future__ import annotations

from pathlib import Path

from geomag_edge.arguments import path, text, told
from geomag_edge.cores import threads_of
from geomag_edge.errors import BundleError, CheckpointError, EngineError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.auto.auto import AutoEngine
from geomag_edge.runtime.engines.engine import ENGINES, Engine
from geomag_edge.runtime.engines.single import open_single


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
    folder = None if checkpoint is None else path(checkpoint, "checkpoint", CheckpointError)
    if text(name, "engine", EngineError) not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: this version has {', '.join(ENGINES)}")
    if name == "auto":
        return AutoEngine(bundle, precision, threads)
    return open_single(name, bundle, precision, threads, folder)
