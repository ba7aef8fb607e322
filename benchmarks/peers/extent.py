"""What a scene's extent costs: our chain on 20,000 px against 2,048 px, time and peak memory.

    python -m geomag_edge.benchmarks.peers.extent --bundle BUNDLE --scenes DIR

One question, one budget, a forced "[SEG]" and a fixed number of tokens, on tiled GeoTIFFs with
overviews, each opened anew for every query (GDAL's cache of the file is then empty; the operating
system's is not). The queries on both sizes take turns in one process. What may differ is reading:
views of a large scene are read from its overviews, windows at native resolution; and PSC may look
one level deeper, which the budget's crops include.

A query is timed until its answer is there, masks as small maps of logits; what it takes to look at
every pixel of a mask (`area_px`), which grows with the mask and not with the scene, is given beside
it. Memory is measured in a process of its own for each size: the peak of resident memory over the
first two queries, model and a look at every pixel of the mask included.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine, peak_mb, reset_peak
from geomag_edge.benchmarks.peers.big_scenes import SCENE, make_scene
from geomag_edge.benchmarks.peers.tiling import PER_LEVEL, SET_SEED
from geomag_edge.benchmarks.publish import interval, page_of, publish, stage_table, table_of
from geomag_edge.benchmarks.timing import interleaved, ratios, spreads, stage_medians
from geomag_edge.errors import GeoMagError
from geomag_edge.runtime.chain.pipeline import Pipeline

PROMPT, PREFIX, NEW_TOKENS = "segment the vehicles on the road", "[SEG]", 16
GOALS = {"times": 1.5, "more_mb": 300.0}


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, name="nano", scenes=REQUIRED, rounds=15, threads=1)
    parser.add_argument("--sizes", default="2048,20000", help="the first is the baseline")
    parser.add_argument("--form", default="ort-cpu/fp32", help="ENGINE/PRECISION")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.peak_of:
            print(json.dumps(peak_of_queries(args)))
            return
        report = measure(args)
    except GeoMagError as e:
        raise SystemExit(f"error: {e}") from e
    publish(report, as_markdown(report), args.results, f"peers_extent_{args.name}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Makes the scenes, times queries on them in turn, then measures the peaks."""
    host = machine(args.threads)
    sizes = [int(size) for size in args.sizes.split(",")]
    paths = {}
    for size in sizes:
        print(f"{size} px: the scene", file=sys.stderr)
        paths[size] = make_scene(args.scenes / str(size), SET_SEED, size, PER_LEVEL) / SCENE
    with _pipeline(args) as pipe:
        times = interleaved(
            {str(size): partial(query, pipe, path) for size, path in paths.items()}, args.rounds, 2
        )
        stages: dict[str, dict[str, float]] = {}
        views = {}
        for size, path in paths.items():
            stages[str(size)] = stage_medians([staged_query(pipe, path) for _ in range(5)])
            views[str(size)] = 1 + len(query(pipe, path).crop_boxes)
    peaks = {str(size): _peak_in_own_process(args, path) for size, path in paths.items()}
    small = str(sizes[0])
    return {
        "command": f"python -m geomag_edge.benchmarks.peers.extent --bundle {args.name} "
        f"--scenes DIR --sizes {args.sizes} --rounds {args.rounds} --threads {args.threads} "
        f"--form {args.form}",
        "machine": host,
        "form": args.form,
        "views": views,
        "file_mb": {str(size): path.stat().st_size / 1e6 for size, path in paths.items()},
        "times": spreads(times),
        "raw_ms": times,
        "stages_ms": stages,
        "peak_mb": peaks,
        "ratios": {n: ratios(t, times[small]) for n, t in times.items()},
        "more_mb": {n: peak["peak_mb"] - peaks[small]["peak_mb"] for n, peak in peaks.items()},
        "goals": GOALS,
    }


def query(pipe: Pipeline, path: Path) -> Any:
    """One pixel-level query on a file opened anew."""
    return pipe(path, PROMPT, "pixel", NEW_TOKENS, PREFIX)


def staged_query(pipe: Pipeline, path: Path) -> dict[str, float]:
    """CPU milliseconds of opening the file, of the answer, of a look at its mask's every pixel;
    and wall milliseconds of the answer's stages."""
    start = time.process_time()
    with pipe.open(path) as scene:
        opened = time.process_time()
        result = scene.ask(PROMPT, "pixel", NEW_TOKENS, PREFIX)
        answered = time.process_time()
    for mask in result.masks:
        _ = mask.area_px
    measured = time.process_time()
    return {
        "CPU: open": (opened - start) * 1e3,
        "CPU: answer": (answered - opened) * 1e3,
        "CPU: every pixel of the mask": (measured - answered) * 1e3,
        **result.timings_ms,
    }


def peak_of_queries(args: argparse.Namespace) -> dict[str, float | None]:
    """Peak memory of two queries, with all else that the process holds."""
    with _pipeline(args) as pipe:
        reset_peak()
        loaded = peak_mb()
        for _ in range(2):
            staged_query(pipe, args.peak_of)
        return {"loaded_mb": loaded, "peak_mb": peak_mb()}


def _peak_in_own_process(args: argparse.Namespace, path: Path) -> dict[str, float]:
    command = [
        sys.executable, "-m", "geomag_edge.benchmarks.peers.extent", "--bundle", str(args.bundle),
        "--scenes", str(args.scenes), "--form", args.form, "--threads", str(args.threads),
        "--peak-of", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _pipeline(args: argparse.Namespace) -> Pipeline:
    engine, _, precision = args.form.partition("/")
    return Pipeline.load(args.bundle, engine, precision, args.threads)


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    goals = report["goals"]
    said = (
        f"{described(report['machine'])}. A pixel-level query with {NEW_TOKENS} new tokens, the "
        "file opened anew each time. Peak: resident memory of a process of its own, model "
        "included."
    )
    heads = (
        "scene, px | file, MB | views | wall p50 / p90, ms | CPU p50, ms | times the first, wall "
        f"(goal <= {goals['times']:g}) | by CPU time | peak, MB | more than the first, MB (goal <= "
        f"{goals['more_mb']:g})"
    )
    rows = (
        (size, f"{report['file_mb'][size]:.0f}", report["views"][size],
         f"{times['wall_ms']['p50']:.0f} / {times['wall_ms']['p90']:.0f}",
         f"{times['cpu_ms']['p50']:.0f}", *map(interval, report["ratios"][size].values()),
         f"{report['peak_mb'][size]['peak_mb']:.0f}", f"{report['more_mb'][size]:+.0f}")
        for size, times in report["times"].items()
    )  # fmt: skip
    tables = table_of(heads, rows), stage_table(report["stages_ms"])
    return page_of("What a scene's extent costs", report, said, *tables)


if __name__ == "__main__":
    main()
