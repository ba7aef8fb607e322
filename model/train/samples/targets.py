"""What the model should say of a view: labels, relevance, masks, boxes and answers.

Everything is made in the frame of a view (a square box of the image), because that is where the
model answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.model.train.samples.pool import ALL_CLASSES, COLOUR_NAMES, PooledScene
from geomag_edge.prompts import SEG_TOKEN, box_markup, prompt_with_box
from geomag_edge.scenes.phrases import COLOURED, NAMES, SIZED
from geomag_edge.scenes.questions import Question
from geomag_edge.views import image_to_view

F32 = NDArray[np.float32]

OUTSIDE = -1
"""Marks samples of a view that lie outside the image."""

SHARE = 0.1
OWN_SHARE = 0.2
"""A patch shows an object if the object fills `SHARE` of it, or if `OWN_SHARE` of the object's
visible pixels lie in it: small things count too."""

_CLASS_OF = {form: cls for cls, pairs in NAMES.items() for pair in pairs for form in pair}
_NOUN = re.compile(
    rf"(?:\b(small|large)\s)?(?:\b({'|'.join(COLOUR_NAMES)})\s)?"
    rf"\b({'|'.join(sorted(map(re.escape, _CLASS_OF), key=len, reverse=True))})\b"
)


@dataclass(frozen=True)
class Noun:
    """A class with the attributes that a phrase gives it."""

    cls: str
    colour: str = ""
    size: str = ""

    def rows(self, scene: PooledScene) -> NDArray[np.bool_]:
        """Which objects it names, bool[objects + 1] by id."""
        chosen = scene.classes == ALL_CLASSES.index(self.cls)
        if self.colour:
            chosen &= scene.colours == COLOUR_NAMES.index(self.colour)
        if self.size:
            chosen &= scene.large == (self.size == "large")
        return chosen


@lru_cache(maxsize=65536)
def nouns_in(text: str) -> tuple[Noun, ...]:
    """The classes that a phrase names, in order, with their attributes."""
    return tuple(Noun(_CLASS_OF[m[3]], m[2] or "", m[1] or "") for m in _NOUN.finditer(text))


def subject_of(question: Question, scene: PooledScene) -> NDArray[np.bool_] | None:
    """The objects that PSC should look at for a question, bool[objects + 1] by id.

    All that carry the name in the question: which of them is leftmost is for the language model
    to find out. None where a question is about the scene as a whole.
    """
    if question.kind == "scene_class":
        return None
    if question.kind == "describe_box":
        rows = np.zeros(len(scene.classes), bool)
        rows[list(question.targets)] = True
        return rows
    if question.kind == "compare":
        named = nouns_in(question.prompt)
    elif question.level == "image" or question.kind == "absent":
        named = nouns_in(question.prompt)[:1]
    else:
        named = nouns_in(question.answer)[:1]
    rows = np.zeros(len(scene.classes), bool)
    for noun in named:
        rows |= noun.rows(scene)
    return rows


def prompt_text(question: Question, height: int, width: int) -> str:
    """What the model reads: a question about a box carries the box as markup."""
    if question.kind == "describe_box":
        return prompt_with_box(question.prompt, question.boxes[0], height, width)
    return question.prompt


JITTER = 0.06
"""How far training moves the sides of an answer's box, as a share of its size: one number is then
as right as its neighbour, which digits alone do not say."""


def answer_text(question: Question, view_boxes: F32, rng: np.random.Generator | None = None) -> str:
    """What the model should answer, markup included.

    One [SEG] stands for the union of the targets; an absent target has none. A box follows its
    object's [SEG], in the finest view that shows it wholly. With `rng` its sides are moved a
    little.
    """
    if question.kind == "find_box":
        box = question.boxes[0]
        view = finest_view(box, view_boxes)
        local = np.array(image_to_view(view_boxes[view], box))
        if rng is not None:
            size = np.tile(local[2:] - local[:2], 2)
            local += rng.uniform(-JITTER, JITTER, 4) * size
        return f"{question.answer} {SEG_TOKEN}{box_markup(view, local.tolist())}"
    if question.level == "pixel" and question.targets:
        return f"{question.answer} {SEG_TOKEN}"
    return question.answer


def finest_view(box: tuple[float, ...], view_boxes: F32) -> int:
    """Index of the smallest view that holds the box wholly; view 0 holds everything."""
    x0, y0, x1, y1 = box
    best = 0
    for i, (a0, b0, a1, b1) in enumerate(view_boxes.tolist()):
        holds = a0 <= x0 and b0 <= y0 and a1 >= x1 and b1 >= y1
        if holds and a1 - a0 < view_boxes[best][2] - view_boxes[best][0]:
            best = i
    return best


def sample_ids(ids: NDArray[np.uint16], box: F32, samples: int) -> NDArray[np.int32]:
    """Object ids at samples x samples points of a box (px); `OUTSIDE` outside the image."""
    height, width = ids.shape
    at = (np.arange(samples) + 0.5) / samples
    x = np.floor(box[0] + at * (box[2] - box[0])).astype(np.int64)
    y = np.floor(box[1] + at * (box[3] - box[1])).astype(np.int64)
    found = ids[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)].astype(np.int32)
    found[(y < 0) | (y >= height)] = OUTSIDE
    found[:, (x < 0) | (x >= width)] = OUTSIDE
    return found


def shown_objects(samples: NDArray[np.int32], rows: int, grid: int) -> NDArray[np.bool_]:
    """Which objects each patch of a view shows: bool[grid * grid, rows] from its samples [N,N]."""
    side = samples.shape[0]
    at = np.arange(side) * grid // side
    patch = at[:, None] * grid + at[None]
    seen = samples != OUTSIDE
    code = patch[seen] * rows + samples[seen]
    counts = np.bincount(code, minlength=grid * grid * rows).reshape(grid * grid, rows)
    shown = (counts >= SHARE * (side / grid) ** 2) | (counts >= OWN_SHARE * counts.sum(0))
    shown &= counts > 0
    shown[:, 0] = False
    return shown


def patch_labels(shown: NDArray[np.bool_], scene: PooledScene) -> F32:
    """Multi-hot f32[P, classes + colours] of what each patch shows."""
    hot = np.zeros((len(scene.classes), len(ALL_CLASSES) + len(COLOUR_NAMES)), np.float32)
    known = np.flatnonzero(scene.classes >= 0)
    hot[known, scene.classes[known]] = 1
    coloured = known[_COLOURED[scene.classes[known]]]
    hot[coloured, len(ALL_CLASSES) + scene.colours[coloured]] = 1
    used = np.flatnonzero(shown.any(0))
    return np.minimum(shown[:, used].astype(np.float32) @ hot[used], 1)


def centre_labels(scene: PooledScene, box: F32, grid: int) -> tuple[F32, F32, NDArray[np.int64]]:
    """Objects whose centre lies in a view.

    Returns:
        counts f32[P, classes], boxes f32[n,4] in 0..1 of the view, their patches i64[n].
    """
    known = np.flatnonzero(scene.classes >= 0)
    side = box[2] - box[0]
    local = (scene.boxes[known] - np.tile(box[:2], 2)) / side
    centre = (local[:, :2] + local[:, 2:]) / 2
    inside = ((centre >= 0) & (centre < 1)).all(1)
    known, local, centre = known[inside], local[inside], centre[inside]
    patch = (centre[:, 1] * grid).astype(np.int64) * grid + (centre[:, 0] * grid).astype(np.int64)
    counts = np.zeros((grid * grid, len(ALL_CLASSES)), np.float32)
    np.add.at(counts, (patch, scene.classes[known]), 1)
    return counts, local.astype(np.float32), patch


def pixel_labels(samples: NDArray[np.int32], scene: PooledScene) -> NDArray[np.int64]:
    """Dense labels i64[3,N,N] from a view's samples: class (0 = ground), colour, size.

    `OUTSIDE` where there is nothing to learn.
    """
    rows = np.maximum(samples, 0)
    cls = scene.classes[rows].astype(np.int64)
    named = np.maximum(cls, 0)
    colour = np.where((cls >= 0) & _COLOURED[named], scene.colours[rows], OUTSIDE)
    size = np.where((cls >= 0) & _SIZED[named], scene.large[rows], OUTSIDE)
    cls = np.where(samples == OUTSIDE, OUTSIDE, cls + 1)
    return np.stack([cls, colour, size]).astype(np.int64)


def mask_targets(
    ids: NDArray[np.uint16], targets: list[NDArray[np.bool_]], boxes: F32, side: int
) -> F32:
    """Coverage f32[m,n,side,side] in 0..1 of each target (bool by id) in each view.

    Resampled by PscCrop itself, so a mask lies on the pixels that the encoder saw.
    """
    unit = np.array([[0, 0, 0], [1, 1, 1]], np.float32)
    out = np.empty((len(targets), len(boxes), side, side), np.float32)
    for first in range(0, len(targets), 3):
        group = targets[first : first + 3]
        table = np.zeros((len(group[0]), 3), np.uint8)
        table[:, : len(group)] = np.stack(group, 1) * np.uint8(255)
        cover = psc_crop(table[ids], boxes, unit, side)  # [n,3,side,side]
        out[first : first + 3] = cover.transpose(1, 0, 2, 3)[: len(group)]
    return out


_COLOURED = np.array([name in COLOURED for name in ALL_CLASSES])
_SIZED = np.array([name in SIZED for name in ALL_CLASSES])
