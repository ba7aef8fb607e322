"""Tiling all of a scene: every tile is an image of its own, and its masks are pasted into one.

The usual practice for images larger than a model's input, built on our pipeline.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from tqdm import tqdm

from geomag_edge.calibration.sets.items import Rect
from geomag_edge.errors import InputError
from geomag_edge.runtime.chain.pipeline import Pipeline

NEW_TOKENS = 32
PART, BLOCK = 128, 4
"""Tiles of a job; tiles sampled together, squared."""
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
    pipe: Pipeline,
    path: Path,
    prompts: list[str],
    side: int,
    rects: list[Rect] | None = None,
    task: str = "ask",
) -> tuple[list[TiledMask], Clocks]:
    """Asks every tile of a scene every prompt.

    Args:
        pipe: an open pipeline.
        path: the scene.
        prompts: plain text.
        side: of the tiles, px.
        rects: only these tiles; default all.
        task: word for the progress bar.

    Returns:
        a mask for each prompt, and the time it took, the file's opening included.
    """
    alone = str(pipe.bundle.manifest.budgets["pixel"].global_grid)
    wall, cpu = time.perf_counter(), time.process_time()
    with rasterio.open(path) as scene:
        if rects is None:
            rects = tiles_of(scene.height, scene.width, side)
        masks = [TiledMask((scene.height, scene.width), side) for _ in prompts]
        for rect in tqdm(rects, task, leave=False, disable=None):
            row0, col0, row1, col1 = rect
            pixels = scene.read(window=((row0, row1), (col0, col1)))
            with pipe.open(np.ascontiguousarray(pixels.transpose(1, 2, 0))) as tile:
                for prompt, mask in zip(prompts, masks, strict=True):
                    found = tile.ask(prompt, alone, NEW_TOKENS).masks
                    if found:
                        union = np.logical_or.reduce([np.asarray(m) for m in found])
                        mask.paste(rect, union)
    return masks, clocks_since(wall, cpu)


def tile_in_processes(
    loaded: Loaded, path: Path, prompts: list[str], side: int, processes: int, name: str
) -> list[TiledMask]:
    """`tile_everything`, with a pipeline a process.

    Args:
        loaded: the pipeline's bundle, engine, precision and threads.
        path: the scene.
        prompts: plain text.
        side: of the tiles, px.
        processes: how many at once.
        name: word for the progress bar.

    Returns:
        a mask for each prompt.
    """
    with rasterio.open(path) as scene:
        shape = scene.height, scene.width
    rects = tiles_of(*shape, side)
    parts = [rects[first : first + PART] for first in range(0, len(rects), PART)]
    masks = [TiledMask(shape, side) for _ in prompts]
    # Spawned: a fork would take an engine's threads along, which do not survive it.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _load, loaded) as pool:
        jobs = [pool.submit(_tile_part, path, prompts, side, part) for part in parts]
        for job in tqdm(jobs, f"tiling {name}", disable=None):
            for mask, found in zip(masks, job.result(), strict=True):
                mask.add(found)
    return masks


def _load(*loaded: Any) -> None:
    global _pipe
    _pipe = Pipeline.load(*loaded)


def _tile_part(path: Path, prompts: list[str], side: int, rects: list[Rect]) -> list[TiledMask]:
    assert _pipe is not None
    return tile_everything(_pipe, path, prompts, side, rects, "part")[0]


def sampled(rects: list[Rect], side: int) -> list[Rect]:
    """The tiles in random order by blocks of `BLOCK` x `BLOCK`, row by row within one."""
    blocks: dict[tuple[int, int], list[Rect]] = {}
    for rect in rects:
        blocks.setdefault((rect[0] // (BLOCK * side), rect[1] // (BLOCK * side)), []).append(rect)
    order = list(blocks.values())
    random.Random(0).shuffle(order)
    return [rect for block in order for rect in block]


def clocks_since(wall: float, cpu: float) -> Clocks:
    """What has passed since readings of `time.perf_counter` and `time.process_time`."""
    return {
        "wall_ms": (time.perf_counter() - wall) * 1e3,
        "cpu_ms": (time.process_time() - cpu) * 1e3,
    }
