"""All engines of a bundle for one target and precision: `geomag-edge build`."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geomag_edge.disk.amend import Amendment, amended
from geomag_edge.disk.caches import cache_root
from geomag_edge.errors import EngineError, InputError, OutputError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle, Manifest, sha256_of
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
from geomag_edge.runtime.engines.tensorrt.workspace import workspace_for
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
        graphs: of `CHAIN`; engines of other graphs stay where they were built with these options,
            on this GPU, by this version, and go otherwise.
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
    old = load_record(bundle, target.name, precision)
    options = _options_for(target, flavour, precision, options or BuildOptions(), machine, old)
    job = _Job(bundle, manifest, target, precision, machine, flavour, options)
    job.check_precision()
    kept = {} if old is None else job.kept(old)
    plans = plans_of(manifest, target, graphs, options.cache)
    todo = [plan for plan in plans if job.file_of(plan) not in kept]
    if old is not None and not todo:
        return old, []
    with amended(bundle, job.inside) as change:
        for name in kept:
            _same_file(bundle.file(name), change.stage / Path(name).name)
        made: dict[str, EngineFile] = dict(kept)
        for plan in todo:
            progress(f"{plan.stem} ({', '.join(p.name for p in plan.profiles)})")
            file = job.build(change, plan, on_phase)
            made[file.file] = file
        record = job.record(made.values(), fit, time.perf_counter() - start)
        _write(change, record)
    return record, [job.file_of(plan) for plan in todo]


def _options_for(
    target: Target,
    flavour: Flavour,
    precision: str,
    options: BuildOptions,
    machine: Machine,
    old: BuildRecord | None,
) -> BuildOptions:
    """Options that are checked and say which GPUs they are for.

    Raises:
        EngineError: the target cannot be built for here.
    """
    if options.cache == FIXED:
        check_target(target)
    if flavour.name == "tensorrt" and (machine.trouble or machine.sm is None):
        cause = machine.trouble or "nothing says its compute capability"
        raise EngineError(
            f"target {target.name!r} builds on the device itself, with its GPU, and here "
            f"{cause}: run the same command there (docs/TARGETS.md), or use --target tensorrt-rtx"
        )
    if flavour.name == "tensorrt_rtx" and not options.sm:
        options = replace(options, sm=target.sm_for(precision))
    if options.workspace_bytes is None:
        # Memory is free or not by the minute: that alone makes no engine old.
        here = old is not None and old.built_on.get("gpu") == machine.gpu
        before = old.options.get("workspace_bytes") if old is not None and here else None
        options = replace(options, workspace_bytes=before or workspace_for(machine))
    return options


@dataclass(frozen=True)
class _Job:
    """What is built, for what, and by what; see `build_bundle`."""

    bundle: Bundle
    manifest: Manifest
    target: Target
    precision: str
    machine: Machine
    flavour: Flavour
    options: BuildOptions

    @property
    def inside(self) -> str:
        """The engines' folder in the bundle."""
        return folder_of(self.target.name, self.precision)

    def file_of(self, plan: Plan) -> str:
        """An engine's name in the bundle."""
        return f"{self.inside}/{plan.stem}.engine"

    def check_precision(self) -> None:
        """Whether the target takes the precision and the bundle has it.

        Raises:
            BundleError, EngineError: not so.
        """
        if not self.target.takes_precision(self.precision):
            raise EngineError(
                f"target {self.target.name!r} does not take {self.precision}: it has "
                f"{', '.join(self.target.dtypes)}"
            )
        self.bundle.record(CHAIN[0], self.precision)

    def kept(self, old: BuildRecord) -> dict[str, EngineFile]:
        """Engines of an earlier build that a new one would only repeat."""
        there = old.flavour, old.version, old.options, old.built_on.get("gpu")
        flavour = self.flavour
        here = flavour.name, flavour.version, self.options.to_json(), self.machine.gpu
        if there != here:
            return {}
        plans = plans_of(self.manifest, self.target, cache=self.options.cache)
        wanted = {self.file_of(plan): plan for plan in plans}
        files = [file for each in old.engines.values() for file in each]
        return {f.file: f for f in files if f.file in wanted and self._same(f, wanted[f.file])}

    def _same(self, file: EngineFile, plan: Plan) -> bool:
        """Whether an engine is there as it was built, and of this plan."""
        return (
            self.bundle.manifest.files.get(file.file) == file.sha256
            and self.bundle.place(file.file).is_file()
            and file.profiles == plan.profiles
            and file.source.get("sha256") == self._source(plan.graph)["sha256"]
        )

    def _source(self, graph: str) -> dict[str, Any]:
        record = self.bundle.record(graph, self.precision, FORM)
        names = [record["file"], *record["data"]]
        return {"file": record["file"], "sha256": {n: self.bundle.manifest.files[n] for n in names}}

    def build(self, change: Amendment, plan: Plan, on_phase: OnPhase | None) -> EngineFile:
        """Builds one engine into the stage."""
        record = self.bundle.record(plan.graph, self.precision, FORM)
        inputs, outputs = record["inputs"], record["outputs"]
        source = self.bundle.graph(plan.graph, self.precision, FORM)
        model = None
        if plan.graph == "llm" and self.options.cache == FIXED:
            capacity = limits_of(self.manifest).capacity
            model = fixed_cache(source, capacity)
            inputs, outputs = fixed_ports(inputs, capacity), fixed_ports(outputs, capacity)
        built = build_engine(
            self.flavour,
            source,
            {p["name"]: p["axes"] for p in inputs},
            plan.profiles,
            self.options,
            timing_cache_of(self.flavour, self.machine),
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
            source=self._source(plan.graph),
            profiles=plan.profiles,
            shapes=tuple(built.shapes),
            inputs=inputs,
            outputs=outputs,
            memory=memory,
            layer_precisions=built.layer_precisions,
            warnings=built.warnings,
            build_s=round(built.seconds, 2),
        )

    def record(
        self, made: Collection[EngineFile], fit: dict[str, Any] | None, seconds: float
    ) -> BuildRecord:
        """What is kept of a build that took so long."""
        engines = {graph: [f for f in made if _graph_of(f.file) == graph] for graph in CHAIN}
        machine = self.machine
        return BuildRecord(
            target=self.target.name,
            precision=self.precision,
            flavour=self.flavour.name,
            version=self.flavour.version,
            built_on={
                "gpu": machine.gpu,
                "sm": machine.sm,
                "platform": machine.platform,
                "jetpack": machine.jetpack,
                "power_mode": machine.power_mode,
            },
            loads_on_sm=list(self.options.sm) or [str(machine.sm)],
            options=self.options.to_json(),
            limits=limits_of(self.manifest),
            engines={graph: files for graph, files in engines.items() if files},
            fit=fit,
            build_s=round(seconds, 2),
            peak_rss_bytes=peak_rss_bytes(),
        )


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
