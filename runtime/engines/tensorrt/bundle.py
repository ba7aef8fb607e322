"""All engines of a bundle for one target and precision: `geomag-edge build`."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geomag_edge.disk.amend import Amendment, amended
from geomag_edge.errors import EngineError, InputError, OutputError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle, Manifest, sha256_of
from geomag_edge.runtime.engines.auto.remembered import cache_root
from geomag_edge.runtime.engines.tensorrt.build import BuildOptions, OnPhase, build_engine
from geomag_edge.runtime.engines.tensorrt.fixed import check_target, fixed_cache, fixed_ports
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour, flavour_for
from geomag_edge.runtime.engines.tensorrt.profiles import FIXED, Plan, limits_of, plans_of
from geomag_edge.runtime.engines.tensorrt.record import (
    RECORD,
    BuildRecord,
    EngineFile,
    folder_of,
    load_record,
)
from geomag_edge.targets import Target
from geomag_edge.targets.detect import Machine

FORM = "tensorrt"


def build_bundle(
    bundle: Bundle,
    manifest: Manifest,
    target: Target,
    precision: str,
    machine: Machine,
    options: BuildOptions | None = None,
    graphs: Sequence[str] = CHAIN,
    fit: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    on_phase: OnPhase | None = None,
) -> tuple[BuildRecord, list[str]]:
    """Builds what has changed and leaves the bundle with engines and their record.

    An engine is kept as it is when its source, profiles, options and builder are the same.

    Args:
        bundle: is changed on disk when all engines are there, and not before.
        manifest: the bundle's, or one with fewer budgets (`up_to`).
        target: what to build for.
        precision: which of the bundle's sets of graphs.
        machine: what this machine is, for the record.
        options: see `BuildOptions`; its `sm` default to the target's where there is no GPU to ask.
        graphs: of `CHAIN`; engines of other graphs stay as they are.
        fit: the prediction to store.
        progress: called as each engine's build starts.
        on_phase: the builder's own progress.

    Returns:
        The record, and the names of the engines that were built now.

    Raises:
        BundleError, EngineError, MissingExtraError, OutputError.
    """
    start = time.perf_counter()
    if unknown := sorted(set(graphs) - set(CHAIN)):
        raise InputError(f"no graph {unknown[0]!r} is built: choose of {', '.join(CHAIN)}")
    flavour = flavour_for(target)
    _check_precision(bundle, target, precision)
    options = options or BuildOptions()
    if options.cache == FIXED:
        check_target(target)
    if flavour.name == "tensorrt_rtx" and not options.sm:
        options = replace(options, sm=target.sm_for(precision))
    if flavour.name == "tensorrt" and machine.gpu is None:
        raise EngineError(
            f"target {target.name!r} builds on the device itself, and this machine has no GPU: "
            "run the same command there (docs/TARGETS.md), or use --target tensorrt-rtx"
        )
    inside = folder_of(target.name, precision)
    old = load_record(bundle, target.name, precision)
    kept = _kept(bundle, manifest, old, flavour, options, target, precision, machine)
    plans = plans_of(manifest, target, graphs, options.cache)
    todo = [p for p in plans if f"{inside}/{p.stem}.engine" not in kept]
    if old is not None and not todo:
        return old, []
    with amended(bundle, inside) as change:
        for name in kept:
            _same_file(bundle.file(name), change.stage / Path(name).name)
        made: dict[str, EngineFile] = dict(kept)
        for plan in todo:
            progress(f"{plan.stem} ({', '.join(p.name for p in plan.profiles)})")
            capacity = limits_of(manifest).capacity
            file = _build(
                bundle, change, plan, flavour, options, precision, machine, on_phase, capacity
            )
            made[file.file] = file
        engines = {
            graph: [f for f in made.values() if _graph_of(f.file) == graph] for graph in CHAIN
        }
        record = BuildRecord(
            target=target.name,
            precision=precision,
            flavour=flavour.name,
            version=flavour.version,
            built_on={
                "gpu": machine.gpu,
                "sm": machine.sm,
                "platform": machine.platform,
                "jetpack": machine.jetpack,
                "power_mode": machine.power_mode,
            },
            loads_on_sm=list(options.sm) or [str(machine.sm)],
            options=options.to_json(),
            limits=limits_of(manifest),
            engines={g: files for g, files in engines.items() if files},
            fit=fit,
            build_s=round(time.perf_counter() - start, 2),
            peak_rss_bytes=peak_rss_bytes(),
        )
        _write(change, record)
    return record, [f"{inside}/{p.stem}.engine" for p in todo]


def store_measured(bundle: Bundle, record: BuildRecord, measured: dict[str, Any]) -> BuildRecord:
    """Keeps in build.json what a GPU took, beside what was predicted, until a new build.

    Args:
        bundle: is changed on disk.
        record: of the engines that were measured.
        measured: an entry of `BuildRecord.measured`; takes the place of the same GPU's and mode's.

    Raises:
        OutputError: the bundle cannot be written.
        BundleError: an engine is not what was built.
    """

    def who(entry: dict[str, Any]) -> tuple[Any, Any]:
        return entry["gpu"], entry["power_mode"]

    others = [m for m in record.measured if who(m) != who(measured)]
    record = replace(record, measured=[*others, measured])
    with amended(bundle, record.folder) as change:
        for files in record.engines.values():
            for file in files:
                _same_file(bundle.file(file.file), change.stage / Path(file.file).name)
        _write(change, record)
    return record


def _write(change: Amendment, record: BuildRecord) -> None:
    text = json.dumps(record.to_json(), indent=1) + "\n"
    (change.stage / RECORD).write_text(text, encoding="utf-8")


def _check_precision(bundle: Bundle, target: Target, precision: str) -> None:
    if not target.takes_precision(precision):
        raise EngineError(
            f"target {target.name!r} does not take {precision}: it has {', '.join(target.dtypes)}"
        )
    bundle.record(CHAIN[0], precision)


def _kept(
    bundle: Bundle,
    manifest: Manifest,
    old: BuildRecord | None,
    flavour: Flavour,
    options: BuildOptions,
    target: Target,
    precision: str,
    machine: Machine,
) -> dict[str, EngineFile]:
    """Engines of an earlier build that a new one would only repeat."""
    if old is None:
        return {}
    same_builder = (
        (old.flavour, old.version, old.options, old.built_on.get("gpu"))
        == (flavour.name, flavour.version, options.to_json(), machine.gpu)
    )  # fmt: skip
    if not same_builder:
        return {}
    wanted = {
        f"{folder_of(target.name, precision)}/{p.stem}.engine": p
        for p in plans_of(manifest, target, cache=options.cache)
    }
    kept = {}
    for files in old.engines.values():
        for file in files:
            plan = wanted.get(file.file)
            intact = bundle.manifest.files.get(file.file) == file.sha256
            if (
                plan is not None
                and intact
                and bundle.place(file.file).is_file()
                and file.profiles == plan.profiles
                and file.source.get("sha256") == _source(bundle, plan.graph, precision)["sha256"]
            ):
                kept[file.file] = file
    return kept


def _source(bundle: Bundle, graph: str, precision: str) -> dict[str, Any]:
    record = bundle.record(graph, precision, FORM)
    names = [record["file"], *record["data"]]
    return {"file": record["file"], "sha256": {n: bundle.manifest.files[n] for n in names}}


def _build(
    bundle: Bundle,
    change: Amendment,
    plan: Plan,
    flavour: Flavour,
    options: BuildOptions,
    precision: str,
    machine: Machine,
    on_phase: OnPhase | None,
    capacity: int,
) -> EngineFile:
    """Builds one engine into the stage."""
    record = bundle.record(plan.graph, precision, FORM)
    inputs, outputs = record["inputs"], record["outputs"]
    source = bundle.graph(plan.graph, precision, FORM)
    model = None
    if plan.graph == "llm" and options.cache == FIXED:
        model = fixed_cache(source, capacity)
        inputs, outputs = fixed_ports(inputs, capacity), fixed_ports(outputs, capacity)
    built = build_engine(
        flavour,
        source,
        {p["name"]: p["axes"] for p in inputs},
        plan.profiles,
        options,
        timing_cache_of(flavour, machine),
        on_phase,
        model,
    )
    path = change.stage / f"{plan.stem}.engine"
    try:
        path.write_bytes(built.data)
    except OSError as e:
        raise OutputError(f"cannot write {path.name}: {e.strerror or e}") from e
    memory = None
    if built.memory is not None:
        memory = {
            "weights_bytes": built.memory.weights,
            "activation_bytes": built.memory.activations,
            "from": "builder",
        }
    return EngineFile(
        file=f"{change.inside}/{path.name}",
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        source=_source(bundle, plan.graph, precision),
        profiles=plan.profiles,
        shapes=tuple(built.shapes),
        inputs=inputs,
        outputs=outputs,
        memory=memory,
        layer_precisions=built.layer_precisions,
        warnings=built.warnings,
        build_s=round(built.seconds, 2),
    )


def timing_cache_of(flavour: Flavour, machine: Machine) -> Path | None:
    """Where a builder's timings are kept between builds: a version and a GPU have their own."""
    root = cache_root()
    name = re.sub(r"[^\w.]+", "-", f"{flavour.name}-{flavour.version}-{machine.gpu}")
    return root and root / "timing" / f"{name}.cache"


def _graph_of(file: str) -> str:
    return Path(file).name.split(".")[0]


def _same_file(source: Path, place: Path) -> None:
    """A link where the file system has them: an engine may be gigabytes."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


def peak_rss_bytes() -> int:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
