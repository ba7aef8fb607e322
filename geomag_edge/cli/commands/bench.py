"""Measure latency by stage, engine, precision, budget and image size; compare two runs."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from geomag_edge.budgets import LEVELS
from geomag_edge.cli.arguments import path, positive, text
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.commands.run import (
    IMAGE_HELP,
    add_gpu_argument,
    add_nodata_argument,
    add_threads_argument,
)
from geomag_edge.cli.console import counted, print_json, say, steps, tell
from geomag_edge.disk.staging import write_whole
from geomag_edge.errors import InputError, OutputError
from geomag_edge.manifest import Bundle
from geomag_edge.printing import printable, table

if TYPE_CHECKING:
    from geomag_edge.benchmarks.regressions import Change
    from geomag_edge.runtime.chain.pipeline import Pipeline

SCENE_SEED = 11
SIZE_PX = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    add_bundle_argument(parser, nargs="?")
    parser.add_argument(
        "--engine", action="append", metavar="E", help="may be repeated (default ort-cpu)"
    )
    parser.add_argument(
        "--precision", action="append", metavar="P", help="may be repeated (default fp32)"
    )
    parser.add_argument(
        "--budget",
        action="append",
        metavar="B",
        help="as of `run`, may be repeated (default: every level's own)",
    )
    parser.add_argument(
        "--size",
        action="append",
        type=positive,
        metavar="PX",
        help=f"side of a rendered scene, may be repeated (default {SIZE_PX})",
    )
    parser.add_argument(
        "--image", metavar="IMAGE", help=f"your own, in place of --size: {IMAGE_HELP}"
    )
    add_nodata_argument(parser)
    parser.add_argument("--rounds", type=positive, default=15, metavar="N", help="(15)")
    add_threads_argument(parser)
    add_gpu_argument(parser)
    parser.add_argument("--prompt", type=text, default=None, metavar="TEXT")
    parser.add_argument(
        "--answer-prefix", type=text, metavar="TEXT", help="what every answer starts with"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=None, metavar="N")
    parser.add_argument("--checkpoint", type=path, metavar="DIR", help="for --engine torch")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only measure, and remember, what the planner needs (`run --latency-ms`, `plan`)",
    )
    parser.add_argument(
        "-o", "--output", type=path, metavar="DIR", help="write bench.json and bench.html here"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=path,
        metavar=("BEFORE", "AFTER"),
        help="two bench.json: what got slower? Exit code 1 if anything did",
    )


def execute(args: argparse.Namespace) -> int:
    """Compares, or measures and reports."""
    if args.compare:
        return _compare(args)
    if args.bundle is None:
        raise InputError("nothing to measure: give a BUNDLE, or two reports to --compare")
    if args.output and args.output.exists() and not args.output.is_dir():
        raise OutputError(f"{args.output} is a file: give a folder for the report")
    bundle = open_bundle(args)
    if args.quick:
        return _quick(args, bundle)
    from geomag_edge.benchmarks import queries
    from geomag_edge.benchmarks.machine import machine

    host = machine(args.threads)
    given = {"prompt": args.prompt, "prefix": args.answer_prefix, "new_tokens": args.max_new_tokens}
    ask = queries.Ask(**{name: value for name, value in given.items() if value is not None})
    budgets = args.budget or [str(b) for b in dict.fromkeys(bundle.manifest.budgets.values())]
    with _images(args) as images, _pipes(args, bundle) as (pipes, loaded):
        total = (args.rounds + 1) * len(images) * len(budgets) * len(pipes)
        with counted(total, "bench", "query") as progress:
            cases = queries.measure(
                bundle, pipes, images, budgets, ask, args.rounds, progress, args.nodata
            )
        command = shlex.join(["geomag-edge", "bench", *_shown(args)])
        report = queries.report(bundle, cases, ask, args.rounds, command, host, loaded)
        written = _write(args, bundle, report, next(iter(pipes.values())))
    if args.json:
        print_json(report | {"files": written})
        return 0
    say(*report_text(report))
    for name in written:
        say(f"wrote     {name}")
    return 0


def _quick(args: argparse.Namespace, bundle: Bundle) -> int:
    from geomag_edge.runtime.chain.probe import PARTS, model_of

    models = {}
    with _pipes(args, bundle) as (pipes, _):
        for key, pipe in pipes.items():
            with steps(PARTS, " ".join(key)) as progress:
                models[" ".join(key)] = model_of(pipe, args.threads, True, progress)
    if args.json:
        print_json({"models": {name: m.to_json() for name, m in models.items()}})
        return 0
    rows = [
        (
            name,
            f"{sum(model.encode):.2f}",
            f"{_at(model.prefill, 256):.2f}",
            f"{_at(model.step, 256):.2f}",
            f"{sum(model.mask):.2f}",
            f"{model.spread:.2f}",
        )
        for name, model in models.items()
    ]
    say(*table(("engine", "a view", "prefill 256", "step at 256", "mask", "p95 over p50"), rows))
    say("milliseconds; remembered for `run --latency-ms` and `plan`")
    return 0


def _at(line: Sequence[float], x: float) -> float:
    return sum(c * x**power for power, c in enumerate(line))


@contextmanager
def _pipes(
    args: argparse.Namespace, bundle: Bundle
) -> Iterator[tuple[dict[tuple[str, str], Pipeline], dict[tuple[str, str], float | None]]]:
    """Open pipelines by (engine, precision), and the memory in 10^6 bytes that each took."""
    from geomag_edge.benchmarks.machine import resident_mb
    from geomag_edge.runtime.chain.pipeline import Pipeline
    from geomag_edge.runtime.engines.engine import default_precision

    pipes: dict[tuple[str, str], Pipeline] = {}
    loaded: dict[tuple[str, str], float | None] = {}
    with ExitStack() as stack:
        for engine in dict.fromkeys(args.engine or ["ort-cpu"]):
            for precision in dict.fromkeys(args.precision or [default_precision(bundle)]):
                before = resident_mb()
                pipe = Pipeline.load(bundle, engine, precision, args.threads, args.checkpoint)
                pipes[engine, precision] = stack.enter_context(pipe)
                after = resident_mb()
                loaded[engine, precision] = (
                    None if before is None or after is None else round(after - before, 1)
                )
        yield pipes, loaded


@contextmanager
def _images(args: argparse.Namespace) -> Iterator[dict[int, Path | str]]:
    """A file for each longer side: the user's own, or rendered tiled GeoTIFFs."""
    from geomag_edge.runtime.images.scene import Scene
    from geomag_edge.scenes import render_scene, write_scene

    if args.image:
        with Scene.open(args.image, nodata=args.nodata) as scene:
            longer = max(scene.height, scene.width)
        yield {longer: args.image}
        return
    with tempfile.TemporaryDirectory(prefix="geomag-edge-bench.") as folder:
        sizes = sorted(dict.fromkeys(args.size or [SIZE_PX]))
        made: dict[int, Path | str] = {}
        with steps(len(sizes), "rendering") as progress:
            for px in sizes:
                progress(f"{px} px")
                made[px] = write_scene(render_scene(SCENE_SEED, px), Path(folder) / f"{px}.tif")
        yield made


def _shown(args: argparse.Namespace) -> list[str]:
    """The command's arguments again, files and folders by their names alone."""
    shown = [args.bundle.name]
    for name in ("engine", "precision", "budget", "size"):
        shown += [x for v in getattr(args, name) or [] for x in (f"--{name}", str(v))]
    if args.image:
        shown += ["--image", printable(PurePosixPath(args.image).name)]
    if args.nodata is not None:
        shown += [f"--nodata={args.nodata}"]
    if args.threads:
        shown += ["--threads", str(args.threads)]
    return [*shown, "--rounds", str(args.rounds)]


def _write(
    args: argparse.Namespace, bundle: Bundle, report: dict[str, Any], pipe: Pipeline
) -> list[str]:
    """bench.json and, where matplotlib is, bench.html."""
    if args.output is None:
        return []
    import json

    from geomag_edge.benchmarks.page import page
    from geomag_edge.errors import MissingExtraError
    from geomag_edge.runtime.planning.frontier import frontier_of

    args.output.mkdir(parents=True, exist_ok=True)
    write_whole(args.output / "bench.json", json.dumps(report, indent=1) + "\n")
    written = [str(args.output / "bench.json")]
    try:
        plans = []
        if frontier_of(bundle) is not None:
            slowest = max(c["stages_ms"]["total"]["p50"] for c in report["cases"])
            plans = [pipe.planner().plan(level, slowest, 1) for level in LEVELS]
        write_whole(args.output / "bench.html", page(report, plans))
        written.append(str(args.output / "bench.html"))
    except MissingExtraError as e:
        tell(f"no bench.html: {e}")
    return written


def _compare(args: argparse.Namespace) -> int:
    from geomag_edge.benchmarks.queries import read_report
    from geomag_edge.benchmarks.regressions import changes, differences

    before, after = (read_report(path) for path in args.compare)
    found, notes = changes(before, after), differences(before, after)
    slower = [c for c in found if c.verdict == "slower"]
    if args.json:
        print_json(
            {
                "slower": len(slower),
                "notes": notes,
                "changes": [c.to_json() for c in found],
            }
        )
    else:
        say(*comparison_text(found, notes))
    return 1 if slower else 0


def comparison_text(found: list[Change], notes: list[str]) -> list[str]:
    """What changed as a table, totals always, and a verdict."""
    shown = [c for c in found if c.verdict != "same" or c.stage == "total"]
    rows = [
        (
            c.case,
            c.stage,
            f"{c.before_ms:.2f}",
            f"{c.after_ms:.2f}",
            f"{c.ratio:.2f}x",
            f"{c.low:.2f} .. {c.high:.2f}",
            "" if c.verdict == "same" else c.verdict.upper(),
        )
        for c in shown
    ]
    head = ("case", "stage", "before ms", "after ms", "ratio", "95 % interval", "")
    slower = sum(c.verdict == "slower" for c in found)
    faster = sum(c.verdict == "faster" for c in found)
    lines = [f"note      {note}" for note in notes]
    if not slower and not faster:
        verdict = f"no stage of {len(found)} got slower or faster"
    else:
        verdict = f"{slower} of {len(found)} stages slower, {faster} faster"
    if unsure := sum(c.verdict.endswith("?") for c in found):
        verdict += f"; {unsure} too noisy to tell: bench both with more --rounds"
    return [*lines, *table(head, rows), "", verdict]


def report_text(report: dict[str, Any]) -> list[str]:
    """A run as two tables: totals, then the stages' medians."""
    from geomag_edge.benchmarks.machine import described
    from geomag_edge.benchmarks.queries import STAGES

    names, totals, stages = [], [], []
    for case in report["cases"]:
        ms = case["stages_ms"]
        name = f"{case['engine']} {case['precision']} {case['budget']} {case['image_px']} px"
        names.append(name)
        rate = "-" if case["tokens_per_s"] is None else f"{case['tokens_per_s']:.1f}"
        peak = "-" if case["query_peak_mb"] is None else f"{case['query_peak_mb']:.0f}"
        joules = "-" if case["energy_j"] is None else f"{case['energy_j']:.2f}"
        totals.append(
            (name, case["ran_budget"]["visual_tokens"],
             *(f"{ms['total'][p]:.1f}" for p in ("p50", "p90", "p99")),
             f"{ms['first_token']['p50']:.1f}", rate, peak, joules)
        )  # fmt: skip
        stages.append((name, *(f"{ms[s]['p50']:.1f}" for s in STAGES)))
    head = ("case", "tokens", "p50 ms", "p90", "p99", "first token", "tokens/s", "peak MB", "J")
    return [
        f"machine   {described(report['machine'])}",
        "",
        *table(head, totals),
        "",
        *table(("medians, ms", *STAGES), stages),
    ]
