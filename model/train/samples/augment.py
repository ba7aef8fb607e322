"""The eight symmetries of the square, on scenes and on the words of their questions.

A mirrored scene is as good as a new one once "left" means right. Transposition would need whole
phrases rewritten ("furthest to the left"), so questions with a direction are left out there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from geomag_edge.model.train.samples.pool import PooledScene

_ACROSS = {"left": "right", "leftmost": "rightmost"}
_DOWN = {"top": "bottom", "topmost": "lowest", "above": "below"}
ACROSS = _ACROSS | {b: a for a, b in _ACROSS.items()}
DOWN = _DOWN | {b: a for a, b in _DOWN.items()}
DIRECTIONS = ACROSS.keys() | DOWN.keys()


def transform(scene: PooledScene, mirror: bool, flip: bool, transpose: bool) -> PooledScene:
    """The scene mirrored left-right, flipped top-bottom, then transposed (rows for columns)."""
    if not (mirror or flip or transpose):
        return scene
    image, ids, boxes = scene.image, scene.ids, scene.boxes
    height, width = ids.shape
    words: dict[str, str] = {}
    if mirror:
        image, ids, words = image[:, ::-1], ids[:, ::-1], words | ACROSS
    if flip:
        image, ids, words = image[::-1], ids[::-1], words | DOWN
    if transpose:
        image, ids = image.transpose(1, 0, 2), ids.T
    questions = []
    for question in scene.questions:
        tokens = question.prompt.split()
        if transpose and DIRECTIONS & set(tokens):
            continue
        moved = _boxes(
            np.array(question.boxes, np.float64).reshape(-1, 4),
            mirror,
            flip,
            transpose,
            height,
            width,
        )
        prompt = " ".join(words.get(token, token) for token in tokens)
        as_tuples = tuple((b[0], b[1], b[2], b[3]) for b in moved.tolist())
        questions.append(replace(question, prompt=prompt, boxes=as_tuples))
    return replace(
        scene,
        image=np.ascontiguousarray(image),
        ids=np.ascontiguousarray(ids),
        boxes=_boxes(boxes, mirror, flip, transpose, height, width).astype(np.float32),
        questions=tuple(questions),
    )


def _boxes(
    boxes: NDArray, mirror: bool, flip: bool, transpose: bool, height: int, width: int
) -> NDArray:
    """x0, y0, x1, y1 px after the same moves."""
    x0, y0, x1, y1 = boxes.T
    if mirror:
        x0, x1 = width - x1, width - x0
    if flip:
        y0, y1 = height - y1, height - y0
    if transpose:
        x0, y0, x1, y1 = y0, x0, y1, x1
    return np.stack([x0, y0, x1, y1], axis=-1)
