"""A pool of rendered scenes on disk, so that training reads pixels instead of drawing them.

One `.npz` a scene, uncompressed: the picture, the object ids, a table of the objects, and
questions. Scenes are drawn from their seeds, so a pool can be thrown away and made again.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from geomag_edge.scenes import CLASSES, COLOURS, LANDMARKS, RenderedScene, render_scene
from geomag_edge.scenes.questions import Question, make_questions

ALL_CLASSES = (*CLASSES, *LANDMARKS)
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class PooledScene:
    """A scene in memory.

    Attributes:
        image: u8[H,W,3].
        ids: u16[H,W], 0 is bare ground.
        classes, colours, large: i16[objects + 1] by object id; row 0 is -1 (bare ground).
        boxes: f32[objects + 1,4] px, tight around the visible pixels.
        questions: with answers, in the frame of `image`.
    """

    seed: int
    image: NDArray[np.uint8]
    ids: NDArray[np.uint16]
    classes: NDArray[np.int16]
    colours: NDArray[np.int16]
    large: NDArray[np.int16]
    boxes: NDArray[np.float32]
    questions: tuple[Question, ...]

    @classmethod
    def of(cls, scene: RenderedScene, per_level: int, seed: int = 0) -> PooledScene:
        """Renders the scene and asks `per_level` questions of each level."""
        rows = max((thing.id for thing in scene.spec.things), default=0) + 1
        classes, colours, large = (np.full(rows, -1, np.int16) for _ in range(3))
        boxes = np.zeros((rows, 4), np.float32)
        image = scene.image
        for o in scene.objects:
            classes[o.id] = ALL_CLASSES.index(o.cls)
            colours[o.id] = COLOUR_NAMES.index(o.colour)
            large[o.id] = o.size == "large"
            boxes[o.id] = o.box
        ids = scene.labels.window((0, 0, scene.size_px, scene.size_px)).astype(np.uint16)
        questions = tuple(make_questions(scene, seed, per_level))
        return cls(scene.seed, image, ids, classes, colours, large, boxes, questions)

    def save(self, path: Path) -> None:
        """Writes the scene, whole or not at all."""
        arrays = {name: value for name, value in vars(self).items() if name != "questions"}
        text = json.dumps([asdict(q) for q in self.questions])
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, questions=np.frombuffer(text.encode(), np.uint8), **arrays)
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> PooledScene:
        """Reads what `save` wrote."""
        with np.load(path) as data:
            fields = {name: data[name] for name in data.files}
        rows = json.loads(fields.pop("questions").tobytes())
        questions = tuple(
            Question(**{**row, "boxes": _tuples(row["boxes"]), "targets": tuple(row["targets"])})
            for row in rows
        )
        return cls(**{**fields, "seed": int(fields["seed"])}, questions=questions)


def _tuples(boxes: list[list[float]]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((b[0], b[1], b[2], b[3]) for b in boxes)


@dataclass(frozen=True)
class PoolPlan:
    """Which scenes a pool holds: seeds `first_seed`.., sides cycling through `sizes_px`."""

    first_seed: int = 1_000_000
    count: int = 3000
    sizes_px: tuple[int, ...] = (512, 512, 1024)
    per_level: int = 14

    def size_of(self, seed: int) -> int:
        """The side of a seed's scene, px."""
        return self.sizes_px[(seed - self.first_seed) % len(self.sizes_px)]


def fill_pool(folder: Path, plan: PoolPlan, workers: int = 1) -> int:
    """Renders what is missing; returns the number of scenes rendered."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(plan.first_seed, plan.first_seed + plan.count)
    missing = [s for s in seeds if not (folder / f"{s}.npz").exists()]
    jobs = [(folder / f"{s}.npz", s, plan.size_of(s), plan.per_level) for s in missing]
    if workers == 1:
        for job in tqdm(jobs, desc="scenes", unit="scene"):
            _render(job)
        return len(jobs)
    with ProcessPoolExecutor(workers) as pool:
        list(tqdm(pool.map(_render, jobs), total=len(jobs), desc="scenes", unit="scene"))
    return len(jobs)


def _render(job: tuple[Path, int, int, int]) -> None:
    path, seed, size_px, per_level = job
    PooledScene.of(render_scene(seed, size_px), per_level).save(path)


def pool_files(folder: Path) -> list[Path]:
    """The scenes of a pool, by seed."""
    return sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))
