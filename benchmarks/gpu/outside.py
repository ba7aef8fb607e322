"""Built engines, loaded and run by Polygraphy instead of our runtime, beside ONNX Runtime.

Each graph of a bundle's reference runs once for each profile of its engines, on the recorded
inputs, and in ONNX Runtime on the CPU from the same precision's graphs. Where the chain is wrong
and this is right, the fault lies in our buffers and streams and not in the engines. A language
model with a fixed cache is left out: its inputs are not the recorded ones. Needs a GPU, TensorRT
and `pip install polygraphy`.

State of proof: the comparison is tested with ONNX Runtime in Polygraphy's place; the names of
Polygraphy that it uses are those of 0.53. It has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import EngineError
from geomag_edge.graphs import CHAIN, DYNAMIC, TOLERANCES
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.ort import OrtEngine
from geomag_edge.runtime.engines.reference import Call, reference_of
from geomag_edge.runtime.engines.tensorrt.fitting import built_by
from geomag_edge.runtime.engines.tensorrt.profiles import FIXED
from geomag_edge.runtime.engines.tensorrt.record import EngineFile

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Path, int, Arrays], Mapping[str, NDArray[Any]]]
"""(engine file, profile, inputs) -> outputs."""


def compared(
    bundle: Bundle, engine: str, precision: str, run: Run, graphs: Sequence[str] = CHAIN
) -> dict[str, Any]:
    """Each graph's error beside ONNX Runtime's outputs, relative to their largest magnitude.

    Raises:
        EngineError: the bundle has no such engines.
    """
    record = next(
        (r for r in built_by(bundle, engine, precision) if set(graphs) <= r.engines.keys()), None
    )
    if record is None:
        raise EngineError(f"the bundle has no {precision} engines of {', '.join(graphs)}")
    samples = reference_of(bundle)
    reference = OrtEngine(bundle, precision, None)
    limit = TOLERANCES.get(precision, TOLERANCES["fp16"]).relative
    found: dict[str, float] = {}
    for graph in graphs:
        if graph == "llm" and record.options.get("cache") == FIXED:
            continue
        session = reference.session(graph)
        for call in (c for s in samples for c in s.calls if c.graph == graph):
            file, index = record.pick(graph, _sizes(record.engines[graph][0], call))
            name = f"{graph}, {file.profiles[index].name}"
            if name in found:
                continue
            dtypes = {p["name"]: p["dtype"] for p in file.inputs}
            feeds = {k: np.ascontiguousarray(v, dtypes[k]) for k, v in call.inputs.items()}
            ours = run(bundle.file(file.file), index, feeds)
            theirs = session.run(call.inputs)
            found[name] = max(_error(ours[k], theirs[k]) for k in theirs)
        session.close()
    wrong = [f"{name}: {error:.2g} of its scale" for name, error in found.items() if error > limit]
    return {
        "ok": not wrong, "wrong": wrong[0] if wrong else None, "relative_error": found,
        "allowed": limit,
    }  # fmt: skip


def _sizes(file: EngineFile, call: Call) -> dict[str, int]:
    """Sizes of the dynamic axes of a call's inputs."""
    return {
        axis: size
        for port in file.inputs
        for axis, size in zip(port["axes"], call.inputs[port["name"]].shape, strict=True)
        if axis in DYNAMIC
    }


def _error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        return float("inf")
    if not a.size:
        return 0.0
    error = float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-12)
    return error if np.isfinite(error) else float("inf")


def by_polygraphy(path: Path, profile: int, feeds: Arrays) -> Mapping[str, NDArray[Any]]:
    """One run of an engine by Polygraphy's own runner."""
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    runner = TrtRunner(EngineFromBytes(path.read_bytes()), optimization_profile=profile)
    with runner:
        return {name: np.array(value) for name, value in runner.infer(feeds).items()}
