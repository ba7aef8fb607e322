"""Is the deadline kept? Hundreds of queries under three deadlines, planned against actual.

    python -m geomag_edge.benchmarks.speed.deadlines --bundle BUNDLE [--queries 500] [--threads 1]

The bundle is one whose accuracy was measured (`geomag-edge plan BUNDLE --data ...`), so that every
query also has an expected metric. Deadlines are 1.2, 2 and 5 times the median query with the
smallest budget, measured on the same questions just before. Scenes and prompts take turns; each
query opens its image anew, and its clock runs from before that to the answer. Nothing is retried
and no query is left out.

What bounds it: the machine. A query under 1.2 times the smallest budget's median has a fifth of
its time as its only reserve, so a pause of the system that is longer makes it late whatever the
planner does; how long such pauses were is what the slowest queries show.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.benchmarks.timing import percentiles
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.deadline import Deadline
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.chain.probe import model_of
from geomag_edge.runtime.planning.planner import Planner
from geomag_edge.scenes import make_questions, render_scene, write_scene

FACTORS = (1.2, 2.0, 5.0)
GOAL = 0.99
SEED, SCENES, SIZE_PX = 60_000_000, 10, 2048
Question = tuple[Path, str]


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    args = parser_of(
        __doc__, bundle=REQUIRED, engine="ort-cpu", precision=None, queries=500, threads=1,
        name="nano",
    ).parse_args()  # fmt: skip
    host = machine(args.threads)
    bundle = Bundle.open(args.bundle)
    with (
        tempfile.TemporaryDirectory() as folder,
        Pipeline.load(bundle, args.engine, args.precision, args.threads) as pipe,
    ):
        asked = questions(Path(folder))
        report = {
            "command": f"python -m geomag_edge.benchmarks.speed.deadlines --bundle {args.name} "
            f"--queries {args.queries} --threads {args.threads}",
            "machine": host,
            "engine": args.engine,
            "precision": pipe.chain.engine.precision,
            **measure(pipe, asked, args.queries),
        }
    publish(report, as_markdown(report), args.results, f"deadlines_{args.name}")


def questions(folder: Path) -> list[Question]:
    """Rendered scenes with one question of each level, in turn."""
    made = []
    for i in range(SCENES):
        scene = render_scene(SEED + i, SIZE_PX)
        path = write_scene(scene, folder / f"{i}.tif")
        made += [(path, q.prompt) for q in make_questions(scene, 1, 1)]
    return made


def measure(pipe: Pipeline, asked: list[Question], queries: int) -> dict[str, Any]:
    """The smallest budget's median, then `queries` under each deadline."""
    planner = Planner.of(pipe.bundle, model_of(pipe, pipe.threads, anew=True))
    smallest = str(min((b for b in planner.budgets("image")), key=lambda b: b.visual_tokens))
    least = [ask(pipe, *asked[i % len(asked)], smallest) for i in range(2 * len(asked))]
    median = percentiles(least[len(asked) :])["p50"]
    runs = []
    for factor in FACTORS:
        reports = []
        for i in tqdm(range(queries), f"{factor:g}x", unit="query", disable=None):
            path, prompt = asked[i % len(asked)]
            deadline = Deadline(planner, factor * median)
            with pipe.open(path) as session:
                result = session.ask(prompt, deadline=deadline)
            assert result.deadline is not None
            reports.append(result.deadline)
        runs.append(summary(factor, reports))
    return {
        "queries": queries,
        "smallest_budget": smallest,
        "smallest_median_ms": median,
        "spread": planner.model.spread,
        "accuracy": planner.frontier and planner.frontier.data,
        "runs": runs,
    }


def ask(pipe: Pipeline, image: Path, prompt: str, budget: str) -> float:
    """Milliseconds of a query without a deadline, opening included as with one."""
    started = time.perf_counter()
    with pipe.open(image) as session:
        session.ask(prompt, budget)
    return (time.perf_counter() - started) * 1e3


def summary(factor: float, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of the queries under one deadline."""
    actual = [r["actual_ms"] for r in reports]
    losses = [r["expected_loss"] for r in reports if r["expected_loss"] is not None]
    return {
        "factor": factor,
        "latency_ms": reports[0]["latency_ms"],
        "kept": sum(r["kept"] for r in reports) / len(reports),
        "actual_ms": percentiles(actual) | {"slowest": sorted(actual)[-5:]},
        "planned_ms": percentiles(r["planned_ms"] for r in reports),
        "did_not_fit": sum(not r["fits"] for r in reports),
        "shortened": sum(r["shortened"] for r in reports),
        "crops_dropped": sum(r["dropped_crops"] > 0 for r in reports),
        "budgets": dict(Counter(r["planned_budget"] for r in reports).most_common()),
        "expected_loss": fmean(losses) if losses else None,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    said = (
        f"{described(report['machine'])}. {report['queries']} queries a deadline on {SCENES} "
        f"scenes of {SIZE_PX} px, {report['engine']} {report['precision']}; the smallest budget "
        f"({report['smallest_budget']}) takes {report['smallest_median_ms']:.1f} ms (median). "
        f"Expected loss by {report['accuracy'] or 'nothing measured'}."
    )
    heads = (
        "deadline | kept | goal | actual p50 | p99 | slowest | planned p50 | cut short | "
        "crops dropped | cheapest did not fit | expected loss | budgets"
    )
    return page_of("Deadlines kept", report, said, table_of(heads, map(_row, report["runs"])))


def _row(run: dict[str, Any]) -> Sequence[object]:
    actual, loss = run["actual_ms"], run["expected_loss"]
    return (
        f"{run['factor']:g}x = {run['latency_ms']:.0f} ms", f"{run['kept']:.1%}", f"{GOAL:.0%}",
        f"{actual['p50']:.1f}", f"{actual['p99']:.1f}", f"{actual['slowest'][-1]:.1f}",
        f"{run['planned_ms']['p50']:.1f}", run["shortened"], run["crops_dropped"],
        run["did_not_fit"], "-" if loss is None else f"{loss:.3f}",
        ", ".join(f"{n} x {b}" for b, n in list(run["budgets"].items())[:4]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
