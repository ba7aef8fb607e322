"""`geomag-edge quantize`: float32 graphs -> another precision, judged before it is kept."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from geomag_edge.amend import Amendment, amended
from geomag_edge.cpp_ext.psc_graph import add_crops
from geomag_edge.errors import BundleError, ExportError, InputError
from geomag_edge.graphs import CHAIN, PSC, TOLERANCES, GraphSpec, all_graphs, port_records
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.pipeline import Pipeline
from geomag_edge.runtime.reference import FILES, load_reference
from geomag_edge.runtime.verify import Report as Parity
from geomag_edge.runtime.verify import verify

from .blame import Blame, blame
from .datasets import Dataset
from .evaluate import evaluate
from .gate import Gate, Verdict, judge
from .recipes import CALIBRATED, Source, find_recipe, halved, kept_nodes
from .relax import layers_by_noise
from .report import Report
from .scales import GraphScales, Scales, load_scales
from .sensitivity import FirstQuestions, Probe, Search, layer_gains, measure_layers, search
from .tables import dequantize_first

SOURCE = "fp32"

SEARCH_QUESTIONS = 24
"""A search asks so many for every layer, and the whole set for every choice."""

INLINE_BYTES = 1024
"""Smaller tensors stand in the ONNX file itself."""

STEPS = len(CHAIN) + 1
"""How often `progress` is called, plus twice for every engine."""


@dataclass
class Quantized:
    """What came of a recipe.

    Attributes:
        precision: the recipe's name.
        quantized: graph -> ONNX nodes that are narrow now.
        bytes: of the precision's graphs, files shared with another precision included.
        source_bytes: of the float32 graphs.
        special_bytes: of the files that one runtime alone reads.
        parity: engine -> drift at every graph's boundary.
        verdicts: engine -> the gate's outcome; empty for a model that was never trained.
        blamed: where the gate refused, the layers with quantised activations, the worst first.
        search: every layer's loss and gain, where they were asked for.
    """

    precision: str
    quantized: dict[str, list[str]]
    bytes: int
    source_bytes: int
    special_bytes: int
    parity: dict[str, Parity] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    blamed: list[Blame] = field(default_factory=list)
    search: Search | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the gate let it pass on every engine."""
        return all(v.ok for v in self.verdicts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "precision": self.precision,
            "ok": self.ok,
            "quantized": self.quantized,
            "bytes": self.bytes,
            "source_bytes": self.source_bytes,
            "parity": {engine: p.to_json() for engine, p in self.parity.items()},
            "special_bytes": self.special_bytes,
            "blamed": [b.to_json() for b in self.blamed],
            "search": self.search.to_json() if self.search else None,
            "gate": {engine: v.to_json() for engine, v in self.verdicts.items()},
            "notes": self.notes,
        }


def write_graphs(
    change: Amendment,
    recipe: str,
    method: str | None = None,
    keep: Collection[str] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, list[str]]:
    """Writes a recipe's graphs into the amendment's stage and lists them in its manifest.

    Args:
        change: of `amended(bundle, "onnx/<recipe>")`.
        recipe: one of `recipes.RECIPES`.
        method: the calibrator; None for the one that `calibrate` chose.
        keep: patterns `graph/node` of nodes that stay wide.
        progress: called with a few words for each graph.

    Returns:
        graph -> nodes that are narrow now.
    """
    passes, bundle = find_recipe(recipe), change.bundle
    manifest = bundle.manifest
    if SOURCE not in manifest.graphs:
        raise BundleError(
            f"{bundle.root} has no {SOURCE} graphs to quantize: export it with --dtype fp32"
        )
    scales = load_scales(bundle) if recipe in CALIBRATED else None
    method = _method(bundle, method)
    made: dict[str, list[str]] = {}
    records: dict[str, Any] = {}
    for spec in all_graphs(manifest.decoder.layers):
        if spec.name not in CHAIN:
            continue
        progress(f"writing {spec.name}")
        forms = passes.get(spec.name)
        record = dict(manifest.graphs[SOURCE][spec.name])
        narrow: list[str] = []
        if forms:
            source = _source(bundle, spec, scales, method, keep)
            for step in forms.portable:
                narrow += step(source)
            wide = "float16" if recipe == "fp16" else "float32"
            record = _write(change, spec, source.model, recipe, wide)
        if recipe != "fp16":
            whole = forms is None or forms.for_tensorrt
            origin = record if whole else manifest.graphs[SOURCE][spec.name]
            record["forms"] = {"tensorrt": _half_form(change, spec, origin, recipe)}
        if forms and forms.onnxruntime:
            source = _source(bundle, spec, scales, method, keep)
            for step in forms.onnxruntime:
                step(source)
            form = _write(change, spec, source.model, recipe, "float32", "onnxruntime")
            record["forms"]["onnxruntime"] = form
        records[spec.name] = record
        if narrow:
            made[spec.name] = narrow
    unknown = [p for p in keep if not _names_a_node(bundle, p)]
    if unknown:
        raise InputError(f"no node of the bundle's graphs is named {unknown[0]!r}")
    manifest.graphs[recipe] = records
    if "psc_select" in passes:
        records["psc"] = _psc(change, records["psc_select"], recipe)
    else:
        records["psc"] = dict(manifest.graphs[SOURCE]["psc"])
    change.list_files()
    return made


def _names_a_node(bundle: Bundle, pattern: str) -> bool:
    graph = pattern.partition("/")[0]
    names = [name for name in CHAIN if kept_nodes([pattern], name, _load(bundle, name))]
    return bool(names) if graph else False


def _load(bundle: Bundle, graph: str) -> ir.Model:
    return ir.load(bundle.graph(graph, SOURCE))


def _source(
    bundle: Bundle, spec: GraphSpec, scales: Scales | None, method: str,
    keep: Collection[str],
) -> Source:  # fmt: skip
    model = _load(bundle, spec.name)
    seen = scales.graph(spec.name) if scales else GraphScales("", {})
    return Source(model, spec, seen, method, kept_nodes(keep, spec.name, model))


def _write(
    change: Amendment, spec: GraphSpec, model: ir.Model, recipe: str, wide: str, form: str = ""
) -> dict[str, Any]:
    """Saves a graph with its weights beside it; returns its record."""
    path = change.stage / (f"{spec.name}.{form}.onnx" if form else spec.file)
    ir.save(model, path, external_data=f"{path.name}.data")
    return _record(change, spec, path, recipe, wide)


def _half_form(
    change: Amendment, spec: GraphSpec, record: dict[str, Any], recipe: str
) -> dict[str, Any]:
    """The same graph with the rest in half; integers stay in the file where they are."""
    file = Path(record["file"]).name
    inside = record["file"].startswith(f"{change.inside}/")
    origin = change.stage / file if inside else change.bundle.file(record["file"])
    for name in record["data"] if not inside else ():
        change.bundle.file(name)
    model = ir.load(origin)
    dequantize_first(model)
    halved(Source(model, spec, GraphScales("", {}), "mse", frozenset()))
    path = change.stage / f"{spec.name}.tensorrt.onnx"
    large = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or (inside and isinstance(tensor, ir.ExternalTensor)):
            continue
        if tensor.nbytes > INLINE_BYTES:
            large.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.tensor(tensor.numpy(), name=tensor.name)
    tensors = [value.const_value for value in large if value.const_value is not None]
    moved = ir.external_data.convert_tensors_to_external(tensors, change.stage, f"{path.name}.data")
    for value, tensor in zip(large, moved, strict=True):
        value.const_value = tensor
    ir.save(model, path)
    return _record(change, spec, path, recipe, "float16")


def _record(
    change: Amendment, spec: GraphSpec, path: Path, recipe: str, wide: str
) -> dict[str, Any]:
    """What the manifest says of a staged graph, once `onnx.checker` has passed it."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ExportError(f"graph {spec.name} in {recipe} is not valid ONNX: {reason}") from e
    model = onnx.load(str(path), load_external_data=False)
    data = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    [opset] = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return {
        "file": f"{change.inside}/{path.name}",
        "data": sorted(f"{change.inside}/{name}" for name in data),
        "precision": recipe,
        "opset": opset,
        "inputs": port_records(spec.inputs, wide),
        "outputs": port_records(spec.outputs, wide),
    }


def _psc(change: Amendment, select: dict[str, Any], recipe: str) -> dict[str, Any]:
    """psc.onnx around the quantised psc_select, weights shared."""
    manifest = change.bundle.manifest
    view = manifest.view
    model = onnx.load(str(change.stage / Path(select["file"]).name), load_external_data=False)
    mean_std = np.array([view.mean, view.std], np.float32)
    add_crops(model, mean_std, view.view_px, manifest.psc.max_crops)
    path = change.stage / PSC.file
    onnx.save_model(model, str(path))
    wide = "float16" if recipe == "fp16" else "float32"
    return _record(change, PSC, path, recipe, wide)


def quantize(
    bundle: Bundle,
    recipe: str,
    data: Dataset | None,
    gate: Gate,
    engines: Sequence[str] = ("ort-cpu",),
    method: str | None = None,
    keep: Collection[str] = (),
    threads: int | None = None,
    search_for: str | None = None,
    relax: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Quantized:
    """Adds a precision to a bundle if it passes the gate; else the bundle stays as it is.

    Args:
        bundle: holds float32 graphs, and scales where the recipe needs them.
        recipe: one of `recipes.RECIPES`; also the precision's name.
        data: what to ask; None only for a model that was never trained, whose answers mean
            nothing: such a precision is kept without a verdict.
        gate: what may be lost.
        engines: what the precision is judged on, each against float32 on `ort-cpu`.
        method, keep: see `write_graphs`.
        threads: CPU threads of a graph.
        search_for: an engine: measure every layer on it, and quantise those alone that gain time
            there and that the gate lets pass.
        relax: if the gate refuses, give back the noisiest layers, twice as many each time, until it
            passes or all are given back.
        progress: called with a few words as each step starts.

    Raises:
        BundleError: no float32 graphs, or no scales.
        InputError: a trained model and no data.
    """
    untrained = bundle.manifest.untrained
    if data is None and not untrained:
        raise InputError(
            "a precision is judged by its answers: give --data with a set of questions, such as "
            "scenes:7:24"
        )
    reference: Report | None = None
    if data is not None and not untrained:
        progress(f"asking {SOURCE}")
        with Pipeline.load(bundle, "ort-cpu", SOURCE, threads) as pipe:
            reference = evaluate(pipe, data)
    try:
        with amended(bundle, f"onnx/{recipe}") as change:
            narrow = write_graphs(change, recipe, method, keep, progress)
            found = None
            if search_for is not None:
                if reference is None or data is None:
                    raise InputError("a search weighs answers: it needs a trained model and --data")
                found = _search(
                    change.bundle, recipe, data, reference, gate, search_for, threads, progress
                )
                keep = [*keep, *(f"{graph}/{glob.escape(node)}" for graph, node in found.wide)]
                change.empty()
                narrow = write_graphs(change, recipe, method, keep, progress)
            judge_on = partial(
                _measure, change.bundle, recipe, data, reference, gate, engines, threads
            )
            result = Quantized(recipe, narrow, *_sizes(change.bundle, recipe), search=found)
            judge_on(result, progress)
            order = _noisiest(bundle, recipe, method) if relax and not result.ok else []
            count = 1
            while not result.ok and order:
                back = order[:count]
                given = [f"{graph}/{glob.escape(node)}" for graph, node in back]
                change.empty()
                narrow = write_graphs(change, recipe, method, [*keep, *given], progress)
                result = Quantized(recipe, narrow, *_sizes(change.bundle, recipe), search=found)
                names = ", ".join(f"{graph}/{node}" for graph, node in back)
                result.notes.append(
                    f"{len(back)} of {len(order)} layers given back to pass: {names}"
                )
                judge_on(result, progress)
                if count >= len(order):
                    break
                count = min(2 * count, len(order))
            if not result.ok:
                samples = load_reference(*(bundle.file(f"reference/{name}") for name in FILES))
                result.blamed = blame(change.bundle, recipe, samples)
                raise _Refused(result)
            change.bundle.manifest.parity[recipe] = {
                engine: parity.to_json() for engine, parity in result.parity.items()
            }
            change.bundle.manifest.accuracy[recipe] = {
                "gate": {engine: v.to_json() for engine, v in result.verdicts.items()},
                "quantized": narrow,
                "search": found.to_json() if found else None,
                "method": method,
                "keep": sorted(keep),
                "notes": result.notes,
            }
    except _Refused as refused:
        return refused.result
    return result


def _noisiest(bundle: Bundle, recipe: str, method: str | None) -> list[tuple[str, str]]:
    if recipe not in CALIBRATED:
        return []
    return layers_by_noise(bundle, recipe, SOURCE, load_scales(bundle), _method(bundle, method))


def _method(bundle: Bundle, method: str | None) -> str:
    """The calibrator asked for, or the one that `calibrate` chose."""
    chosen = method or (bundle.manifest.calibration or {}).get("method")
    return str(chosen or "mse")


def _search(
    bundle: Bundle, recipe: str, data: Dataset, reference: Report, gate: Gate, engine: str,
    threads: int | None, progress: Callable[[str], None],
) -> Search:  # fmt: skip
    """Every layer's loss and gain, and the choice."""
    samples = load_reference(*(bundle.file(f"reference/{name}") for name in FILES))
    progress("timing layers")
    gains = layer_gains(bundle, SOURCE, samples, engine, threads)
    blamed = blame(bundle, recipe, samples)
    few = Probe(bundle, recipe, FirstQuestions(data, SEARCH_QUESTIONS), threads)
    try:
        layers = measure_layers(few, gains, blamed, progress)
    finally:
        few.close()
    probe = Probe(bundle, recipe, data, threads)
    try:
        return search(layers, probe, reference, gate, engine, progress)
    finally:
        probe.close()


class _Refused(Exception):
    """Leaves `amended` without a change."""

    def __init__(self, result: Quantized):
        self.result = result


def _measure(
    bundle: Bundle, recipe: str, data: Dataset | None, reference: Report | None, gate: Gate,
    engines: Sequence[str], threads: int | None, result: Quantized,
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Parity and the gate's verdict on every engine, up to the first that refuses."""
    samples = load_reference(*(bundle.file(f"reference/{name}") for name in FILES))
    if reference is None:
        result.notes.append(
            f"never trained: {', '.join(bundle.manifest.untrained)}; not judged by its answers"
        )
    for engine in engines:
        with Pipeline.load(bundle, engine, recipe, threads) as pipe:
            progress(f"parity on {engine}")
            result.parity[engine] = verify(pipe.chain, samples, TOLERANCES[recipe])
            if reference is None or data is None:
                continue
            progress(f"asking {recipe} on {engine}")
            verdict = judge(evaluate(pipe, data), reference, gate)
        result.verdicts[engine] = verdict
        if not verdict.ok:
            progress(f"refused on {engine}: {'; '.join(verdict.reasons)}")
            return


def _sizes(bundle: Bundle, precision: str) -> tuple[int, int, int]:
    """Bytes of the precision, of float32, and of what one runtime alone reads."""

    def of(names: set[str]) -> int:
        return sum(bundle.file(name).stat().st_size for name in names)

    portable = bundle.graph_files(precision, forms=False)
    special = bundle.graph_files(precision) - portable
    return of(portable), of(bundle.graph_files(SOURCE)), of(special)
