"""First aid for a machine with an NVIDIA GPU: everything that it can be asked here, in one command,
whose two files are what to send to somebody who has no such machine.

    python -m geomag_edge.benchmarks.gpu_check [BUNDLE] [--precision fp32] [-o DIR]

Each step runs in a process of its own, for at most `--limit` seconds (a build six times that), so
one that crashes or hangs does not stop the rest:

- the machine: GPU, driver, CUDA, TensorRT, JetPack, power mode, clocks, memory, versions;
- the driver, memory, the kernels' compiler, the small kernels beside numpy;
- PscCrop beside its numpy twin and the CPU kernel, under compute-sanitizer where that is installed,
  and its speed: bytes touched a second, beside the device's own copies, and torch on the same GPU;
- for `tensorrt` and `tensorrt-rtx`: every graph's build, into the bundle, if it has no engines of
  this TensorRT yet; for these and `ort-cuda`: every graph on the bundle's reference inputs beside
  ONNX Runtime on the CPU, and once more by Polygraphy (if installed) instead of our runtime; the
  chain's answers beside those of `ort-cpu`; how many calls CUDA graphs replayed; each stage's time,
  which for engines is also stored in their build.json, beside the fit check's prediction;
- one decode step of the bundle's language model in torch on the same GPU, eager and compiled.

Without a bundle only the steps before the engines run. What bounds the times: PscCrop and a decode
step move bytes (pixels and views; weights and cache) and little else, so the device's memory is
their floor.

`gpu_check_GPU_PRECISION_TIME.json` and `.txt` are written after every step, so they also tell of a
machine that went down; the text, which begins with what to do next, is printed at the end. Exit
code 0: nothing that ran was wrong; 1: something was; 2: no GPU that could be used, or bad usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.gpu.child import in_a_process
from geomag_edge.benchmarks.gpu.outcome import Result
from geomag_edge.benchmarks.gpu.page import page_of, said, word
from geomag_edge.benchmarks.gpu.steps import BUNDLE, Settings, Step, steps_of
from geomag_edge.disk.staging import write_whole
from geomag_edge.errors import GeoMagError, OutputError
from geomag_edge.manifest import Bundle

Runner = Callable[[str, Step, Settings], Result]
NEEDED = ("driver", "memory")
"""Without these there is no GPU to speak of."""
NOT_HERE = "not possible here: "


def main(argv: list[str] | None = None) -> int:
    """Parses, runs every step, writes and prints the page; the exit code."""
    args = _parsed(argv)
    settings = Settings(
        None if args.bundle is None else str(args.bundle.resolve()),
        args.precision,
        args.rounds,
        None if args.checkpoint is None else str(args.checkpoint.resolve()),
    )
    given = sys.argv[1:] if argv is None else argv
    command = " ".join(["python -m geomag_edge.benchmarks.gpu_check", *given])
    file = None

    def run(name: str, step: Step, settings: Settings) -> Result:
        return in_a_process(name, asdict(settings), step.limits * args.limit)

    def keep(report: dict[str, Any]) -> None:
        nonlocal file
        if "driver" in report["steps"]:
            file = args.output / _name_of(report)
            write(report, file)

    try:
        if args.bundle is not None:
            Bundle.open(args.bundle)
        _make(args.output)
        report = check(settings, command, run, keep)
    except GeoMagError as e:
        print(f"gpu_check: {e}", file=sys.stderr)
        return 2
    print(page_of(report, advice_of(settings)))
    print(f"wrote {file}.txt and .json", file=sys.stderr)
    return 2 if not report["usable"] else 0 if report["ok"] else 1


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m geomag_edge.benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="a folder that export made")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, help="the bundle's checkpoint, for torch")
    parser.add_argument("--limit", type=float, default=600, help="seconds a step (default: 600)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(), metavar="DIR",
        help="where the two files go (default: here)",
    )  # fmt: skip
    return parser.parse_args(argv)


def check(
    settings: Settings,
    command: str,
    run: Runner,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Every step, as the report that is written.

    Args:
        settings: what to check.
        command: for the report.
        run: does a step.
        keep: is called with the report before and after each step; Ctrl-C ends the steps, and the
            report says at which one.
    """
    report: dict[str, Any] = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "settings": asdict(settings),
        "steps": {},
        "usable": False,
        "ok": False,
        "running": None,
    }
    done: dict[str, Result] = report["steps"]
    steps = steps_of(settings)
    try:
        for name, step in steps.items():
            report["running"] = name
            keep(report)
            print(f"{name} ...", file=sys.stderr, flush=True)
            done[name] = blocked(step, settings, done) or run(name, step, settings)
            told = "" if "blocked" in done[name] else f": {said(done[name])}"
            print(f"  {word(done[name])}{told}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass
    else:
        report["running"] = None
    report["usable"] = all(done.get(name, {}).get("ok", False) for name in NEEDED)
    report["ok"] = report["running"] is None and not any(
        step["ran"] and not step["ok"] for step in done.values()
    )
    keep(report)
    return report


def blocked(step: Step, settings: Settings, done: dict[str, Result]) -> Result | None:
    """Why a step cannot run after what came of those that it needs, or None."""
    for need in step.needs:
        if need == BUNDLE:
            if settings.bundle is None:
                reason = "no bundle was given: name one to check its engines, too"
                return {"ran": False, "reason": f"{NOT_HERE}{reason}", "blocked": need}
            continue
        result = done[need]
        if not result["ran"]:
            reason = result["reason"].removeprefix(NOT_HERE)
            return {"ran": False, "reason": f"{NOT_HERE}{reason}", "blocked": need}
        if not result["ok"]:
            return {"ran": False, "reason": f"needs '{need}', which is wrong", "blocked": need}
    return None


def write(report: dict[str, Any], file: Path) -> None:
    """FILE.json and FILE.txt, whole or not at all.

    Raises:
        OutputError: cannot be written.
    """
    settings = Settings(**report["settings"])
    text = json.dumps(report, indent=1) + "\n"
    write_whole(file.with_name(f"{file.name}.json"), text)
    write_whole(file.with_name(f"{file.name}.txt"), page_of(report, advice_of(settings)))


def advice_of(settings: Settings) -> dict[str, str]:
    """By step, what to do where it is wrong."""
    return {name: step.advice for name, step in steps_of(settings).items()}


def _name_of(report: dict[str, Any]) -> str:
    gpus = report["steps"]["driver"].get("gpus") or [{"name": "no gpu"}]
    slug = "".join(c if c.isalnum() and c.isascii() else "-" for c in gpus[0]["name"].lower())
    when = report["when"][:19].replace(":", "").replace("T", "-")
    return f"gpu_check_{slug}_{report['settings']['precision']}_{when}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot write to {folder}: {e.strerror or e}; give another -o") from e


if __name__ == "__main__":
    sys.exit(main())
