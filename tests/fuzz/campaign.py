"""Throws what strangers might send at every command, and says what broke a rule.

    python -m tests.fuzz.campaign                       # an hour on two cores: the long campaign
    python -m tests.fuzz.campaign --share 0.005         # a minute, as in CI
    python -m tests.fuzz.campaign --only images:1234    # one case again, its files kept

A case is made from a seed, its target and its number alone. It runs in a process of its own, whose
time, memory, words, files and looks outside are judged by judge.py. Linux only. The last line of
stdout is one JSON; the exit code is 1 where a rule was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ.setdefault(_name, "1" if _name != "TOKENIZERS_PARALLELISM" else "false")

import numpy as np  # noqa: E402  (the libraries read these variables while they are imported)
from tqdm import tqdm  # noqa: E402

from . import arguments, bundles, checkpoints, images, judge, sets, world  # noqa: E402
from .jail import Case, Outside, run  # noqa: E402

TARGETS: dict[str, tuple[Callable[..., Case], int]] = {
    "images": (images.make, 5000),
    "arguments": (arguments.make, 2500),
    "bundles": (bundles.make, 2000),
    "checkpoints": (checkpoints.make, 500),
    "sets": (sets.make, 1000),
}
"""What makes a case, and how many the long campaign has."""
SHOWN = 40


def main(argv: list[str] | None = None) -> int:
    """Runs a campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="F", help="of the long campaign"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", metavar="TARGET:NUMBER", help="one case, and where its files are")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--work", type=Path, metavar="DIR",
        help="keeps the tiny bundle there, and what was seen: a run that was cut goes on",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="MD", help="also a table, in Markdown")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as own:
        root = (args.work or Path(own)).resolve()
        built = world.build(root)
        _import_all()
        if args.only:
            target, _, number = args.only.partition(":")
            kept = root / "case"
            shutil.rmtree(kept, ignore_errors=True)
            row = one(built, args.seed, target, int(number), kept, _outside(root / "outside-0"))
            print(
                f"{row['note']}\n{(kept / 'stdout').read_text(errors='replace')}", file=sys.stderr
            )
            print((kept / "stderr").read_text(errors="replace"), file=sys.stderr)
            rows = [row]
        else:
            todo = [(t, n) for t in args.targets for n in range(round(TARGETS[t][1] * args.share))]
            todo.sort(key=lambda case: case[1] / TARGETS[case[0]][1])  # a cut run is of all kinds
            rows = _all(built, args.seed, todo, args.workers, root)
    report = summary(rows, args)
    for row in [r for r in rows if r["faults"]][:SHOWN]:
        print(f"{row['target']}:{row['number']}: {row['note'][:160]!a}: {row['faults']}")
    if args.output:
        args.output.write_text(as_markdown(report))
    print(json.dumps(report))
    return int(bool(report["broken"]))


def _import_all() -> None:
    """Everything that a command would import, once; nothing is opened or run."""
    import importlib

    for name in (
        "cli.main", "runtime.chain.pipeline", "runtime.answers.outputs", "runtime.proof.verify",
        "runtime.engines.ort", "export.exporter", "calibration.quantization.capture",
        "calibration.evaluation.evaluate",
    ):  # fmt: skip
        importlib.import_module(f"geomag_edge.{name}")


def _outside(root: Path) -> Outside:
    """Secrets, freshly watched."""
    shutil.rmtree(root, ignore_errors=True)
    made = Outside(root)
    (root / "secret.txt").write_text("secret " * 100)
    (root / "secret.data").write_bytes(bytes(1 << 20))
    world._gtiff(root / "secret.tif")
    made.arm()
    return made


def one(
    built: world.World, seed: int, target: str, number: int, folder: Path, outside: Outside
) -> dict[str, Any]:
    """Makes, runs and judges one case in a folder that is not there yet."""
    (folder / "out").mkdir(parents=True)
    rng = np.random.default_rng([seed, crc32(target.encode()), number])
    case = TARGETS[target][0](rng, built, outside, folder)
    before = judge.snapshot(case)
    prepare = checkpoints.stop_at_the_exporter if target == "checkpoints" else None
    outcome = run(case, outside, prepare)
    found = judge.faults(case, outcome, before)
    return {
        "target": target, "number": number, "note": case.note, "code": outcome.code,
        "faults": found, "cpu_s": outcome.cpu_s, "mb": outcome.grown_mb,
    }  # fmt: skip


def _all(
    built: world.World, seed: int, todo: list[tuple[str, int]], workers: int, root: Path
) -> list[dict[str, Any]]:
    """All cases, dealt out to processes that write what they find to a file each."""
    logs = [root / f"seen-{seed}-{i}.jsonl" for i in range(workers)]
    for log in logs:  # a last line that was cut is left out
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        log.write_text("".join(n for n in lines if n.endswith("\n")))
    seen = _seen(logs)
    left = [case for case in todo if case not in seen]
    children = []
    for i, log in enumerate(logs):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(built, seed, left[i::workers], root / f"outside-{i}", log)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    with tqdm(total=len(todo), unit="case", disable=None) as bar:
        while children:
            time.sleep(0.5)
            children = [c for c in children if not _ended(c)]
            bar.update(sum(log.read_text().count("\n") for log in logs) - bar.n)
    wanted = set(todo)
    return [row for case, row in _seen(logs).items() if case in wanted]


def _seen(logs: list[Path]) -> dict[tuple[str, int], dict[str, Any]]:
    """Cases that were run, and what was found."""
    rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return {(row["target"], row["number"]): row for row in rows}


def _ended(child: int) -> bool:
    found, status = os.waitpid(child, os.WNOHANG)
    if found and status:
        raise RuntimeError("a worker of the campaign died: this is a fault of the campaign")
    return bool(found)


def _work(
    built: world.World, seed: int, todo: list[tuple[str, int]], outside: Path, log: Path
) -> None:
    watched = _outside(outside)
    with log.open("a", buffering=1) as out, tempfile.TemporaryDirectory(prefix="case-") as own:
        for target, number in todo:
            folder = Path(own) / f"{target}-{number}"
            out.write(json.dumps(one(built, seed, target, number, folder, watched)) + "\n")
            shutil.rmtree(folder, ignore_errors=True)


def summary(rows: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Counts by target, and the kinds of faults."""
    targets = {}
    for target in args.targets:
        mine = [r for r in rows if r["target"] == target]
        if mine:
            targets[target] = {
                "cases": len(mine),
                "answered": sum(r["code"] == 0 for r in mine),
                "refused": sum(r["code"] == 2 for r in mine),
                "broken": sum(bool(r["faults"]) for r in mine),
                "most_cpu_s": round(max(r["cpu_s"] for r in mine), 1),
                "most_mb": round(max(r["mb"] for r in mine)),
            }
    kinds = Counter(f.split(":")[0] for r in rows for f in r["faults"])
    flips = [r for r in rows if re.search(r"\bbit \d of byte", r.get("note", ""))]
    return {
        "bits_flipped": len(flips), "flips_missed": sum(r["code"] == 0 for r in flips),
        "seed": args.seed, "share": args.share, "targets": targets, "cases": len(rows),
        "processor_minutes": round(sum(r["cpu_s"] for r in rows) / 60, 1),
        "broken": sum(t["broken"] for t in targets.values()), "kinds": dict(kinds.most_common()),
    }  # fmt: skip


def as_markdown(report: dict[str, Any]) -> str:
    """A table for benchmarks/results."""
    from geomag_edge.benchmarks.machine import described, machine

    share = "" if report["share"] == 1 else f" --share {report['share']:g}"
    command = f"python -m tests.fuzz.campaign --seed {report['seed']}{share}"
    lines = [
        "# What strangers send", "",
        f"`{command}`, {report['processor_minutes']} minutes of one core.", "",
        f"{described(machine(1))}. Rules: tests/fuzz/judge.py.", "",
        "| input | cases | answered | refused | rules broken | most processor s | most MB |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in report["targets"].items():
        lines.append(f"| {name} | " + " | ".join(str(v) for v in row.values()) + " |")
    lines += [
        "",
        f"One bit was flipped in {report['bits_flipped']} bundles, in files that are opened, "
        f"a signed manifest and its signature among them; {report['flips_missed']} went unnoticed.",
    ]
    if report["kinds"]:
        lines += ["", "Broken: " + ", ".join(f"{k} ({n})" for k, n in report["kinds"].items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
