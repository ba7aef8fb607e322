"""`geomag-edge export`: checkpoint -> bundle, with parity proven before anything is kept."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import torch

from geomag_edge.disk.signature import signing_key, write_signature
from geomag_edge.disk.staging import staged_folder
from geomag_edge.errors import InputError, ParityError
from geomag_edge.export.describe import describe
from geomag_edge.export.encoder import encoder_graph
from geomag_edge.export.glue import embed_graph, projector_graph
from geomag_edge.export.graph import OPSETS, export_graph
from geomag_edge.export.llm import llm_graph
from geomag_edge.export.mask_head import mask_head_graph
from geomag_edge.export.parity import capture, release
from geomag_edge.export.psc import psc_graph, psc_select_graph
from geomag_edge.graphs import CHAIN, TOLERANCES, GraphSpec, all_graphs, port_records
from geomag_edge.manifest import MANIFEST, Bundle, Manifest, sha256_of
from geomag_edge.model.geomag import GeoMagForConditionalGeneration, load_checkpoint
from geomag_edge.model.processor import TOKENIZERS, GeoMagProcessor
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.engines.ort import OrtEngine
from geomag_edge.runtime.engines.reference import Sample
from geomag_edge.runtime.proof.recording import save_reference
from geomag_edge.runtime.proof.verify import Report, verify
from geomag_edge.targets import Target
from geomag_edge.targets.check import check_graph

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
WIDE = {"fp32": "float32", "fp16": "float16"}

STEPS = 21
"""How often `progress` is called, for a progress bar."""


def export_bundle(
    checkpoint: Path,
    out: Path,
    dtype: str = "fp32",
    opset: int = 23,
    force: bool = False,
    progress: Callable[[str], None] = lambda step: None,
    target: Target | None = None,
    sign: Path | None = None,
) -> Report:
    """Exports a checkpoint to a bundle and proves that it answers as PyTorch does.

    Weights leave memory as soon as their graph is on disk, so the peak stays near one copy.

    Args:
        checkpoint: a GeoMag checkpoint folder.
        out: where the bundle goes; written beside and renamed, so it is there whole or not.
        dtype: `fp32` or `fp16`, the graphs' precision.
        opset: 23 (fused attention) or 20 (decomposed).
        force: replace an existing `out`.
        progress: called with a few words as each step starts.
        target: refuse graphs of the chain that it cannot take.
        sign: sign the bundle with the private ed25519 key of this file.

    Returns:
        The parity report, which the manifest holds too.

    Raises:
        CheckpointError, ExportError, InputError, OutputError.
        ParityError: a graph or the chain is past the precision's tolerance; nothing is written.
        TargetError: the target cannot take a graph; nothing is written.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is not supported: choose one of {OPSETS}")
    key = signing_key(sign) if sign else None  # a wrong key is told before the work
    checkpoint, out = Path(checkpoint), Path(out)
    with staged_folder(out, force, MANIFEST, [checkpoint]) as stage:
        made = _written(checkpoint, stage, out, dtype, opset, progress)
        if target is not None:
            for name in CHAIN:
                check_graph(stage / "onnx" / dtype / f"{name}.onnx", target)
        manifest = made.manifest
        manifest.graphs[dtype] = {
            spec.name: _record(spec, stage / "onnx" / dtype, stage, dtype, opset)
            for spec in all_graphs(manifest.decoder.layers)
        }
        progress("hashing")
        _list_files(manifest, stage)
        report = _verify(made, stage, dtype, progress)
        manifest.parity[dtype] = report.to_json()
        (stage / MANIFEST).write_text(manifest.to_text())
        if key:
            write_signature(stage / MANIFEST, key)
        if not report.ok:
            raise ParityError(f"parity failed, nothing was written: {report.first_drift}")
        progress("writing the bundle")
    return report


class _Written(NamedTuple):
    """What an export knows when the model has left memory."""

    manifest: Manifest
    coder: PromptCoder
    samples: list[Sample]


def _written(
    checkpoint: Path,
    stage: Path,
    out: Path,
    dtype: str,
    opset: int,
    progress: Callable[[str], None],
) -> _Written:
    """Captures what PyTorch does, and writes the reference, the tokenizers and the graphs."""
    progress("loading the checkpoint")
    model = load_checkpoint(checkpoint)
    processor = GeoMagProcessor.from_pretrained(checkpoint)
    manifest = describe(model, processor.coder.settings, checkpoint, out)
    samples = capture(model, manifest, processor, progress)
    save_reference(samples, stage / "reference")
    for name in TOKENIZERS:
        shutil.copyfile(checkpoint / name, stage / name)
    folder = stage / "onnx" / dtype
    folder.mkdir(parents=True)
    _cast_weights(model, DTYPES[dtype])
    _export_graphs(model, folder, opset, progress)
    del model
    gc.collect()  # the exporter leaves cycles that keep the whole checkpoint mapped
    return _Written(manifest, processor.coder, samples)


def _cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights in the graphs' precision; tables such as the rotary frequencies stay float32.

    A half-precision frequency times a late position is an angle that is off by radians.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _export_graphs(
    model: GeoMagForConditionalGeneration,
    folder: Path,
    opset: int,
    progress: Callable[[str], None],
) -> None:
    """Exports graph after graph; a part of the model is freed once nothing needs it."""
    progress("exporting encoder")
    export_graph(encoder_graph(model), folder, opset)
    release(model.encoder)
    progress("exporting mask_head")
    export_graph(mask_head_graph(model), folder, opset)
    release(model.mask_head)
    progress("exporting psc")
    select = export_graph(psc_select_graph(model), folder, opset)
    psc_graph(select, model.config, folder)
    release(model.psc)
    progress("exporting projector and embed")
    export_graph(projector_graph(model), folder, opset)
    export_graph(embed_graph(model), folder, opset)
    progress("exporting llm")
    export_graph(llm_graph(model), folder, opset)
    release(model)


def _record(spec: GraphSpec, folder: Path, stage: Path, precision: str, opset: int) -> dict:
    """What the manifest says of one graph."""
    model = onnx.load(str(folder / spec.file), load_external_data=False)
    data = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    inside = folder.relative_to(stage).as_posix()
    return {
        "file": f"{inside}/{spec.file}",
        "data": sorted(f"{inside}/{name}" for name in data),
        "precision": precision,
        "opset": opset,
        "inputs": port_records(spec.inputs, WIDE[precision]),
        "outputs": port_records(spec.outputs, WIDE[precision]),
    }


def _list_files(manifest: Manifest, stage: Path) -> None:
    manifest.files = {
        path.relative_to(stage).as_posix(): sha256_of(path)
        for path in sorted(stage.rglob("*"))
        if path.is_file()
    }


def _verify(made: _Written, stage: Path, dtype: str, progress: Callable[[str], None]) -> Report:
    """Parity of the staged graphs in ONNX Runtime with what PyTorch did."""
    engine = OrtEngine(Bundle(stage, made.manifest), dtype, None)
    chain = Chain(engine, made.manifest, made.coder)
    try:
        return verify(chain, made.samples, TOLERANCES[dtype], progress)
    finally:
        chain.close()
