"""Ask a bundle about an image: answer, boxes, masks and a picture."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.cli.arguments import milliseconds, number, path, positive, seed, text
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.console import counted, print_json, say, show, steps
from geomag_edge.errors import InputError, OutputError
from geomag_edge.manifest import Bundle
from geomag_edge.printing import printable

if TYPE_CHECKING:
    from geomag_edge.runtime.chain.deadline import Deadline
    from geomag_edge.runtime.chain.pipeline import Pipeline
    from geomag_edge.runtime.chain.result import Result
    from geomag_edge.runtime.chain.scene_session import SceneSession


IMAGE_HELP = "PNG, JPEG, GeoTIFF, ...: a path, a URL, or another name that GDAL reads"


def add_nodata_argument(parser: argparse.ArgumentParser) -> None:
    """The argument that says which value of an image means no data."""
    parser.add_argument(
        "--nodata",
        type=number,
        metavar="V",
        help="the value, as stored, of pixels without data, where the image does not say it "
        "(--nodata=-9999)",
    )


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """`--threads`, for every command that runs graphs."""
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of a graph")


def add_gpu_argument(parser: argparse.ArgumentParser) -> None:
    """`--device-index`, for every command that may use a GPU."""
    parser.add_argument(
        "--device-index",
        type=seed,
        metavar="N",
        help="the GPU to use, as CUDA counts from 0; one process uses one",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose what runs the graphs."""
    parser.add_argument(
        "--engine",
        default="ort-cpu",
        metavar="E",
        help="ort-cpu (default), openvino, torch; auto: for each graph the fastest on this "
        "machine, measured once and remembered",
    )
    parser.add_argument("--remeasure", action="store_true", help="with --engine auto: measure anew")
    parser.add_argument(
        "--precision",
        metavar="P",
        help="which graphs of the bundle: fp32, fp16, ... (default: fp32, or the only one); with "
        "--engine openvino or auto, bf16 runs the fp32 graphs in bfloat16, int8+bf16 the rest of "
        "the int8 ones; with --engine auto, auto takes the fastest for each graph",
    )
    add_threads_argument(parser)
    add_gpu_argument(parser)
    parser.add_argument(
        "--checkpoint", type=path, metavar="DIR", help="the bundle's checkpoint, for --engine torch"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `run`."""
    add_bundle_argument(parser)
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("prompt", type=text, metavar="PROMPT")
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="DIR",
        help="write answer.json, masks.tif, masks.geojson and overlay.png here",
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--budget",
        metavar="B",
        help="tokens to spend: a level (image, region, pixel), G+KxC (12+4x8), G alone, or Nt "
        "(200t: at most so many); "
        "default: what the model's router asks for",
    )
    parser.add_argument(
        "--latency-ms",
        type=milliseconds,
        metavar="L",
        help="the best budget that answers in this time, from the machine's own measurement (made "
        "now if there is none); crops and words are given up rather than be late",
    )
    parser.add_argument(
        "--sweep",
        type=positive,
        metavar="PX",
        help="also look for the answer's masks in views of PX pixels over the whole image, where "
        "PSC sees something of the prompt: for all of many small objects in a large scene; "
        "which one is the largest or lowest a view cannot tell",
    )
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")
    parser.add_argument(
        "--answer-prefix",
        type=text,
        default="",
        metavar="TEXT",
        help="start the answer with this; '[SEG]' asks for a mask whatever the model would say",
    )
    parser.add_argument("--bands", metavar="R,G,B", help="1-based band numbers, or one")
    parser.add_argument(
        "--range",
        metavar="LOW,HIGH",
        dest="value_range",
        help="stored values shown as black and white, for other types than uint8; six numbers: a "
        "pair each for red, green and blue; default: each band's 2nd to 98th percentile "
        "(--range=-25,0 if it begins with a minus)",
    )
    add_nodata_argument(parser)


def open_pipeline(args: argparse.Namespace, bundle: Bundle | None = None) -> Pipeline:
    """A pipeline as the engine arguments ask for it; `auto`'s measurement shows its progress."""
    from geomag_edge.runtime.chain.pipeline import Pipeline

    bundle = bundle or open_bundle(args)
    if args.engine != "auto":
        if args.remeasure:
            raise InputError(f"--remeasure is for --engine auto, {args.engine} measures nothing")
        return Pipeline.load(bundle, args.engine, args.precision, args.threads, args.checkpoint)
    from geomag_edge.graphs import CHAIN
    from geomag_edge.runtime.engines.auto.auto import AutoEngine
    from geomag_edge.runtime.engines.engine import default_precision

    precision = args.precision or default_precision(bundle)
    with steps(len(CHAIN), "auto") as progress:
        engine = AutoEngine(bundle, precision, args.threads, args.remeasure, progress)
    return Pipeline.load(bundle, engine)


def execute(args: argparse.Namespace) -> None:
    """Asks, writes the outputs, prints the answer."""
    from geomag_edge.runtime.answers.exchange import check_inputs

    if args.output and args.output.exists() and not args.output.is_dir():
        raise OutputError(f"{args.output} is a file: give a folder for the outputs")
    bands = _numbers(args.bands, int, "--bands", (1, 3))
    value_range = _numbers(args.value_range, float, "--range", (2, 6))
    stream = not (args.json or args.sweep)  # a sweep's progress bar would wipe the text out
    if args.budget and args.latency_ms:
        raise InputError("--budget and --latency-ms exclude each other: give one of them")
    if args.sweep and args.latency_ms:
        raise InputError("--sweep takes as long as it takes: give it without --latency-ms")
    with open_pipeline(args) as pipe:
        deadline = _deadline(pipe, args)
        start = time.perf_counter()
        with pipe.open(args.image, bands, value_range, args.nodata) as session:
            opened_ms = (time.perf_counter() - start) * 1e3
            if args.output:
                check_inputs(args.output, session.scene.files)
            with sweeping(session, args.sweep) as on_view:
                result = session.ask(
                    args.prompt, args.budget, args.max_new_tokens, args.answer_prefix,
                    show if stream else None, deadline, args.sweep, on_view,
                )  # fmt: skip
            result.timings_ms = {"open": opened_ms} | result.timings_ms
            result.timings_ms["total"] += opened_ms  # as the deadline's clock counts
            if not args.json:
                show("\n" if stream else f"{result.text}\n")
            answer = describe(result, args.image)
            written = write(session, result, answer, args.output) if args.output else {}
    if args.json:
        print_json(answer | {"files": {k: str(v) for k, v in written.items()}})
    else:
        print_answer(answer)
        for name in written.values():
            say(f"  wrote     {name}")


def _deadline(pipe: Pipeline, args: argparse.Namespace) -> Deadline | None:
    """A deadline that starts now; the machine is measured before if it never was."""
    if args.latency_ms:
        from geomag_edge.runtime.chain.probe import PARTS

        with steps(PARTS, "measuring this machine") as progress:
            pipe.planner(progress)
    return pipe.deadline(args.budget, args.latency_ms)


@contextmanager
def sweeping(session: SceneSession, side_px: int | None) -> Iterator[Callable[[str], None]]:
    """A progress bar over the views of a sweep, if there is one."""
    if side_px is None:
        yield lambda name: None
        return
    from geomag_edge.runtime.chain.sweep import coarse_boxes, sweep_boxes

    size = session.scene.height, session.scene.width
    fine = len(sweep_boxes(*size, side_px))
    count = fine + len(coarse_boxes(*size, side_px)) if fine else 0
    with counted(count, "sweep", "view") as on_view:
        yield on_view


def _numbers(given: str | None, kind: type, name: str, counts: tuple[int, ...]) -> Any:
    if given is None:
        return None
    try:
        values = tuple(kind(x) for x in given.split(","))
    except ValueError as e:
        raise InputError(f"{name} {given!r} is not a list of numbers such as 1,2,3") from e
    if len(values) not in counts:
        wanted = " or ".join(str(c) for c in counts)
        raise InputError(f"{name} {given!r} has {len(values)} numbers: give {wanted}")
    return values


def describe(result: Result, image: Path | str) -> dict[str, Any]:
    """A result as plain data, as in answer.json."""
    return {
        "image": printable(str(image)),
        "prompt": result.prompt,
        "text": result.text,
        "granularity": result.granularity,
        "granularity_probabilities": result.granularity_probabilities,
        "budget": result.budget.to_json(),
        "boxes": result.boxes,
        "masks": [
            {"id": i, "label": label, "score": m.score, "area_px": m.area_px, "box": m.bbox}
            for i, (m, label) in enumerate(zip(result.masks, result.labels, strict=True), start=1)
        ],
        "crops": result.crop_boxes.tolist(),
        "crop_scores": result.crop_scores.tolist(),
        "answer_tokens": len(result.token_ids),
        "stopped": result.stopped,
        "timings_ms": {k: round(v, 3) for k, v in result.timings_ms.items()},
        "engine": result.engine,
        "precision": result.precision,
        "providers": result.providers,
        "notes": result.notes,
        **({"sweep": result.sweep} if result.sweep else {}),
        **({"deadline": result.deadline} if result.deadline else {}),
    }


def write(session: Any, result: Result, answer: dict[str, Any], out: Path) -> dict[str, Path]:
    """Writes an answer's files into a folder; those of an earlier answer are replaced."""
    from geomag_edge.runtime.answers.outputs import write_outputs
    from geomag_edge.runtime.answers.overlay import Looked

    seen = Looked(result.view_box, result.crop_boxes, result.relevance)
    return write_outputs(out, session.scene, answer, result.masks, result.labels, seen)


def print_answer(answer: dict[str, Any]) -> None:
    """The facts of an answer, below its text."""
    odds = answer["granularity_probabilities"][answer["granularity"]]
    budget = answer["budget"]
    say(f"  task      {answer['granularity']} ({odds:.0%})")
    say(
        f"  budget    {budget['visual_tokens']} visual tokens: {budget['global_grid']} x "
        f"{budget['global_grid']} of the whole, {len(answer['crops'])} crops of "
        f"{budget['crop_grid']} x {budget['crop_grid']}"
    )
    for box in answer["boxes"]:
        say("  box       " + ", ".join(f"{v:.1f}" for v in box))
    for mask in answer["masks"]:
        what = f"{mask['label']}, {mask['area_px']} px, score {mask['score']:.2f}"
        say(f"  mask {mask['id']}    {what}")
    times = ", ".join(f"{k} {v:.0f}" for k, v in answer["timings_ms"].items())
    providers = ", ".join(sorted(set(answer["providers"].values())))
    say(f"  ms        {times}")
    say(f"  engine    {answer['engine']} {answer['precision']} ({providers})")
    if swept := answer.get("sweep"):
        say(f"  sweep     {swept['views']} of {swept['of']} views of {swept['view_px']} px")
    if deadline := answer.get("deadline"):
        say(f"  deadline  {deadline_text(deadline)}")
    for note in answer["notes"]:
        say(f"  note      {note}")


def deadline_text(report: dict[str, Any]) -> str:
    """Planned against actual, and what was given up, in one line."""
    parts = [
        f"{report['actual_ms']:.0f} of {report['latency_ms']:g} ms, planned "
        f"{report['planned_ms']:.0f} with {report['planned_budget']}",
        "kept" if report["kept"] else "MISSED",
    ]
    if not report["fits"]:
        parts.append("the cheapest budget does not fit")
    if report["dropped_crops"]:
        parts.append(f"{report['dropped_crops']} crops dropped")
    if report["shortened"]:
        parts.append("answer cut short")
    if report["expected_loss"] is not None:
        parts.append(f"expected loss {report['expected_loss']:.3f}")
    return ", ".join(parts)
