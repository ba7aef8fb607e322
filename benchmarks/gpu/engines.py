"""A bundle's engines on a GPU: each graph's build, each graph beside ONNX Runtime on the CPU, the
chain's answers, what CUDA graphs replay, and times."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from statistics import median
from typing import Any

import numpy as np

from geomag_edge.benchmarks.gpu.outcome import NotHere
from geomag_edge.errors import GeoMagError, TargetError
from geomag_edge.graphs import TOLERANCES, Tolerance
from geomag_edge.manifest import Bundle
from geomag_edge.printing import one_line
from geomag_edge.runtime.answers.masks import mask_iou
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.chain.result import Result
from geomag_edge.runtime.engines.engine import Engine
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.engines.ort import OrtEngine
from geomag_edge.runtime.engines.reference import Call, Sample, reference_of
from geomag_edge.runtime.engines.replay import replay
from geomag_edge.runtime.engines.tensorrt.bundle import build_bundle, store_measured
from geomag_edge.runtime.engines.tensorrt.engine import TensorRtEngine
from geomag_edge.runtime.engines.tensorrt.fitting import FLAVOURS
from geomag_edge.runtime.engines.tensorrt.flavour import load_flavour
from geomag_edge.runtime.engines.tensorrt.record import RECORD, load_records
from geomag_edge.runtime.proof.verify import verify
from geomag_edge.targets import known
from geomag_edge.targets.detect import choose_target, look_around

TO_HOST = frozenset(
    {"token", "mask_logits", "quality", "granularity", "relevance", "boxes", "scores"}
)
"""What may come to the host: token ids, final masks, and PSC's answer, by which the host chooses
the budget and the crops."""


def tolerance_of(precision: str) -> Tolerance:
    """What counts as equal in a precision."""
    return TOLERANCES.get(precision, TOLERANCES["fp16"])


def build(bundle: Bundle, engine: str, precision: str, graph: str) -> dict[str, Any]:
    """One graph's engines, built into the bundle if it has none of this TensorRT's.

    Raises:
        MissingExtraError: this TensorRT is not installed.
        NotHere: no target is for this TensorRT on this GPU, or not in this precision.
        EngineError: its builder refuses the graph.
    """
    flavour = load_flavour(FLAVOURS[engine])
    for record in load_records(bundle):
        mine = record.flavour == flavour.name and record.precision == precision
        if mine and record.version == flavour.version and graph in record.engines:
            files = [vars(f) | {"profiles": len(f.profiles)} for f in record.engines[graph]]
            return {"already": record.folder, "engines": [_built(f) for f in files]}
    machine = look_around()
    own = replace(machine, versions={flavour.name: flavour.version})
    try:
        name = choose_target(own, known(), engines=True)
    except TargetError as e:
        raise NotHere(str(e)) from e
    target = known().target(name)
    if target.flavour != flavour.name:
        raise NotHere(
            f"no target is for {flavour.name} {flavour.version} on {machine.gpu} (sm "
            f"{machine.sm}): see `geomag-edge targets`"
        )
    if not target.takes_precision(precision):
        raise NotHere(f"target {name} takes {', '.join(target.dtypes)}, not {precision}")
    record, built = build_bundle(
        bundle, bundle.manifest, target, precision, machine, graphs=(graph,)
    )
    files = [vars(f) | {"profiles": len(f.profiles)} for f in record.engines[graph]]
    return {"folder": record.folder, "built": built, "engines": [_built(f) for f in files],
            "peak_rss_bytes": record.peak_rss_bytes}  # fmt: skip


def _built(file: dict[str, Any]) -> dict[str, Any]:
    kept = ("file", "bytes", "profiles", "memory", "layer_precisions", "warnings", "build_s")
    return {name: file[name] for name in kept}


def graph(bundle: Bundle, engine: str, precision: str, name: str) -> dict[str, Any]:
    """One graph on the reference's inputs, in an engine and in ONNX Runtime on the CPU.

    Raises:
        EngineError, MissingExtraError: the engine cannot be opened here.
    """
    samples = reference_of(bundle)
    session = opened_for(engine, bundle, precision, name).session(name)
    calls = [c for s in samples for c in s.calls if c.graph == name]
    theirs = OrtEngine(bundle, precision, None).session(name)
    expected = [Call(name, c.inputs, theirs.run(c.inputs)) for c in calls]
    tolerance = tolerance_of(precision)
    drifts = replay(session, expected, tolerance)
    bad = [d for d in drifts if not d.ok]
    return {
        "ok": not bad,
        "wrong": None if not bad else (
            f"{name}, output {bad[0].output}: {bad[0].relative:.2g} of its scale off ONNX "
            f"Runtime's, {tolerance.relative:.0e} is allowed"
        ),
        "provider": session.provider,
        "outputs": [vars(d) for d in drifts],
    }  # fmt: skip


def opened_for(engine: str, bundle: Bundle, precision: str, graph: str) -> Engine:
    """An engine that will be asked of one graph, so that others may be missing."""
    if engine in FLAVOURS:
        return TensorRtEngine(engine, bundle, precision, graphs=(graph,))
    return open_engine(engine, bundle, precision)


def chain(bundle: Bundle, engine: str, precision: str) -> dict[str, Any]:
    """The chain beside its reference and beside `ort-cpu`, and what it copied to the host."""
    samples, tolerance = reference_of(bundle), tolerance_of(precision)
    with Pipeline.load(bundle, engine, precision) as ours:
        opened: Any = ours.chain.engine
        report = verify(ours.chain, samples, tolerance)
        with Pipeline.load(bundle, "ort-cpu", precision) as theirs:
            answers = [_compare(ours, theirs, sample, tolerance) for sample in samples]
        opened.device.to_host_bytes.clear()
        result = ask(ours, largest(samples))
        copied = dict(opened.device.to_host_bytes)
    wrong = [a["wrong"] for a in answers if a["wrong"]]
    if not report.ok:
        wrong.append(str(report.first_drift))
    if beyond := copied.keys() - TO_HOST:
        wrong.append(f"copied to the host between stages: {', '.join(sorted(beyond))}")
    return {
        "ok": not wrong,
        "wrong": wrong[0] if wrong else None,
        "providers": result.providers,
        "notes": list(result.notes),
        "graphs": [vars(d) for d in report.graphs],
        "answers": answers,
        "host_copies_bytes": copied,
    }


def captures(bundle: Bundle, engine: str, precision: str) -> dict[str, Any]:
    """How many calls of each graph CUDA graphs replayed when the same was asked four times, and
    whether the answer stayed the same."""
    sample = largest(reference_of(bundle))
    with Pipeline.load(bundle, engine, precision) as pipe:
        results = [ask(pipe, sample) for _ in range(4)]
        replayed = {
            graph: sum(r.replayed for r in getattr(session, "_replays", {}).values())
            for graph, session in pipe.chain.sessions.items()
        }
    same = all(r.token_ids == results[0].token_ids for r in results)
    return {
        "ok": same,
        "wrong": None if same else "other tokens once its calls were replayed as CUDA graphs",
        "cuda_graphs_replayed": replayed,
        "providers": results[-1].providers,  # which say why a graph's calls are not replayed
        "notes": list(results[-1].notes),
    }


def timings(bundle: Bundle, engine: str, precision: str, rounds: int) -> dict[str, Any]:
    """Each stage's median time by budget; of built engines also stored beside the prediction."""
    samples = reference_of(bundle)
    with Pipeline.load(bundle, engine, precision) as pipe:
        opened: Any = pipe.chain.engine
        by_budget = {s.budget: _stages_ms(pipe, s, rounds) for s in samples}
        stored = store(bundle, opened, by_budget)
        free = opened.device.driver.free_bytes()
    most = by_budget[largest(samples).budget]
    return {
        "budget": largest(samples).budget,
        "stages_ms_by_budget": by_budget,
        "decode_step_ms": most["decode, a token"],
        "free_bytes": free,
        "stored_in": stored,
    }


def largest(samples: list[Sample]) -> Sample:
    """The sample that looks most."""
    return max(samples, key=lambda s: len(s.crop_boxes))


def _stages_ms(pipe: Pipeline, sample: Sample, rounds: int) -> dict[str, float]:
    """Each stage's median time, by the fit check's names."""
    for _ in range(3):  # compiles, records
        ask(pipe, sample)
    runs = [ask(pipe, sample) for _ in range(rounds)]
    found = {stage: median(r.timings_ms[stage] for r in runs) for stage in runs[0].timings_ms}
    found["decode, a token"] = found.pop("decode") / max(1, runs[0].decode_steps)
    return found


def store(bundle: Bundle, engine: Any, by_budget: dict[str, dict[str, float]]) -> str | None:
    """Puts times beside the fit check's prediction, if built engines were measured; where."""
    record = getattr(engine, "record", None)
    if record is None:
        return None
    entry = {
        "gpu": engine.device.driver.name,
        "power_mode": look_around().power_mode,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stages_ms": by_budget,
    }
    try:
        store_measured(Bundle.open(bundle.root), record, entry)
    except GeoMagError as e:  # a bundle may be read-only; the report has the times
        return one_line(str(e))
    return f"{record.folder}/{RECORD}"


def ask(pipe: Pipeline, sample: Sample) -> Result:
    """A reference's question."""
    return pipe(
        sample.image, sample.prompt, sample.budget, sample.max_new_tokens, sample.answer_prefix
    )


def _compare(
    ours: Pipeline, theirs: Pipeline, sample: Sample, tolerance: Tolerance
) -> dict[str, Any]:
    """One question to both engines."""
    a, b = ask(ours, sample), ask(theirs, sample)
    ious = [mask_iou(x, y) for x, y in zip(a.masks, b.masks, strict=False)]
    crop_px = (
        float(np.abs(a.crop_boxes - b.crop_boxes).max(initial=0.0))
        if a.crop_boxes.shape == b.crop_boxes.shape
        else None
    )
    equal = a.token_ids == b.token_ids
    wrong = None
    if tolerance.tokens_equal and not equal:
        wrong = f"other tokens than ort-cpu on {sample.prompt!r}"
    elif len(a.masks) != len(b.masks) and equal:
        wrong = f"{len(a.masks)} masks, ort-cpu has {len(b.masks)} on {sample.prompt!r}"
    elif equal and ious and min(ious) < tolerance.mask_iou:
        wrong = f"mask IoU {min(ious):.4f} with ort-cpu's on {sample.prompt!r}"
    return {
        "prompt": sample.prompt, "budget": sample.budget, "tokens_equal": equal,
        "mask_iou": min(ious, default=None), "crop_px": crop_px, "wrong": wrong,
    }  # fmt: skip
