"""Half a core by quota: a query with the default threads against one with `--threads 1`.

    python -m geomag_edge.benchmarks.speed.quota --bundle BUNDLE [--share 0.5] [--rounds 5]

Makes a control group of so many cores' time (version 1 or 2; needs to be root), starts fresh
processes in it that take turns, and compares the medians of their queries. Without a quota the same
is measured beside it, so that the table shows what a quota costs and what its threads do to it.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.benchmarks.timing import percentiles
from geomag_edge.cores import default_threads, quota
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.chain.probe import PREFIX, PROMPT, picture

GOAL = 1.15
PERIOD_US = 100_000
GROUPS = Path("/sys/fs/cgroup")
QUERIES, SIDE_PX = 7, 1024


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, engine="ort-cpu", rounds=5, name="nano")
    parser.add_argument("--share", type=float, default=0.5, help="cores' time")
    parser.add_argument("--inside", nargs=2, metavar=("THREADS", "GROUP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(inside(args.bundle, args.engine, *args.inside)))
        return
    host = machine(None)
    with group(args.share) as folder:
        rows = measure(args.bundle, args.engine, folder, args.rounds)
    report = {
        "command": f"python -m geomag_edge.benchmarks.speed.quota --bundle {args.name} "
        f"--engine {args.engine} --share {args.share:g} --rounds {args.rounds}",
        "machine": host,
        "engine": args.engine,
        "share": args.share,
        "rows": rows,
        "ratio": rows[0]["ms"]["p50"] / rows[1]["ms"]["p50"],
    }
    publish(report, as_markdown(report), args.results, f"quota_{args.name}")


@contextmanager
def group(share: float) -> Iterator[Path]:
    """The folder of a new control group whose processes get so many cores' time.

    Raises:
        SystemExit: this system or this user cannot make one.
    """
    first = GROUPS / "cpu" if (GROUPS / "cpu").is_dir() else GROUPS
    folder = first / f"geomag-edge-quota-{os.getpid()}"
    used = round(share * PERIOD_US)
    try:
        if first == GROUPS and "cpu" not in (GROUPS / "cgroup.subtree_control").read_text():
            (GROUPS / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir()
        if first == GROUPS:
            (folder / "cpu.max").write_text(f"{used} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_quota_us").write_text(str(used))
    except OSError as e:
        raise SystemExit(f"no control group can be made here: {e}") from e
    try:
        yield folder
    finally:
        for _ in range(50):  # its last process may still be on its way out
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def measure(bundle: Path, engine: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Queries in the group and outside of it, with the default threads and with one, in turns."""
    cases = [("default", str(folder)), ("1", str(folder)), ("default", "-"), ("1", "-")]
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(rounds):
        for case in cases:
            found[case] = _fresh(bundle, engine, case)
            times[case] += found[case].pop("ms")
    return [{"asked": case[0], **found[case], "ms": percentiles(times[case])} for case in cases]


def _fresh(bundle: Path, engine: str, case: Sequence[str]) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "geomag_edge.benchmarks.speed.quota", "--bundle", str(bundle),
        "--engine", engine, "--inside", *case,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout))


def inside(bundle: Path, engine: str, threads: str, folder: str) -> dict[str, Any]:
    """What one fresh process measures: `QUERIES` queries after one that warms up."""
    if folder != "-":
        (Path(folder) / "cgroup.procs").write_text(str(os.getpid()))
    given = None if threads == "default" else int(threads)
    image, ms = picture(SIDE_PX), []
    with Pipeline.load(bundle, engine, threads=given) as pipe:
        for _ in range(QUERIES + 1):
            start = time.perf_counter()
            pipe(image, PROMPT, "pixel", 8, PREFIX)
            ms.append((time.perf_counter() - start) * 1e3)
    return {"quota": quota(), "threads": given or default_threads(), "ms": ms[1:]}


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    said = (
        f"{described(report['machine'])}. With a quota of {report['share']:g} cores the default "
        f"threads take {report['ratio']:.2f} times as long as one thread (goal {GOAL:g})."
    )
    rows = (
        (row["quota"] or "none", row["asked"], row["threads"] or "the engine chose",
         f"{row['ms']['p50']:.0f}", f"{row['ms']['p90']:.0f}")
        for row in report["rows"]
    )  # fmt: skip
    table = table_of("quota | --threads | that ran | ms p50 | p90", rows)
    return page_of("A quota's threads", report, said, table)


if __name__ == "__main__":
    main()
