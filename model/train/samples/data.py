"""One training example: a scene, some questions about it, and the views to look through.

Questions about one scene share its views and, in the language model, its visual tokens, which
makes them nearly free. All randomness comes from one generator a step, so a resumed run sees
what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.cpp_ext import psc_crop
from geomag_edge.model.train.samples.augment import transform
from geomag_edge.model.train.samples.pool import ALL_CLASSES, COLOUR_NAMES, PooledScene
from geomag_edge.model.train.samples.targets import (
    Noun,
    mask_targets,
    prompt_text,
    sample_ids,
    shown_objects,
    subject_of,
)
from geomag_edge.scenes.catalog import SIZES
from geomag_edge.scenes.phrases import COLOURED, SIZED
from geomag_edge.scenes.questions import Question
from geomag_edge.views import global_box

F32 = NDArray[np.float32]

LABEL_SIDE = 64
"""Dense labels are sampled at this many points along a view's side, patches at twice as many."""


@dataclass(frozen=True)
class BudgetRange:
    """What token budgets training draws from; a step has one budget."""

    global_grids: tuple[int, ...] = (6, 8, 8, 8, 10)
    crops: tuple[int, ...] = (0, 2, 3, 4, 4, 4)
    crop_grids: tuple[int, ...] = (4, 4, 6, 8)
    max_tokens: int = 330

    def draw(self, rng: np.random.Generator) -> TokenBudget:
        """A random budget of at most `max_tokens` visual tokens."""
        while True:
            g, k, c = (int(rng.choice(x)) for x in (self.global_grids, self.crops, self.crop_grids))
            budget = TokenBudget(g, k, c if k else 0)
            if budget.visual_tokens <= self.max_tokens:
                return budget


@dataclass
class Visit:
    """A scene with the questions that this step asks.

    `subjects` hold what PSC should look at for each question, bool by object id, or None.
    `focus` is the question that crops are chosen for.
    """

    scene: PooledScene
    questions: list[Question]
    prompts: list[str]
    subjects: list[NDArray[np.bool_] | None]
    focus: int

    @property
    def box(self) -> F32:
        """The global view's box f32[4]."""
        return global_box(*self.scene.ids.shape)


@lru_cache(maxsize=256)
def _load(path: Path) -> PooledScene:
    return PooledScene.load(path)


def visit(path: Path, rng: np.random.Generator, questions_per_level: tuple[int, int, int]) -> Visit:
    """Reads a pooled scene, turns it one of eight ways and draws questions.

    Half of the questions are about what the focus question is about, so that crops serve them too.
    """
    mirror, flip, transpose = (bool(b) for b in rng.integers(0, 2, 3))
    scene = transform(_load(path), mirror, flip, transpose)
    subjects = [subject_of(q, scene) for q in scene.questions]
    focus = int(rng.integers(len(scene.questions)))
    chosen = [focus]
    for level, count in zip(LEVELS, questions_per_level, strict=True):
        options = [i for i, q in enumerate(scene.questions) if q.level == level and i not in chosen]
        count -= scene.questions[focus].level == level
        if not options or count <= 0:
            continue
        weight = np.array([1 + 3 * _alike(subjects[i], subjects[focus]) for i in options], float)
        picked = rng.choice(
            options, min(count, len(options)), replace=False, p=weight / weight.sum()
        )
        chosen += [int(i) for i in picked]
    height, width = scene.ids.shape
    return Visit(
        scene,
        [scene.questions[i] for i in chosen],
        [prompt_text(scene.questions[i], height, width) for i in chosen],
        [subjects[i] for i in chosen],
        0,
    )


def _alike(a: NDArray[np.bool_] | None, b: NDArray[np.bool_] | None) -> bool:
    return a is not None and b is not None and bool((a & b).any())


def crop_near(
    visit: Visit, question: int, rng: np.random.Generator, sides: Sequence[int], grid: int
) -> F32:
    """A window over one of a question's objects, f32[4] px; a random one if there is none.

    Sides and places are mostly PSC's own (whole patches of the global view), else free.
    """
    scene, whole = visit.scene, visit.box
    cell = float(whole[2] - whole[0]) / grid
    rows = visit.subjects[question]
    targets = [t for t in visit.questions[question].targets if rng.random() < 0.8]
    if not targets and rows is not None:
        targets = np.flatnonzero(rows).tolist()
    side = float(rng.choice(np.asarray(sides))) * cell
    if rng.random() < 0.25:
        side = float(np.exp(rng.uniform(np.log(cell), np.log(grid / 2 * cell))))
    if targets:
        x0, y0, x1, y1 = scene.boxes[int(rng.choice(targets))].tolist()
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        while side < max(x1 - x0, y1 - y0) and side < grid / 2 * cell:
            side *= 2
        jitter = 0.3
    else:
        x, y = rng.uniform(whole[0], whole[2]), rng.uniform(whole[1], whole[3])
        jitter = 0.5
    left = x - side / 2 + side * rng.uniform(-jitter, jitter)
    top = y - side / 2 + side * rng.uniform(-jitter, jitter)
    if rng.random() < 0.75:
        left = whole[0] + round((left - whole[0]) / cell) * cell
        top = whole[1] + round((top - whole[1]) / cell) * cell
        side = max(1, round(side / cell)) * cell
    left = min(max(left, float(whole[0])), float(whole[2]) - side)
    top = min(max(top, float(whole[1])), float(whole[3]) - side)
    return np.array([left, top, left + side, top + side], np.float32)


@dataclass
class ViewLabels:
    """Everything known about the views of one scene; n views, q questions, P patches.

    Attributes:
        samples: i32[n,N,N] object ids at LABEL_SIDE points along a side.
        shown: bool[n,P,objects + 1].
        relevant: f32[q,n,P], 1 where PSC should look.
        has_subject: bool[q].
    """

    samples: NDArray[np.int32]
    shown: list[NDArray[np.bool_]]
    relevant: F32
    has_subject: NDArray[np.bool_]


def view_labels(visit: Visit, boxes: F32, grid: int) -> ViewLabels:
    """Labels of the views `boxes` f32[n,4]."""
    scene = visit.scene
    rows = len(scene.classes)
    samples, shown = [], []
    for box in boxes:
        whole = box[2] - box[0] >= max(scene.ids.shape)
        side = max(2 * LABEL_SIDE, min(max(scene.ids.shape), 512) if whole else 0)
        fine = sample_ids(scene.ids, box, side)
        step = side // LABEL_SIDE
        samples.append(fine[step // 2 :: step, step // 2 :: step])
        shown.append(shown_objects(fine, rows, grid))
    relevant = np.zeros((len(visit.questions), len(boxes), grid * grid), np.float32)
    for i, subject in enumerate(visit.subjects):
        if subject is not None and subject.any():
            relevant[i] = [(patches[:, subject]).any(1) for patches in shown]
    has_subject = np.array([s is not None for s in visit.subjects])
    return ViewLabels(np.stack(samples), shown, relevant, has_subject)


def random_noun(visit: Visit, rng: np.random.Generator) -> Noun | None:
    """A noun with random attributes that names something in the scene; None in an empty one."""
    scene = visit.scene
    present = np.unique(scene.classes[scene.classes >= 0])
    if not len(present):
        return None
    cls = int(rng.choice(present))
    example = int(rng.choice(np.flatnonzero(scene.classes == cls)))
    name = ALL_CLASSES[cls]
    coloured = name in COLOURED and rng.random() < 0.5
    sized = name in SIZED and rng.random() < 0.4
    return Noun(
        name,
        COLOUR_NAMES[scene.colours[example]] if coloured else "",
        SIZES[scene.large[example]] if sized else "",
    )


def masks_of(visit: Visit, questions: Sequence[int], boxes: F32, side: int) -> F32:
    """Mask coverage f32[m,n,side,side] in 0..1 of the questions' targets in the views."""
    tables = []
    for i in questions:
        table = np.zeros(len(visit.scene.classes), bool)
        table[list(visit.questions[i].targets)] = True
        tables.append(table)
    return mask_targets(visit.scene.ids, tables, boxes, side)


def view_pixels(visit: Visit, boxes: F32, mean_std: F32, side: int) -> F32:
    """Views f32[n,3,S,S] by PscCrop."""
    return psc_crop(visit.scene.image, boxes, mean_std, side, threads=1)
