"""Learn the ranges of a bundle's tensors from real images and prompts, for quantisation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.cli.arguments import path, positive, seed
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.commands.run import add_threads_argument
from geomag_edge.cli.console import counted, needs_extra, print_json, say, tell
from geomag_edge.errors import OutputError
from geomag_edge.printing import table

if TYPE_CHECKING:
    from geomag_edge.calibration.quantization.capture import Captured
    from geomag_edge.calibration.quantization.scales import Scales
    from geomag_edge.calibration.sets.calibrating import CalibrationSet
    from geomag_edge.manifest import Bundle

METHODS = ("mse", "minmax", "percentile", "entropy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `calibrate`."""
    add_bundle_argument(parser, help="with fp32 graphs")
    parser.add_argument(
        "--data",
        required=True,
        metavar="SET",
        help="a folder with questions.jsonl, or such a file: image and prompt a line, level if "
        "known; or scenes:SEED:COUNT[:SIZE], rendered scenes that neither training nor any "
        "evaluation set holds",
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="questions to use, the levels alike (default: all, at most 128)",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the choice")
    parser.add_argument(
        "--method",
        default="mse",
        choices=METHODS,
        help="how `quantize` takes a threshold from what was seen (default: mse); all are stored",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="OTHER",
        help="write a calibrated copy of the bundle here and leave BUNDLE as it is",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing OTHER")
    add_threads_argument(parser)


def execute(args: argparse.Namespace) -> None:
    """Captures, or re-uses what is there, and prints what was seen."""
    with needs_extra("export"):
        from geomag_edge.calibration.quantization import capture, scales
        from geomag_edge.calibration.sets import calibrating as sets
    from geomag_edge.disk.amend import copy_bundle
    from geomag_edge.disk.staging import staged_folder
    from geomag_edge.manifest import MANIFEST, Bundle

    bundle = open_bundle(args)
    wanted = capture.graph_digests(bundle)
    if args.output and args.output.resolve() == args.bundle.resolve():
        raise OutputError(f"{args.output} is the bundle itself: leave -o away to calibrate it")
    with counted(None, "check", "image") as progress:
        data = sets.open_calibration_set(args.data, args.count, args.seed, progress)
    for note in data.notes:
        tell(f"geomag-edge calibrate: warning: {note}")
    captured, seen = None, _stored(bundle)
    if seen is None or not seen.fits(data.digest, capture.settings(), wanted):
        captured = _capture(bundle, data, args.threads)
        seen = captured.scales
    if args.output:
        with staged_folder(args.output, args.force, MANIFEST, [args.bundle]) as stage:
            copy_bundle(bundle, stage)
            scales.save_scales(Bundle.open(stage), seen, args.method)
    else:
        scales.save_scales(bundle, seen, args.method)
    out = args.output or args.bundle
    if args.json:
        print_json(_report(out, seen, captured, args.method))
    else:
        say(*_text(out, seen, captured, args.method))


def _stored(bundle: Bundle) -> Scales | None:
    from geomag_edge.calibration.quantization.scales import load_scales
    from geomag_edge.errors import BundleError

    try:
        return load_scales(bundle)
    except BundleError:
        return None  # none yet, or damaged: made anew either way


def _capture(bundle: Bundle, data: CalibrationSet, threads: int | None) -> Captured:
    from geomag_edge.calibration.quantization.capture import capture

    with counted(len(data.questions), "calibrate", "question") as progress:
        return capture(bundle, data, threads, progress)


def _report(out: Path, seen: Scales, captured: Captured | None, method: str) -> dict[str, Any]:
    return {
        "bundle": str(out),
        "set": seen.data,
        "settings": seen.settings,
        "method": method,
        "reused": captured is None,
        "tensors": {name: len(graph.tensors) for name, graph in seen.graphs.items()},
        "asked": []
        if captured is None
        else [
            {"level": level, "routed": routed, "budget": budget, "questions": n}
            for (level, routed, budget), n in sorted(captured.asked.items())
        ],
        "calls": {} if captured is None else dict(captured.calls),
        "seconds": None if captured is None else round(captured.seconds, 1),
        "peak_memory_mb": None if captured is None else round(captured.peak_memory_mb),
        "notes": seen.notes,
    }


def _text(out: Path, seen: Scales, captured: Captured | None, method: str) -> list[str]:
    about = seen.data
    levels = ", ".join(f"{n} {level}" for level, n in sorted(about["levels"].items()))
    lines = [
        f"set      {about['name']}: {about['questions']} questions ({levels}), "
        f"sha256 {about['digest'][:16]}",
    ]
    if captured is None:
        lines.append("re-used  the bundle was calibrated on this set with these settings before")
    else:
        asked = [(*key, n) for key, n in sorted(captured.asked.items())]
        calls = captured.calls
        lines += [
            f"took     {captured.seconds:.1f} s, peak memory {captured.peak_memory_mb:.0f} MB",
            "",
            *table(("level", "routed", "budget", "questions"), asked),
            "",
            *table(
                ("graph", "runs", "tensors", "values"),
                [
                    (name, calls[name], len(graph.tensors),
                     f"{sum(t.seen for t in graph.tensors.values()):.2e}")
                    for name, graph in seen.graphs.items()
                ],
            ),
        ]  # fmt: skip
    lines += ["", *(f"note     {note}" for note in seen.notes)]
    lines.append(f"scales ({method}) written to {out}")
    return lines
