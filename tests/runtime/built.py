"""Bundles with engines of the stand-in, as `geomag-edge build` leaves real ones."""

import dataclasses
import json
import shutil

from geomag_edge.graphs import past_names, present_names
from geomag_edge.manifest import Bundle, sha256_of
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.tensorrt.fixed import fixed_cache, fixed_ports
from geomag_edge.runtime.engines.tensorrt.profiles import FIXED, limits_of, profiles_of
from geomag_edge.runtime.engines.tensorrt.record import BuildRecord, EngineFile
from tests.runtime.tensorrt_stand_in import VERSION

MOST = {"encoder": ("n", "views"), "projector": ("n", "views"), "mask_head": ("m", "queries")}
"""Graph -> the axis along which calls are made in parts, and its name in limits."""


def built(
    opened, folder, precision="fp32", cache="growing", separate=False, limits=None, **changes
):
    """A bundle with the stand-in's engines of every graph.

    Args:
        opened: the bundle with the graphs.
        folder: where it is made; the graphs stay where they are.
        precision, cache: of the engines.
        separate: an engine for each profile.
        limits: most views and queries of one call.
        changes: to the build record.
    """
    manifest = opened.manifest
    place = f"engines/tensorrt-rtx/{precision}"
    (folder / place).mkdir(parents=True)
    for name in ("tokenizer.json", "psc_tokenizer.json"):
        shutil.copy(opened.root / name, folder / name)
    shutil.copytree(opened.root / "reference", folder / "reference", dirs_exist_ok=True)
    engines = {}
    for graph, profiles in profiles_of(manifest, cache=cache).items():
        if limits and graph in MOST:
            axis, name = MOST[graph]
            profiles = [
                dataclasses.replace(p, axes={**p.axes, axis: (*p.axes[axis][:2], limits[name])})
                if p.axes[axis][2] > limits[name] else p
                for p in profiles
            ]  # fmt: skip
        ports = opened.record(graph, precision, "tensorrt")
        source = opened.graph(graph, precision, "tensorrt")
        made = source, ports["inputs"], ports["outputs"], {}
        if graph == "llm" and cache == FIXED:
            made = _fixed(opened, folder / place, precision, source, ports)
        groups = [[p] for p in profiles] if separate else [profiles]
        engines[graph] = [
            _write(folder, f"{place}/{graph}{f'-{i}' if separate else ''}.engine", group, *made)
            for i, group in enumerate(groups)
        ]
    options = {"cache": cache} if cache == FIXED else {}
    record = BuildRecord(
        target="tensorrt-rtx", precision=precision, flavour="tensorrt_rtx", version=VERSION,
        built_on={"gpu": None, "sm": None}, loads_on_sm=["8.6", "8.7"], options=options,
        limits=limits_of(manifest), engines=engines,
    )  # fmt: skip
    record = dataclasses.replace(record, **changes)
    (folder / place / "build.json").write_text(json.dumps(record.to_json()))
    stored = manifest.to_json()
    stored["files"] = manifest.files | {
        str(p.relative_to(folder)): sha256_of(p) for p in (folder / place).iterdir()
    }
    (folder / "bundle.json").write_text(json.dumps(stored))
    return Bundle.open(folder)


def _fixed(opened, folder, precision, source, ports):
    """The LLM's graph with a fixed cache, its ports, and what is updated in place."""
    capacity = limits_of(opened.manifest).capacity
    for name in ports["data"]:
        shutil.copy(opened.root / name, folder)
    target = folder / "llm.onnx"
    target.write_bytes(fixed_cache(source, capacity))
    layers = opened.manifest.decoder.layers
    aliases = dict(zip(present_names(layers), past_names(layers), strict=True))
    inputs, outputs = (fixed_ports(ports[p], capacity) for p in ("inputs", "outputs"))
    return target, inputs, outputs, aliases


def _write(folder, file, profiles, source, inputs, outputs, aliases):
    said = {
        "onnx": str(source), "axes": {p["name"]: p["axes"] for p in (*inputs, *outputs)},
        "aliases": aliases,
        "profiles": [{a: (low, high) for a, (low, _, high) in p.axes.items()} for p in profiles],
    }  # fmt: skip
    (folder / file).write_text(json.dumps(said))
    return EngineFile(
        file=file, sha256=sha256_of(folder / file), bytes=1, source={}, profiles=tuple(profiles),
        shapes=tuple({} for _ in profiles), inputs=inputs, outputs=outputs,
        memory={"weights_bytes": 1, "activation_bytes": [5000] * len(profiles), "from": "test"},
        layer_precisions={}, warnings=[], build_s=0.0,
    )  # fmt: skip


def pipeline(engine):
    """A pipeline on an engine that is open."""
    bundle = engine.bundle
    coder = PromptCoder.load(
        bundle.manifest.prompt, bundle.file("tokenizer.json"), bundle.file("psc_tokenizer.json")
    )
    return Pipeline(bundle, Chain(engine, bundle.manifest, coder))
