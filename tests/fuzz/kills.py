"""Kills writing commands at every kind of moment, and says what was left neither old nor new.

    python -m tests.fuzz.kills                          # 300 kills, some minutes on two cores
    python -m tests.fuzz.kills --count 30 --json kills.json

Real commands in processes of their own, real SIGKILLs: half of them right before something changes
on the disk, drawn evenly from all such events, and half at random instants. After each, what there
is must be what was there before or what the command makes; then the command is given again, must
succeed, and must leave nothing of the killed one. Three heavy parts are played by what they once
made: torch's exporter, TensorRT's builder, and the measuring of the machine. Linux only. The last
line of stdout is one JSON; the exit code is 1 where a rule was broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import world
from .events import CUT, FAILED, count_of, ended_at, forked, killed_after

SIDECARS = ("masks.tif.ovr", "masks.tif.aux.xml", "overlay.png.aux.xml")
TARGET = "tensorrt-rtx"


@dataclass(frozen=True)
class Job:
    """A command to kill.

    Attributes:
        name: of the command and of what it meets.
        argv: the command; PLACE is where it works.
        state: the folder of what it meets, copied to PLACE each time.
        look: what PLACE holds, as something that can be compared; fails if that is not whole.
    """

    name: str
    argv: tuple[str, ...]
    state: Path
    look: Callable[[Path], Any]

    def command(self, place: Path, log: Path) -> None:
        """Runs it in this process, which it is for."""
        _redirect(log)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        from geomag_edge.cli.main import main

        if code := main([word.replace("PLACE", str(place)) for word in self.argv]):
            raise SystemExit(code)


def _redirect(log: Path) -> None:
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def look_at_answer(place: Path) -> Any:
    """The files of PLACE/out by digest, times aside; None where there is no folder."""
    out = place / "out"
    if not out.exists():
        return None
    found = {}
    for path in sorted(out.iterdir()):
        content = path.read_bytes()
        if path.name == "answer.json":
            content = json.dumps(json.loads(content) | {"timings_ms": None}).encode()
        if not path.name.startswith("."):
            found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def look_at_bundle(place: Path, name: str = "bundle") -> Any:
    """What PLACE/bundle holds, each file checked as it is opened; None where there is none."""
    from geomag_edge.errors import BundleError
    from geomag_edge.manifest import Bundle

    try:
        bundle = Bundle.open(place / name)
    except BundleError:
        if (place / name).exists():
            raise
        return None
    manifest = bundle.manifest
    for file in manifest.files:
        bundle.file(file)
    for precision, graphs in manifest.graphs.items():
        for graph in graphs:
            bundle.graph(graph, precision)
    made = {n: sha if n.endswith((".onnx", ".engine")) else "" for n, sha in manifest.files.items()}
    return [manifest.created_by, made, manifest.graphs, manifest.calibration]


def look_at_cache(place: Path) -> Any:
    """How many records the cache holds, each one readable."""
    records = [p for p in (place / "cache").rglob("*.json") if not p.name.startswith(".")]
    return len([json.loads(path.read_text()) for path in records])


def look_at_set(place: Path) -> Any:
    """The files of PLACE/set by digest."""
    root = place / "set"
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def jobs_of(made: world.World) -> Iterator[Job]:
    """All commands to kill, and the states they meet, made once."""
    states, scene = made.root / "states", str(made.picture)
    ask = ("run", str(made.bundle), scene, "segment the ships", "-o", "PLACE/out",
           "--answer-prefix", "[SEG]", "--max-new-tokens", "2", "--threads", "1")  # fmt: skip
    other = (*ask[:3], "segment the planes", *ask[4:])
    calibrate = ("calibrate", "PLACE/bundle", "--data", "scenes:1:2:96", "--count", "9")
    half = ("quantize", "PLACE/bundle", "--recipe", "fp16", "--threads", "1")
    build = ("build", "PLACE/bundle", "--target", TARGET, "--precision", "fp16")
    plan = ("plan", str(made.bundle), "--latency-ms", "1000", "--threads", "1")
    export = ("export", str(made.checkpoint), "-o", "PLACE/bundle", "--force")
    scenes = ("scenes", "-o", "PLACE/set", "--count", "1", "--size", "64", "--questions", "1")
    exact = ("--keep", "encoder/*")

    def state(name: str, base: Path | None, *commands: tuple[str, ...]) -> Path:
        folder = states / name
        if not folder.exists():
            part = states / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            if base is not None:
                shutil.copytree(base, part, dirs_exist_ok=True)
            for argv in commands:
                _must(Job(name, argv, part, look_at_cache), part)
            part.rename(folder)
        return folder

    bare = state("bare", None)
    if not (states / "bundle").exists():
        shutil.copytree(made.bundle, states / "bundle.part" / "bundle", dirs_exist_ok=True)
        (states / "bundle.part").rename(states / "bundle")
    plain = states / "bundle"
    answered = state("answered", None, other)
    for name in SIDECARS:
        (answered / "out" / name).write_text("of an earlier answer")
    (answered / "out" / "notes.txt").write_text("somebody's own")
    scaled = state("scaled", plain, (*calibrate, "--method", "minmax"))
    halved = state("halved", plain, (*half, *exact))
    built = state("built", state("half", plain, half), build)
    drawn = state("drawn", None, (*scenes, "--seed", "5"))
    older = state("older", plain)
    manifest = older / "bundle" / "bundle.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created_by": "an older"}))

    yield Job("run", ask, bare, look_at_answer)
    yield Job("run over an answer", ask, answered, look_at_answer)
    yield Job("export", export, bare, look_at_bundle)
    yield Job("export over a bundle", export, older, look_at_bundle)
    yield Job("calibrate", calibrate, plain, look_at_bundle)
    yield Job("calibrate again", (*calibrate, "--method", "mse"), scaled, look_at_bundle)
    yield Job("quantize", half, plain, look_at_bundle)
    yield Job("quantize over fp16", half, halved, look_at_bundle)
    yield Job("build", build, states / "half", look_at_bundle)
    yield Job("build over engines", (*build, "--version-compatible"), built, look_at_bundle)
    yield Job("plan", plan, bare, look_at_cache)
    yield Job("scenes over a set", (*scenes, "--force"), drawn, look_at_set)


def _must(job: Job, place: Path) -> None:
    """Runs a job's command whole, in a process of its own."""
    log = place.parent / f"{place.name}.log"
    pid = forked(lambda: job.command(place, log))
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        words = log.read_text(errors="replace")[-600:]
        raise RuntimeError(f"{job.name} failed without being killed: {words}")


def play_heavy_parts(made: world.World) -> None:
    """From here on, what is heavy gives what it once gave."""
    from geomag_edge.export import exporter
    from geomag_edge.runtime.chain import probe
    from geomag_edge.runtime.engines.tensorrt import build, bundle
    from geomag_edge.runtime.engines.tensorrt.flavour import Flavour
    from geomag_edge.runtime.planning.latency import LatencyModel

    def exported(model: Any, folder: Path, *settings: Any) -> None:
        shutil.copytree(made.bundle / "onnx" / "fp32", folder, dirs_exist_ok=True)

    def built(flavour: Any, path: Path, axes: Any, profiles: Any, options: Any, timing: Any = None,
              *others: Any) -> build.Built:  # fmt: skip
        cache = SimpleNamespace(serialize=lambda: b"timings")
        config = SimpleNamespace(get_timing_cache=lambda: cache)
        build._save_timing_cache(config, cache, timing)
        engine = hashlib.sha256(path.read_bytes() + str(options).encode()).digest() * 4096
        return build.Built(memoryview(engine), None, {}, [], [{} for _ in profiles], [], 0.1)

    record = made.root / "latency.json"
    if not record.exists():
        place = made.root / "measured"
        place.mkdir()
        argv = ("plan", str(made.bundle), "--latency-ms", "1000", "--threads", "1")
        _must(Job("plan", argv, place, look_at_cache), place)
        [found] = (place / "cache").rglob("latency/*.json")
        shutil.move(found, record)
    model = LatencyModel.from_json(json.loads(record.read_text())["model"])
    exporter._export_graphs = exported
    bundle.flavour_for = lambda target: Flavour("tensorrt_rtx", None, "1.7")
    bundle.build_engine = built
    probe.measure = lambda pipe, progress=None: model


@dataclass(frozen=True)
class Known:
    """What a job does when it is left alone."""

    job: Job
    events: int
    seconds: float
    old: Any
    new: Any


def know(job: Job, place: Path) -> Known:
    """Lets a job work once, watched, and once more against the clock."""
    log = place.parent / "know.log"
    _fresh(job, place)
    old = job.look(place)
    events = count_of(place, lambda: job.command(place, log))
    _fresh(job, place)
    start = time.monotonic()
    _must(job, place)
    return Known(job, events, time.monotonic() - start, old, job.look(place))


def _fresh(job: Job, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(job.state, place)


def strike(known: Known, event: int | None, instant: float, place: Path) -> dict[str, Any]:
    """Kills a job once and looks at what is left; `event` counts from 1, else `instant` is 0..1."""
    job, faults, found = known.job, [], "?"
    log = place.parent / f"{place.name}.log"
    log.unlink(missing_ok=True)
    _fresh(job, place)

    def work() -> None:
        job.command(place, log)

    how = ended_at(event, place, work) if event else killed_after(instant * known.seconds, work)
    if how == FAILED:
        faults.append("failed before it was killed")
    try:
        state = job.look(place)
        found = {True: "old"}.get(state == known.old) or (
            "new" if state == known.new else "neither"
        )
        if found == "neither":
            faults.append("neither old nor new")
        _must(job, place)
        if job.look(place) != known.new:
            faults.append("the next run does not make the new")
        litter = sorted(str(p.relative_to(place)) for p in place.rglob(".*"))
        if litter:
            faults.append(f"litter after the next run: {litter[:3]}")
    except Exception as e:
        faults.append(f"{type(e).__name__}: {e}"[:300])
    return {
        "job": job.name, "event": event, "instant": None if event else round(instant, 4),
        "how": how, "found": found, "faults": faults,
    }  # fmt: skip


def draw(known: list[Known], count: int, seed: int) -> list[tuple[int, int | None, float]]:
    """What to strike: half the events, without doubles while there are others, half instants."""
    rng = random.Random(seed)
    events = [(i, n) for i, k in enumerate(known) for n in range(1, k.events + 1)]
    rng.shuffle(events)
    at = [(*events[i % len(events)], 0.0) for i in range(count // 2)]
    return [*at, *((rng.randrange(len(known)), None, rng.random()) for _ in range(count - len(at)))]


def strikes(
    known: list[Known], todo: list[tuple[int, int | None, float]], root: Path, workers: int
) -> list[dict[str, Any]]:
    """All strikes, by several processes."""

    def work(number: int) -> None:
        place = root / f"place-{number}"
        with (root / f"rows-{number}").open("w") as rows:
            for which, event, instant in todo[number::workers]:
                row = strike(known[which], event, instant, place)
                rows.write(json.dumps(row) + "\n")
                rows.flush()

    pids = [forked(lambda n=n: work(n)) for n in range(workers)]  # type: ignore[misc]
    broken = [pid for pid in pids if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0]
    if broken:
        raise RuntimeError(f"{len(broken)} of {workers} workers failed")
    texts = ((root / f"rows-{number}").read_text() for number in range(workers))
    return [json.loads(line) for text in texts for line in text.splitlines()]


def summary(rows: list[dict[str, Any]], known: list[Known], seconds: float) -> dict[str, Any]:
    """Counts by command, and every fault."""
    by_job = {}
    for k in known:
        own = [row for row in rows if row["job"] == k.job.name]
        by_job[k.job.name] = {
            "events": k.events, "kills": sum(row["how"] == CUT for row in own),
            "too late": sum(row["how"] != CUT for row in own),
            **Counter(row["found"] for row in own),
        }  # fmt: skip
    return {
        "strikes": len(rows),
        "kills": sum(row["how"] == CUT for row in rows),
        "broken": [row for row in rows if row["faults"]],
        "by_job": by_job,
        "seconds": round(seconds),
    }


def as_markdown(report: dict[str, Any], seed: int) -> str:
    """A page for benchmarks/results."""
    from geomag_edge.benchmarks.machine import described, machine

    columns = sorted({name for counts in report["by_job"].values() for name in counts})
    lines = [
        "# Kills", "",
        f"`python -m tests.fuzz.kills --count {report['strikes']} --seed {seed}`, "
        f"{report['seconds'] / 60:.1f} minutes.", "",
        f"{described(machine(1))}.", "",
        f"{report['kills']} commands were killed (SIGKILL), half right before something changed on "
        f"the disk; neither old nor new, or litter after the next run: {len(report['broken'])}.",
        "",
        f"| command | {' | '.join(columns)} |", "|---|" + "---|" * len(columns),
    ]  # fmt: skip
    for name, counts in report["by_job"].items():
        lines.append(f"| {name} | {' | '.join(str(counts.get(c, 0)) for c in columns)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, metavar="DIR", help="keeps the tiny bundle there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the result as a page")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kills-") as own:
        root = (args.work or Path(own)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        pid = forked(lambda: world.build(root))  # torch's threads do not survive a fork
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
            raise RuntimeError("the tiny bundle could not be made")
        made = world.build(root)
        _import_all()
        play_heavy_parts(made)
        start = time.monotonic()
        known = [know(job, root / "place") for job in jobs_of(made)]
        rows = strikes(known, draw(known, args.count, args.seed), root, args.workers)
        report = summary(rows, known, time.monotonic() - start)
    for row in report["broken"]:
        print(f"{row['job']}, event {row['event']}, instant {row['instant']}: {row['faults']}")
    for name, counts in report["by_job"].items():
        print(f"{name}: {', '.join(f'{v} {k}' for k, v in counts.items())}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.output:
        args.output.write_text(as_markdown(report, args.seed))
    print(json.dumps({k: v for k, v in report.items() if k != "by_job"}))
    return int(bool(report["broken"]))


def _import_all() -> None:
    """Everything that a command would import, once; nothing is opened or run."""
    import importlib

    for name in (
        "cli.main", "runtime.chain.pipeline", "runtime.answers.outputs", "runtime.proof.verify",
        "runtime.engines.ort", "export.exporter", "calibration.quantization.capture",
        "calibration.quantize", "calibration.quantization.scales", "runtime.planning.fit",
        "runtime.engines.tensorrt.bundle",
    ):  # fmt: skip
        importlib.import_module(f"geomag_edge.{name}")


if __name__ == "__main__":
    sys.exit(main())
