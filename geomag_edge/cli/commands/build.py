"""Build TensorRT engines from a bundle, with profiles from its token budgets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.budgets import LEVELS
from geomag_edge.cli.arguments import watts
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.commands.run import add_gpu_argument
from geomag_edge.cli.commands.targets import add_catalog_argument
from geomag_edge.cli.console import bar_of, print_json, say, steps, tell, terminal
from geomag_edge.errors import FitError, MissingExtraError
from geomag_edge.graphs import CHAIN
from geomag_edge.printing import one_line, table
from geomag_edge.runtime.engines.tensorrt.profiles import CACHES
from geomag_edge.targets import Catalog, Device, Target, load_catalog

if TYPE_CHECKING:
    from geomag_edge.manifest import Bundle
    from geomag_edge.runtime.engines.tensorrt.build import OnPhase
    from geomag_edge.runtime.engines.tensorrt.record import BuildRecord
    from geomag_edge.runtime.planning.fit import Fit
    from geomag_edge.targets.detect import Machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `build`."""
    add_bundle_argument(parser)
    parser.add_argument(
        "--target",
        default="auto",
        metavar="T",
        help="see `geomag-edge targets`; auto (default): what this machine is",
    )
    parser.add_argument(
        "--precision",
        metavar="P",
        help="which graphs of the bundle (default: fp16, or the only one that the target takes)",
    )
    parser.add_argument(
        "--graph",
        action="append",
        choices=CHAIN,
        metavar="G",
        help=f"build only this graph's engine (may be repeated): {', '.join(CHAIN)}",
    )
    parser.add_argument(
        "--budget",
        choices=LEVELS,
        metavar="LEVEL",
        help=f"largest token budget to build for: {', '.join(LEVELS)} (default: all)",
    )
    parser.add_argument(
        "--device",
        metavar="D",
        help="check the fit on this device first (`geomag-edge targets`); exit 1 if it does not",
    )
    add_gpu_argument(parser)
    parser.add_argument(
        "--watts", type=watts, metavar="W", help="the device's power mode (default: its largest)"
    )
    parser.add_argument(
        "--check-only", action="store_true", help="print the fit check and build nothing"
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="engines that later versions of TensorRT load too",
    )
    parser.add_argument(
        "--stripped",
        action="store_true",
        help="engines without weights; the runtime refits them from the ONNX files",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="fp32 engines may multiply in TF32: faster, and off by about 1e-3",
    )
    parser.add_argument(
        "--cache",
        choices=CACHES,
        default=CACHES[0],
        help="the language model's cache: growing by concatenation (default), or fixed: full "
        "length from the start, updated in place, so that decode steps replay as CUDA graphs",
    )
    add_catalog_argument(parser)


def execute(args: argparse.Namespace) -> None:
    """Checks the target's rules and the fit, builds what changed, prints the engines."""
    from geomag_edge.runtime.engines.tensorrt.build import BuildOptions
    from geomag_edge.runtime.engines.tensorrt.bundle import build_bundle
    from geomag_edge.runtime.engines.tensorrt.profiles import plans_of, up_to
    from geomag_edge.targets.detect import look_around

    catalog = load_catalog(args.targets_file)
    bundle = open_bundle(args)
    machine = look_around()
    device = catalog.device(args.device) if args.device else None
    target = _target(args.target, catalog, device, machine)
    precision = args.precision or _default_precision(bundle, target)
    graphs = tuple(args.graph or CHAIN)

    fit = _checked(args, bundle, target, precision, graphs, device)
    if args.check_only and fit is not None:
        if args.json:
            print_json(fit.to_json())
        else:
            say(*_fit(fit))
    if fit is not None and not fit.ok:
        raise FitError(fit.verdict)
    if args.check_only:
        return
    options = BuildOptions(
        sm=(device.sm,) if device is not None and target.flavour == "tensorrt_rtx" else (),
        version_compatible=args.version_compatible,
        stripped=args.stripped,
        cache=args.cache,
        tf32=args.tf32,
    )
    manifest = up_to(bundle.manifest, args.budget) if args.budget else bundle.manifest
    total = len(plans_of(manifest, target, graphs, args.cache))
    with steps(total, "build") as progress, _phases() as on_phase:
        record, built = build_bundle(
            bundle, manifest, target, precision, machine, options, graphs,
            None if fit is None else fit.to_json(), progress, on_phase,
        )  # fmt: skip
    if args.json:
        print_json(
            {"bundle": str(args.bundle), "folder": record.folder, "built": built} | record.to_json()
        )
    else:
        say(*_text(args.bundle, record, built))


def _target(name: str, catalog: Catalog, device: Device | None, machine: Machine) -> Target:
    """The one that was named; by `auto` the device's, or what this machine is."""
    from geomag_edge.targets.detect import choose_target

    if name != "auto":
        return catalog.target(name)
    chosen = device.targets[0] if device else choose_target(machine, catalog, engines=True)
    target = catalog.target(chosen)
    tell(f"build: saw {machine}: target {chosen}")
    return target


def _checked(
    args: argparse.Namespace,
    bundle: Bundle,
    target: Target,
    precision: str,
    graphs: Sequence[str],
    device: Device | None,
) -> Fit | None:
    """What the engines will need; None if nobody asked and a package to tell is missing."""
    from geomag_edge.runtime.engines.tensorrt.bundle import FORM
    from geomag_edge.runtime.planning.fit import fit_bundle
    from geomag_edge.targets.check import check_graph

    try:
        for graph in graphs:
            check_graph(bundle.graph(graph, precision, FORM), target)
        return fit_bundle(bundle, target, precision, device, args.watts, args.budget, args.cache)
    except MissingExtraError as e:
        if args.check_only or device is not None:
            raise
        tell(f"build: {e}; going on unchecked")
        return None


def _default_precision(bundle: Bundle, target: Target) -> str:
    """fp16 if the bundle has it, or the first that the target takes."""
    have = list(bundle.manifest.graphs)
    taken = [p for p in ["fp16", *have] if p in have and target.takes_precision(p)]
    return taken[0] if taken else "fp16"


def _fit(fit: Fit) -> list[str]:
    """The prediction as two tables and a verdict, by lines."""
    memory: list[tuple[Any, ...]] = [
        (e.stem, f"{e.engine_bytes / 1e6:.1f}", f"{e.activation_bytes / 1e6:.1f}")
        for e in fit.engines
    ]
    memory += [
        ("cache", "-", f"{fit.cache_bytes / 1e6:.1f}"),
        ("buffers between stages", "-", f"{fit.buffer_bytes / 1e6:.1f}"),
        ("system", "-", f"{fit.system_bytes / 1e6:.1f}"),
    ]
    parts = [*table(("predicted", "engine MB", "memory MB"), memory), ""]
    names = [s.stage for s in next(iter(fit.stages.values()))]
    rows: list[tuple[Any, ...]] = []
    for level, stages in fit.stages.items():
        if fit.device is None:
            cells = [f"{s.gflop:.1f}" for s in stages]
        else:
            cells = [f"{s.ms:.2f}{(s.bound or '')[0]}" for s in stages]
        rows.append((level, *cells))
    unit = "GFLOP" if fit.device is None else "least ms (a: arithmetic, m: memory bound)"
    return [*parts, *table((f"budget, {unit}", *names), rows), "", fit.verdict]


def _text(bundle: Path, record: BuildRecord, built: list[str]) -> list[str]:
    """The engines, what GPUs took, and what was built now, by lines."""
    lines = _engines(record)
    if record.measured:
        lines += ["", *_measured(record), ""]
    if not built:
        lines.append(
            f"nothing changed since {record.folder} was built, so it is kept, whoever built it: "
            "remove that folder to build anew"
        )
    else:
        lines.append(
            f"{len(built)} engines in {bundle / record.folder}: {record.flavour} "
            f"{record.version}, {record.build_s:.1f} s, peak "
            f"{record.peak_rss_bytes / 1e9:.1f} GB of memory"
        )
    return lines


def _engines(record: BuildRecord) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for graph, files in record.engines.items():
        for file in files:
            memory = file.memory or {}
            rows.append(
                (
                    graph,
                    ", ".join(p.name for p in file.profiles),
                    f"{file.bytes / 1e6:.1f}",
                    f"{memory['weights_bytes'] / 1e6:.1f}" if memory else "-",
                    f"{max(memory['activation_bytes']) / 1e6:.1f}" if memory else "-",
                    " ".join(f"{k}:{v}" for k, v in file.layer_precisions.items()) or "-",
                    f"{file.build_s:.1f}",
                )
            )
    header = ("graph", "profiles", "engine MB", "weights MB", "activations MB", "layers", "s")
    return table(header, rows)


def _measured(record: BuildRecord) -> list[str]:
    """What GPUs took, beside the least that was predicted."""
    rows: list[tuple[Any, ...]] = []
    least = (record.fit or {}).get("stages", {})
    for entry in record.measured:
        where = " ".join(str(x) for x in (entry["gpu"], entry["power_mode"]) if x)
        for budget, stages in entry["stages_ms"].items():
            predicted = {s["stage"]: s["ms"] for s in least.get(budget, [])}
            for stage, ms in stages.items():
                guess = predicted.get(stage)
                shown = "-" if guess is None else f"{guess:.2f}"
                rows.append((where, budget, stage, f"{ms:.2f}", shown))
    return table(("measured on", "budget", "stage", "ms", "least ms"), rows)


@contextmanager
def _phases() -> Iterator[OnPhase | None]:
    """The builder's own phases as a bar below the engines' one, on a terminal."""
    if not terminal():
        yield None
        return
    with bar_of(total=1, position=1, unit="step") as bar:

        def show(phase: str, done: int, total: int) -> None:
            bar.total = max(total, 1)
            bar.n = done
            bar.set_description_str(one_line(phase, 40), refresh=True)

        yield show
