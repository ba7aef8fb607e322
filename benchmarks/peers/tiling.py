"""Large scenes: our chain with PSC, and with a sweep, against tiling all at native resolution.

    python -m geomag_edge.benchmarks.peers.tiling --bundle BUNDLE --scenes DIR

Tiling is the usual practice for images larger than a model's input: the scene is cut into tiles of
the model's view, each is asked the same prompt as an image of its own (the global view alone at
the pixel level's global grid, no crops), and the tiles' masks are pasted into the frame. It runs in
the same engine, through the same graphs, a tile after the other. Tiles of `--sweep-px` are a second
peer: tiling at the scale of our sweep.

Ours is measured twice: as it answers by itself, with a handful of crops, and with a sweep
(`run --sweep`), which takes the answer's mask query to views of `--sweep-px` wherever PSC sees
something of the prompt.

The questions are those of the pixel level about the first scene of a rendered set. Some ask for
what is not there, where the right answer is no mask: 1, else 0. Each set of targets is asked for
once, though the set may have several wordings. Time is the mean over the questions, each on a file
that is opened anew, masks drawn, ours and tiling both: how long an answer takes depends on what is
asked. Of a large scene each question is timed on a sample of tiles (in blocks of 4 x 4, which share
what is read of the file), and the time of all of them extrapolated; the result says from how many.
`--quality-sizes` names the scenes that are tiled completely for the masks' mIoU, in a process a
core and each tile encoded once for all questions (no time is taken of those). mIoU is given for all
questions, for those with a target, and for those whose targets are small in the global view.

Who wins in quality depends on the question. Tiling sees every object at native resolution, so it
finds "all trees", which four crops cannot cover; a tile has no notion of the rest of the scene, so
"the lowest jetty" is beyond it. Questions by kind are in the JSON.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.peers.big_scenes import make_scene, open_scene
from geomag_edge.benchmarks.peers.tiles import (
    NEW_TOKENS,
    Clocks,
    clocks_since,
    sampled,
    tile_everything,
    tile_in_processes,
    tiles_of,
)
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.calibration.evaluation.metrics import (
    SIZES,
    AnswerMask,
    mask_iou,
    mask_overlap,
    size_name,
)
from geomag_edge.calibration.sets.items import Item, Picture
from geomag_edge.errors import GeoMagError
from geomag_edge.runtime.chain.pipeline import Pipeline

SET_SEED, PER_LEVEL = 77, 12
GOAL = 50.0
WAYS = ("ours", "swept", "tiling", "coarse")
BATCH = 256
"""Tiles timed of a question, at most."""


def ask_whole(
    pipe: Pipeline, path: Path, prompt: str, sweep_px: int | None = None
) -> tuple[Any, Clocks]:
    """Our chain: one question about the file, opened anew, and its masks drawn."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = pipe(path, prompt, "pixel", NEW_TOKENS, sweep_px=sweep_px)
    for mask in result.masks:
        _ = mask.area_px  # draws all of it, which is otherwise left until somebody looks
    return result, clocks_since(wall, cpu)


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(
        __doc__,
        bundle=REQUIRED,
        name="nano",
        scenes=REQUIRED,
        engine="ort-cpu",
        precision="fp32",
        threads=1,
    )
    parser.add_argument("--sizes", default="2048,4096,20000", help="sides to time, px")
    parser.add_argument("--quality-sizes", default="2048,4096,20000", help="to tile completely")
    parser.add_argument("--questions", type=int, default=9, help="of each scene, at most")
    parser.add_argument("--sweep-px", type=int, default=640, help="side of a sweep's views")
    args = parser.parse_args()
    try:
        report = measure(args)
    except GeoMagError as e:
        raise SystemExit(f"error: {e}") from e
    publish(report, as_markdown(report), args.results, f"peers_tiling_{args.name}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times and weighs both ways on each scene."""
    host = machine(args.threads)
    whole = [int(s) for s in args.quality_sizes.split(",") if s]
    sizes = sorted({int(s) for s in args.sizes.split(",") if s} | set(whole))
    found = []
    with Pipeline.load(args.bundle, args.engine, args.precision, args.threads) as pipe:
        for size in sizes:
            print(f"{size} px: the scene", file=sys.stderr)
            folder = make_scene(args.scenes / str(size), SET_SEED, size, PER_LEVEL)
            picture = open_scene(folder)
            items = one_wording(picture.items)[: args.questions]
            row = {"size_px": size} | time_all(pipe, picture, items, args)
            if size in whole:
                row["quality"] = weigh(pipe, open_scene(folder, keep_labels=True), args)
            found.append(row)
        view_px = pipe.bundle.manifest.view.view_px
        sha = str(pipe.bundle.manifest.checkpoint.get("sha256", ""))
    return {
        "command": f"python -m geomag_edge.benchmarks.peers.tiling --bundle {args.name} "
        f"--scenes DIR --sizes {args.sizes} --quality-sizes {args.quality_sizes} "
        f"--questions {args.questions} --sweep-px {args.sweep_px} "
        f"--engine {args.engine} --precision {args.precision} --threads {args.threads}",
        "machine": host,
        "checkpoint": sha,
        "engine": args.engine,
        "precision": args.precision,
        "view_px": view_px,
        "sweep_px": args.sweep_px,
        "goal": GOAL,
        "scenes": found,
    }


def time_all(
    pipe: Pipeline, picture: Picture, items: list[Item], args: argparse.Namespace
) -> dict[str, Any]:
    """Each question in turn: ours, swept, and a batch of the tiles of either size."""
    path = Path(str(picture.image))
    with rasterio.open(path) as scene:
        shape = scene.height, scene.width
    asking: dict[str, int | None] = {"ours": None, "swept": args.sweep_px}
    sides = {"tiling": pipe.bundle.manifest.view.view_px, "coarse": args.sweep_px}
    tiles = {way: sampled(tiles_of(*shape, side), side) for way, side in sides.items()}
    batch = {way: min(BATCH, -(-len(rects) // len(items))) for way, rects in tiles.items()}
    for sweep_px in asking.values():
        ask_whole(pipe, path, items[0].prompt, sweep_px)
    for way, side in sides.items():
        tile_everything(pipe, path, [items[0].prompt], side, tiles[way][:4])
    each: dict[str, list[Clocks]] = {way: [] for way in WAYS}
    timed = dict.fromkeys(sides, 0)
    for turn, item in enumerate(items):
        for way, sweep_px in asking.items():
            each[way].append(ask_whole(pipe, path, item.prompt, sweep_px)[1])
        for way, side in sides.items():
            rects = tiles[way][turn * batch[way] : (turn + 1) * batch[way]]
            if not rects:
                continue
            took = tile_everything(pipe, path, [item.prompt], side, rects)[1]
            share = len(tiles[way]) / len(rects)
            each[way].append({clock: ms * share for clock, ms in took.items()})
            timed[way] += len(rects)
    clocks = ("wall_ms", "cpu_ms")
    mean = {
        way: {clock: float(np.mean([one[clock] for one in found])) for clock in clocks}
        for way, found in each.items()
    }
    return {
        "questions_timed": len(items),
        "tiles": {way: len(rects) for way, rects in tiles.items()},
        "tiles_timed": timed,
        "mean": mean,
        "each": each,
        "ratio": {
            tiling: {
                way: {clock: mean[tiling][clock] / mean[way][clock] for clock in clocks}
                for way in asking
            }
            for tiling in sides
        },
    }


def one_wording(items: list[Item]) -> list[Item]:
    """Of the questions for the same targets the first; what is absent is told by its words."""
    first: dict[object, Item] = {}
    for item in items:
        first.setdefault(item.target_ids or item.prompt, item)
    return list(first.values())


def weigh(pipe: Pipeline, picture: Picture, args: argparse.Namespace) -> dict[str, Any]:
    """The masks' IoU of all ways, on every question, all tiles."""
    path = Path(str(picture.image))
    with rasterio.open(path) as scene:
        side = max(scene.height, scene.width)
    view_px = pipe.bundle.manifest.view.view_px
    items = one_wording(picture.items)[: args.questions]
    loaded = args.bundle, args.engine, args.precision, args.threads
    prompts = [item.prompt for item in items]
    tiled, coarse = (
        tile_in_processes(loaded, path, prompts, px, os.cpu_count() or 1, f"{side} px by {px}")
        for px in (view_px, args.sweep_px)
    )
    rows = []
    for item, pasted, coarsely in zip(items, tiled, coarse, strict=True):
        result, _ = ask_whole(pipe, path, item.prompt)
        swept, _ = ask_whole(pipe, path, item.prompt, args.sweep_px)
        side_px = item.longer_side_px()
        rows.append(
            {
                "id": item.id,
                "kind": item.kind,
                "prompt": item.prompt,
                "targets": len(item.target_ids),
                "size_px": None if side_px is None else round(side_px * view_px / side, 2),
                "ours": _iou(result.masks, item),
                "swept": _iou(swept.masks, item),
                "tiling": _iou([pasted] if len(pasted) else [], item),
                "coarse": _iou([coarsely] if len(coarsely) else [], item),
                "tiles_with_a_mask": len(pasted),
                "ours_said": result.text,
            }
        )
    present = [row for row in rows if row["size_px"] is not None]
    small = [row for row in present if size_name(row["size_px"]) == SIZES[0]]
    return {
        "questions": rows,
        "present_miou": {way: _mean(present, way) for way in WAYS},
        "present_questions": len(present),
        "miou": {way: _mean(rows, way) for way in WAYS},
        "small_miou": {way: _mean(small, way) for way in WAYS},
        "small_questions": len(small),
    }


def _iou(masks: Sequence[AnswerMask], item: Item) -> float:
    return mask_iou(mask_overlap(masks, item), item, len(masks))


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    return float(np.mean([row[key] for row in rows])) if rows else None


def as_markdown(report: dict[str, Any]) -> str:
    """The committed tables."""
    said = (
        f"{described(report['machine'])}. Engine {report['engine']}, precision "
        f"{report['precision']}; tiles of {report['view_px']} px, a sweep's views and coarse tiles "
        f"of {report['sweep_px']} px. Mean of one question each, s of wall time (of CPU time); the "
        "file is opened anew for each. Where fewer tiles were timed than there are, tiling's time "
        "is extrapolated from them."
    )
    parts = [said, _time_table(report)]
    weighed = [row for row in report["scenes"] if "quality" in row]
    if weighed:
        parts += ["mIoU of masks, ours, swept, tiling, coarse tiling:", _quality_table(weighed)]
    for row in weighed:
        parts += [f"By question, {row['size_px']} px:", _question_table(row["quality"])]
    return page_of("Large scenes: against tiling everything", report, *parts)


def _time_table(report: dict[str, Any]) -> str:
    """A row a scene."""
    rows = []
    for row in report["scenes"]:
        seconds = {
            way: f"{took['wall_ms'] / 1e3:.3g} ({took['cpu_ms'] / 1e3:.3g})"
            for way, took in row["mean"].items()
        }
        count = {way: f"{row['tiles'][way]} ({row['tiles_timed'][way]})" for way in row["tiles"]}
        ratios = {
            (tiling, way): f"{times(found['wall_ms'])} ({times(found['cpu_ms'])})"
            for tiling, ways in row["ratio"].items()
            for way, found in ways.items()
        }
        rows.append(
            (row["size_px"], row["questions_timed"], seconds["ours"], seconds["swept"],
             seconds["tiling"], count["tiling"], seconds["coarse"], count["coarse"],
             ratios["tiling", "ours"], ratios["tiling", "swept"],
             f"{report['goal']:g}x" if row["size_px"] == 20000 else "-", ratios["coarse", "swept"])
        )  # fmt: skip
    heads = (
        "scene, px | questions | ours | swept | tiling | tiles (timed) | coarse tiling | tiles "
        "(timed) | tiling against ours | against swept | goal | coarse tiling against swept"
    )
    return table_of(heads, rows)


def _quality_table(scenes: list[dict[str, Any]]) -> str:
    """A row a scene that was tiled completely."""
    rows = []
    for row in scenes:
        found = row["quality"]
        cells: list[object] = [row["size_px"]]
        for number, key in (
            (len(found["questions"]), "miou"),
            (found["present_questions"], "present_miou"),
            (found["small_questions"], "small_miou"),
        ):
            cells += [number, ", ".join(_cell(found[key][way]) for way in WAYS)]
        rows.append(cells)
    heads = "scene, px | questions | mIoU | with a target | mIoU | with small targets | mIoU"
    return table_of(heads, rows)


def _question_table(quality: dict[str, Any]) -> str:
    """A row a question of one scene."""
    rows = (
        (question["prompt"], question["targets"],
         "-" if question["size_px"] is None else f"{question['size_px']:.2g}",
         *(f"{question[way]:.2f}" for way in WAYS))
        for question in quality["questions"]
    )  # fmt: skip
    heads = "prompt | targets | side in the global view, px | ours | swept | tiling | coarse"
    return table_of(heads, rows)


def times(ratio: float) -> str:
    """A ratio to three figures, or whole."""
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
