"""Large scenes: our chain with PSC, and with a sweep, against tiling all at native resolution.

    python -m geomag_edge.benchmarks.peers.tiling --bundle BUNDLE --scenes DIR

Tiling is the usual practice for images larger than a model's input: the scene is cut into tiles of
the model's view, each is asked the same prompt as an image of its own (the global view alone at
the pixel level's global grid, no crops), and the tiles' masks are pasted into the frame. It runs in
the same engine, through the same graphs, and each tile is encoded once for all questions.

The questions are those of the pixel level about the first scene of a rendered set. Some ask for
what is not there, where the right answer is no mask: 1, else 0. Each set of targets is asked for
once, though the set may have several wordings. Time is the mean over the questions, each on a file
that is opened anew, ours and tiling both: how long a sweep takes depends on what is asked. Where
tiling a whole scene would take longer than `--tile-minutes`, a random sample of tiles is timed and
the time of all of them extrapolated; the result says from how many. `--quality-sizes` names the
scenes that are tiled completely for the masks' mIoU, in a process a core (no time is taken of
those). mIoU is also given for the questions with a target and for those whose targets are small in
the global view.

Ours is measured twice: as it answers by itself, with a handful of crops, and with a sweep
(`run --sweep`), which takes the answer's mask query to views of `--sweep-px` over the whole scene.

Who wins in quality depends on the question. Tiling sees every object at native resolution, so it
finds "all trees", which four crops cannot cover and a sweep can; a tile has no notion of the rest
of the scene, so "the lowest jetty" is beyond it. Questions by kind are in the JSON.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from tqdm import tqdm

from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.peers.big_scenes import make_scene, open_scene
from geomag_edge.benchmarks.publish import RESULTS, publish
from geomag_edge.benchmarks.timing import percentiles
from geomag_edge.calibration.datasets import Item, Picture, Rect
from geomag_edge.calibration.metrics import SIZES, AnswerMask, mask_iou, mask_overlap, size_name
from geomag_edge.errors import GeoMagError, InputError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.pipeline import Pipeline

SET_SEED, PER_LEVEL, NEW_TOKENS = 77, 12, 32
GOAL = 50.0
WAYS = ("ours", "swept", "tiling")
PART = 128
"""Tiles of a job."""
Clocks = dict[str, float]
"""`wall_ms` and `cpu_ms`."""
Loaded = tuple[Path, str, str, int]
"""What a pipeline is loaded from: bundle, engine, precision, threads."""

_pipe: Pipeline | None = None
"""Of a process that tiles."""


class TiledMask:
    """A mask that tiles have been pasted into; empty tiles take no memory."""

    def __init__(self, shape: tuple[int, int], side: int) -> None:
        """An empty mask of `shape` H, W, in tiles of `side` px."""
        self.shape, self.side = shape, side
        self._tiles: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def paste(self, rect: Rect, mask: NDArray[np.bool_]) -> None:
        """Puts one tile's mask bool[h,w] at its place.

        Raises:
            InputError: not a tile of this mask's grid, or a mask of another shape.
        """
        row0, col0, row1, col1 = rect
        if row0 % self.side or col0 % self.side or mask.shape != (row1 - row0, col1 - col0):
            raise InputError(f"a mask of {mask.shape} does not belong at tile {rect}")
        if mask.any():
            self._tiles[row0, col0] = np.packbits(mask, axis=1)

    def add(self, other: TiledMask) -> None:
        """Takes over the tiles of another mask of the same grid."""
        self._tiles |= other._tiles

    def blocks(self) -> Iterator[Rect]:
        """The tiles that hold a pixel."""
        for row0, col0 in sorted(self._tiles):
            yield self._rect(row0, col0)

    def window(self, row0: int, col0: int, row1: int, col1: int) -> NDArray[np.bool_]:
        """A part of the mask, rows row0..row1 and columns col0..col1, bool[h,w]."""
        out = np.zeros((row1 - row0, col1 - col0), bool)
        for r in range(row0 // self.side * self.side, row1, self.side):
            for c in range(col0 // self.side * self.side, col1, self.side):
                if (r, c) not in self._tiles:
                    continue
                _, _, r1, c1 = self._rect(r, c)
                tile = np.unpackbits(self._tiles[r, c], axis=1, count=c1 - c).astype(bool)
                top, left, bottom, right = max(r, row0), max(c, col0), min(r1, row1), min(c1, col1)
                out[top - row0 : bottom - row0, left - col0 : right - col0] = tile[
                    top - r : bottom - r, left - c : right - c
                ]
        return out

    def __len__(self) -> int:
        """Number of tiles that hold a pixel."""
        return len(self._tiles)

    def _rect(self, row0: int, col0: int) -> Rect:
        height, width = self.shape
        return row0, col0, min(row0 + self.side, height), min(col0 + self.side, width)


def tiles_of(height: int, width: int, side: int) -> list[Rect]:
    """The grid of tiles, row by row; those at the far edges are cut to the image."""
    return [
        (r, c, min(r + side, height), min(c + side, width))
        for r in range(0, height, side)
        for c in range(0, width, side)
    ]


def tile_everything(
    pipe: Pipeline, path: Path, prompts: list[str], rects: list[Rect] | None = None,
    tasks: tuple[str, ...] = ("ask",),
) -> tuple[list[TiledMask], Clocks]:  # fmt: skip
    """Asks every tile of a scene every prompt.

    Args:
        pipe: an open pipeline.
        path: the scene.
        prompts: plain text.
        rects: only these tiles; default all.
        tasks: words for the progress bar.

    Returns:
        a mask for each prompt, and the time it took, the file's opening included.
    """
    view = pipe.bundle.manifest.view
    alone = str(pipe.bundle.manifest.budgets["pixel"].global_grid)
    wall, cpu = time.perf_counter(), time.process_time()
    with rasterio.open(path) as scene:
        if rects is None:
            rects = tiles_of(scene.height, scene.width, view.view_px)
        masks = [TiledMask((scene.height, scene.width), view.view_px) for _ in prompts]
        for rect in tqdm(rects, " ".join(tasks), leave=False, disable=None):
            row0, col0, row1, col1 = rect
            pixels = scene.read(window=((row0, row1), (col0, col1)))
            with pipe.open(np.ascontiguousarray(pixels.transpose(1, 2, 0))) as tile:
                for prompt, mask in zip(prompts, masks, strict=True):
                    found = tile.ask(prompt, alone, NEW_TOKENS).masks
                    if found:
                        union = np.logical_or.reduce([np.asarray(m) for m in found])
                        mask.paste(rect, union)
    return masks, _clocks(wall, cpu)


def tile_in_processes(
    loaded: Loaded, path: Path, prompts: list[str], processes: int, name: str
) -> list[TiledMask]:
    """`tile_everything`, with a pipeline a process.

    Args:
        loaded: the pipeline's bundle, engine, precision and threads.
        path: the scene.
        prompts: plain text.
        processes: how many at once.
        name: word for the progress bar.

    Returns:
        a mask for each prompt.
    """
    side = Bundle.open(loaded[0]).manifest.view.view_px
    with rasterio.open(path) as scene:
        shape = scene.height, scene.width
    rects = tiles_of(*shape, side)
    parts = [rects[first : first + PART] for first in range(0, len(rects), PART)]
    masks = [TiledMask(shape, side) for _ in prompts]
    # Spawned: a fork would take an engine's threads along, which do not survive it.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _load, loaded) as pool:
        jobs = [pool.submit(_tile_part, path, prompts, part) for part in parts]
        for job in tqdm(jobs, f"tiling {name}", disable=None):
            for mask, found in zip(masks, job.result(), strict=True):
                mask.add(found)
    return masks


def _load(*loaded: Any) -> None:
    global _pipe
    _pipe = Pipeline.load(*loaded)


def _tile_part(path: Path, prompts: list[str], rects: list[Rect]) -> list[TiledMask]:
    assert _pipe is not None
    return tile_everything(_pipe, path, prompts, rects, ("part",))[0]


def ask_whole(
    pipe: Pipeline, path: Path, prompt: str, sweep_px: int | None = None
) -> tuple[Any, Clocks]:
    """Our chain: one question about the file, opened anew."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = pipe(path, prompt, "pixel", NEW_TOKENS, sweep_px=sweep_px)
    return result, _clocks(wall, cpu)


def _clocks(wall: float, cpu: float) -> Clocks:
    return {
        "wall_ms": (time.perf_counter() - wall) * 1e3,
        "cpu_ms": (time.process_time() - cpu) * 1e3,
    }


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--name", default="nano", help="what the results are called")
    parser.add_argument("--scenes", type=Path, required=True, help="scenes are made and kept here")
    parser.add_argument("--sizes", default="2048,4096,20000", help="sides to time, px")
    parser.add_argument("--quality-sizes", default="2048,4096,20000", help="to tile completely")
    parser.add_argument("--questions", type=int, default=9, help="of each scene, at most")
    parser.add_argument("--sweep-px", type=int, default=640, help="side of a sweep's views")
    parser.add_argument("--tile-minutes", type=float, default=0.5)
    parser.add_argument("--engine", default="ort-cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
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
        f"--tile-minutes {args.tile_minutes:g} "
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
    """The questions in turns, each asked of ours and of a batch of tiles, until every question had
    its turn and the tiles or the minutes are up."""
    path = Path(str(picture.image))
    with rasterio.open(path) as scene:
        rects = tiles_of(scene.height, scene.width, pipe.bundle.manifest.view.view_px)
    total = len(rects)
    random.Random(0).shuffle(rects)
    ways: dict[str, int | None] = {"ours": None, "swept": args.sweep_px}
    for sweep_px in ways.values():
        ask_whole(pipe, path, items[0].prompt, sweep_px)
    batch = max(1, min(256, total // len(items)))
    tile_everything(pipe, path, [items[0].prompt], rects[:4])
    ours: dict[str, list[Clocks]] = {way: [] for way in ways}
    tiled: list[tuple[int, Clocks]] = []
    started, done = time.perf_counter(), 0
    while done < total and (
        len(tiled) < len(items) or time.perf_counter() - started < args.tile_minutes * 60
    ):
        prompt = items[len(tiled) % len(items)].prompt
        for way, sweep_px in ways.items():
            ours[way].append(ask_whole(pipe, path, prompt, sweep_px)[1])
        # Row by row within the batch, as whoever tiles a file reads it.
        part = sorted(rects[done : done + batch])
        tiled.append((len(part), tile_everything(pipe, path, [prompt], part)[1]))
        done += len(part)
    per_tile = {
        clock: [took[clock] / count for count, took in tiled] for clock in ("wall_ms", "cpu_ms")
    }
    tiling_ms = {clock: float(np.mean(v)) * total for clock, v in per_tile.items()}
    own = {
        way: {clock: [round(took[clock], 3) for took in took_all] for clock in per_tile}
        for way, took_all in ours.items()
    }
    mean_ms = {
        way: {clock: float(np.mean(v)) for clock, v in found.items()} for way, found in own.items()
    }
    return {
        "questions_timed": len(items),
        "tiles": total,
        "tiles_timed": done,
        **mean_ms,
        "each_ms": own,
        "per_tile": {clock: percentiles(v) for clock, v in per_tile.items()},
        "tiling_ms": tiling_ms,
        "ratio": {
            way: {clock: tiling_ms[clock] / found[clock] for clock in per_tile}
            for way, found in mean_ms.items()
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
    tiled = tile_in_processes(
        loaded, path, [item.prompt for item in items], os.cpu_count() or 1, picture.name
    )
    rows = []
    for item, pasted in zip(items, tiled, strict=True):
        result, _ = ask_whole(pipe, path, item.prompt)
        swept, _ = ask_whole(pipe, path, item.prompt, args.sweep_px)
        side_px = item.longer_side_px()
        theirs: list[AnswerMask] = [pasted] if len(pasted) else []
        rows.append(
            {
                "id": item.id,
                "kind": item.kind,
                "prompt": item.prompt,
                "targets": len(item.target_ids),
                "size_px": None if side_px is None else round(side_px * view_px / side, 2),
                "ours": mask_iou(mask_overlap(result.masks, item), item, len(result.masks)),
                "swept": mask_iou(mask_overlap(swept.masks, item), item, len(swept.masks)),
                "tiling": mask_iou(mask_overlap(theirs, item), item, len(theirs)),
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


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    return float(np.mean([row[key] for row in rows])) if rows else None


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    lines = [
        "# Large scenes: against tiling everything",
        "",
        f"`{report['command']}`",
        "",
        f"{described(report['machine'])}. Engine {report['engine']}, precision "
        f"{report['precision']}; tiles of {report['view_px']} px, a sweep's views of "
        f"{report['sweep_px']} px. Mean of one question each; the file is opened anew for each. "
        "Where fewer tiles were timed than there are, tiling's time is extrapolated from them.",
        "",
        "| scene, px | ours, s, wall | CPU | swept, s, wall | CPU | tiling, s, wall | CPU | tiles "
        "(timed) | ours is faster, wall | by CPU time | swept is faster, wall | by CPU time | "
        "goal |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    clocks = ("wall_ms", "cpu_ms")
    for row in report["scenes"]:
        cells = [f"{row[way][c] / 1e3:.3f}" for way in WAYS[:2] for c in clocks]
        cells += [f"{row['tiling_ms'][c] / 1e3:.0f}" for c in clocks]
        cells.append(f"{row['tiles']} ({row['tiles_timed']})")
        cells += [f"{row['ratio'][way][c]:.0f}x" for way in WAYS[:2] for c in clocks]
        cells.append(f"{report['goal']:g}x" if row["size_px"] == 20000 else "-")
        lines.append(f"| {row['size_px']} | " + " | ".join(cells) + " |")
    weighed = [row for row in report["scenes"] if "quality" in row]
    if weighed:
        lines += [
            "",
            "mIoU of masks, " + ", ".join(WAYS) + ":",
            "",
            "| scene, px | questions | mIoU | with a target | mIoU | with small targets | mIoU |",
            "|---|---|---|---|---|---|---|",
        ]
    for row in weighed:
        found = row["quality"]
        cells = []
        for count, key in (
            (len(found["questions"]), "miou"),
            (found["present_questions"], "present_miou"),
            (found["small_questions"], "small_miou"),
        ):
            cells += [str(count), ", ".join(_cell(found[key][way]) for way in WAYS)]
        lines.append(f"| {row['size_px']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
