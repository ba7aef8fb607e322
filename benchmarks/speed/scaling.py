"""What a query's cost grows with: one thing varied at a time, and the exponent it grows by.

    python -m geomag_edge.benchmarks.speed.scaling --bundle BUNDLE [--sizes 1000,2000,...,20000]

Varied: image side (tiled GeoTIFF with overviews, opened anew), visual tokens, crops, prompt length,
answer length, prompts on one scene (which share its encoded views; given a prompt), and threads.
Each is run interleaved over its values, medians; the time fitted is that of the stages that the
varied thing drives, and the exponent is the slope of its logarithm over that of the value: 0 means
that it costs nothing more, 1 in proportion, 2 with its square. A forced prefix and length make
answers the same work.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine, peak_mb, reset_peak, resident_mb
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.benchmarks.timing import interleaved, medians
from geomag_edge.manifest import Bundle
from geomag_edge.plots import figure
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.scenes import render_scene, write_scene

SEED, SIDE_PX = 11, 2048
SIZES = (1000, 2000, 4000, 8000, 12000, 20000)
PROMPT, PREFIX, NEW_TOKENS = "segment the ships near the pier", "[SEG]", 16
Values = dict[int, float]
"""Value of what is varied -> median ms."""


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, name="nano", rounds=9, threads=1)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="image sides in px")
    parser.add_argument("--scenes", type=Path, help="keep the rendered scenes in this folder")
    args = parser.parse_args()
    host = machine(args.threads)
    sizes = [int(s) for s in args.sizes.split(",")]
    bundle = Bundle.open(args.bundle)
    with tempfile.TemporaryDirectory() as made:
        folder = args.scenes or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        report = {
            "command": f"python -m geomag_edge.benchmarks.speed.scaling --bundle {args.name} "
            f"--sizes {args.sizes} --rounds {args.rounds} --threads {args.threads}",
            "name": args.name,
            "machine": host,
            "rounds": args.rounds,
            "studies": studies(bundle, folder, sizes, args.rounds, args.threads),
        }
    publish(report, as_markdown(report), args.results, f"scaling_{args.name}")
    draw(report, args.results / f"scaling_{args.name}.png")


def studies(
    bundle: Bundle, folder: Path, sizes: Sequence[int], rounds: int, threads: int
) -> list[dict[str, Any]]:
    """All of them, one after the other."""
    grid, most = bundle.manifest.view.grid, bundle.manifest.psc.max_crops
    plan = bundle.manifest.budgets["pixel"]
    whole, side = plan.global_grid, max(1, plan.crop_grid)
    with Pipeline.load(bundle, "ort-cpu", "fp32", threads) as pipe:
        here = _scene(folder, SIDE_PX)
        time = partial(_medians, rounds=rounds)
        ask = partial(_stages, pipe, here)
        grids = sorted({2, grid // 4, grid // 2, 3 * grid // 4, grid})
        counts = range(1, most + 1)
        words = (1, 8, 32, 64)
        made = [
            _study(
                "image side, px", "the whole query, file opened anew",
                time({px: partial(_stages, pipe, _scene(folder, px), str(plan)) for px in sizes},
                     "total"),
                {px: _peak(pipe, _scene(folder, px), str(plan)) for px in sizes},
            ),
            _study(
                "visual tokens", "prefill",
                time({g * g: partial(ask, str(g)) for g in grids}, "prefill"),
            ),
            _study(
                "crops", "crop, encode, select and mask",
                time({k: partial(ask, f"{whole}+{k}x{side}") for k in counts},
                     "crop", "encode", "select", "mask"),
            ),
            _study(
                "prompt words", "prefill",
                time({n: partial(ask, str(whole), prompt=" ".join([PROMPT] * n))
                      for n in (1, 2, 4, 8)}, "prefill", factor=len(PROMPT.split())),
            ),
            _study(
                "answer tokens", "decode",
                time({n: partial(ask, str(whole), steps=n) for n in words}, "decode"),
            ),
            _study("prompts on one scene", "a prompt", _shared(pipe, here, str(plan), rounds)),
        ]  # fmt: skip
    made.append(_study("threads", "the whole query", _threads(bundle, here, str(plan), rounds)))
    return made


def _scene(folder: Path, px: int) -> Path:
    path = folder / f"{px}.tif"
    if not path.exists():
        print(f"rendering {px} x {px} px", file=sys.stderr)
        write_scene(render_scene(SEED, px), path)
    return path


def _stages(
    pipe: Pipeline, image: Path, budget: str, prompt: str = PROMPT, steps: int | None = None
) -> dict[str, float]:
    """Milliseconds by stage of one query; `steps` decodes exactly so many tokens."""
    prefix = PREFIX if steps is None else " ".join(["ship"] * 4)
    with pipe.open(image) as session:
        if steps is None:
            return session.ask(prompt, budget, NEW_TOKENS, prefix).timings_ms
        with never_ending(pipe):
            return session.ask(prompt, budget, steps + 1, prefix).timings_ms


@contextmanager
def never_ending(pipe: Pipeline) -> Iterator[None]:
    """No token ends an answer, so that its length is what was asked for."""
    coder = pipe.chain.coder
    settings = coder.settings
    coder.settings = replace(settings, eos_token_ids=())
    try:
        yield
    finally:
        coder.settings = settings


def _medians(
    forms: dict[int, Callable[[], dict[str, float]]], *stages: str, rounds: int, factor: int = 1
) -> Values:
    """Median ms of the stages' sum for each value, interleaved; `total` is the wall's."""
    found: dict[int, list[float]] = {value: [] for value in forms}

    def run(value: int, form: Callable[[], dict[str, float]]) -> None:
        ms = form()
        found[value].append(sum(ms.get(stage, 0.0) for stage in stages))

    walls = interleaved({str(v): partial(run, v, form) for v, form in forms.items()}, rounds)
    if stages == ("total",):
        return {int(v): ms for v, ms in medians(walls).items()}
    return {value * factor: median(ms[1:]) for value, ms in found.items()}


def _peak(pipe: Pipeline, image: Path, budget: str) -> float | None:
    """The most memory in 10^6 bytes that a query needs beyond what was resident before."""
    before = resident_mb()
    if not reset_peak() or before is None:
        return None
    _stages(pipe, image, budget)
    peak = peak_mb()
    return None if peak is None else round(peak - before, 1)


def _shared(pipe: Pipeline, image: Path, budget: str, rounds: int) -> Values:
    """Milliseconds a prompt when so many are asked of one open scene."""

    def ask(count: int) -> None:
        with pipe.open(image) as session:
            for _ in range(count):
                session.ask(PROMPT, budget, NEW_TOKENS, PREFIX)

    counts = (1, 2, 4, 8)
    taken = interleaved({str(n): partial(ask, n) for n in counts}, rounds)
    return {int(n): ms / int(n) for n, ms in medians(taken).items()}


def _threads(bundle: Bundle, image: Path, budget: str, rounds: int) -> Values:
    counts = sorted({1, max(1, (os.cpu_count() or 1) // 2), os.cpu_count() or 1})
    found: Values = {}
    for count in counts:
        with Pipeline.load(bundle, "ort-cpu", "fp32", count) as pipe:
            forms = {str(count): partial(_stages, pipe, image, budget)}
            found[count] = medians(interleaved(forms, rounds))[str(count)]
    return found


def _study(
    name: str, stages: str, ms: Values, peaks: dict[int, float | None] | None = None
) -> dict[str, Any]:
    return {
        "varied": name,
        "time_of": stages,
        "ms": {str(k): v for k, v in ms.items()},
        "exponent": exponent(ms),
        "peak_mb": {str(k): v for k, v in peaks.items()} if peaks else None,
    }


def exponent(ms: Values) -> float | None:
    """The slope of log(ms) over log(value), by least squares; None for a single value."""
    if len(ms) < 2:
        return None
    x, y = np.log(list(ms)), np.log(np.maximum(list(ms.values()), 1e-6))
    return float(np.polyfit(x, y, 1)[0])


def draw(report: dict[str, Any], path: Path) -> None:
    """One panel a study, both axes logarithmic."""
    drawn = figure(13, 6.4)
    panels = drawn.subplots(2, 4).ravel()
    for axes, study in zip(panels, report["studies"], strict=False):
        x = [int(v) for v in study["ms"]]
        axes.loglog(x, list(study["ms"].values()), "o-")
        slope = "" if study["exponent"] is None else f", exponent {study['exponent']:.2f}"
        axes.set_title(f"{study['varied']}{slope}", fontsize=9)
        axes.set_ylabel(f"ms: {study['time_of']}", fontsize=7)
        axes.set_xticks(x, [str(v) for v in x], fontsize=7)
        axes.minorticks_off()
        low, high = min(study["ms"].values()), max(study["ms"].values())
        axes.set_ylim(low / 2, high * 2)
    for axes in panels[len(report["studies"]) :]:
        axes.axis("off")
    drawn.savefig(path, dpi=110)


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    said = (
        f"{described(report['machine'])}. fp32 on ort-cpu, medians of {report['rounds']} "
        "interleaved rounds. Exponent: slope of log time over log value."
    )
    rows = []
    for study in report["studies"]:
        points = ", ".join(f"{k}: {v:.1f}" for k, v in study["ms"].items())
        slope = "-" if study["exponent"] is None else f"{study['exponent']:.2f}"
        rows.append((study["varied"], study["time_of"], points, slope))
        if study["peak_mb"]:
            peaks = ", ".join(f"{k}: {v}" for k, v in study["peak_mb"].items())
            rows.append((study["varied"], "peak memory of a query, MB", peaks, "-"))
    return page_of(
        f"What a query's cost grows with, `{report['name']}`",
        report,
        said,
        f"![plot](scaling_{report['name']}.png)",
        table_of("varied | time of | ms at each value | exponent", rows),
    )


if __name__ == "__main__":
    main()
