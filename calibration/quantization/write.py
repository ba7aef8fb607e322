"""A recipe's graphs, written into a bundle: portable, TensorRT's and ONNX Runtime's own files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from geomag_edge.calibration.quantization.formats.gptq import fitted_blocks
from geomag_edge.calibration.quantization.formats.int4 import BlockWeight, check_opset, last_layers
from geomag_edge.cpp_ext.psc_graph import add_crops
from geomag_edge.disk.amend import Amendment
from geomag_edge.disk.onnx_model import load_ir, load_proto
from geomag_edge.errors import BundleError, ExportError, InputError
from geomag_edge.graphs import CHAIN, PSC, GraphSpec, all_graphs, port_records
from geomag_edge.manifest import Bundle

from .recipes import CALIBRATED, WEIGHT_BLOCK, Source, find_recipe, halved, in_4_bits, kept_nodes
from .scales import GraphScales, Scales, load_scales

SOURCE = "fp32"
"""The precision that every recipe starts from."""

INLINE_BYTES = 1024
"""Smaller tensors stand in the ONNX file itself."""


def write_graphs(
    change: Amendment,
    recipe: str,
    method: str | None = None,
    keep: Collection[str] = (),
    progress: Callable[[str], None] = lambda step: None,
    fitted: Mapping[str, BlockWeight] | None = None,
) -> dict[str, list[str]]:
    """Writes a recipe's graphs into the amendment's stage and lists them in its manifest.

    Args:
        change: of `amended(bundle, "onnx/<recipe>")`.
        recipe: one of `recipes.RECIPES`.
        method: the calibrator; None for the one that `calibrate` chose.
        keep: patterns `graph/node` of nodes that stay wide.
        progress: called with a few words for each graph.
        fitted: the LLM's 4-bit weights (`fit_weights`), where they are known already.

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
    method = method_of(bundle, method)
    if scales is not None and fitted is None and in_4_bits(recipe):
        fitted = fit_weights(bundle, scales, progress=progress)
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
            source = _source(bundle, spec, scales, method, keep, fitted)
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


def fit_weights(
    bundle: Bundle,
    scales: Scales,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, BlockWeight]:
    """The LLM's weights in 4 bits, its head's in 8, fitted to what calibration saw."""
    graph = bundle.graph("llm", SOURCE)
    model = _load(bundle, "llm")
    check_opset(model)
    heads = last_layers(model)
    return fitted_blocks(
        graph, scales.spoken, WEIGHT_BLOCK, heads, threads, lambda node: progress(f"fitting {node}")
    )


def _names_a_node(bundle: Bundle, pattern: str) -> bool:
    graph = pattern.partition("/")[0]
    names = [name for name in CHAIN if kept_nodes([pattern], name, _load(bundle, name))]
    return bool(names) if graph else False


def _load(bundle: Bundle, graph: str) -> ir.Model:
    return load_ir(bundle.graph(graph, SOURCE))


def _source(
    bundle: Bundle,
    spec: GraphSpec,
    scales: Scales | None,
    method: str,
    keep: Collection[str],
    fitted: Mapping[str, BlockWeight] | None = None,
) -> Source:
    model = _load(bundle, spec.name)
    seen = scales.graph(spec.name) if scales else GraphScales("", {})
    return Source(model, spec, seen, method, kept_nodes(keep, spec.name, model), fitted or {})


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
    model = load_ir(origin)
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
    model = load_proto(path)
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
    model = load_proto(change.stage / Path(select["file"]).name)
    mean_std = np.array([view.mean, view.std], np.float32)
    add_crops(model, mean_std, view.view_px, manifest.psc.max_crops)
    path = change.stage / PSC.file
    onnx.save_model(model, str(path))
    wide = "float16" if recipe == "fp16" else "float32"
    return _record(change, PSC, path, recipe, wide)


def method_of(bundle: Bundle, method: str | None) -> str:
    """The calibrator asked for, or the one that `calibrate` chose."""
    chosen = method or (bundle.manifest.calibration or {}).get("method")
    return str(chosen or "mse")
