"""Rendered scenes of any size on disk, with questions whose answers can be weighed again later.

A folder holds `scene.tif` (tiled, with overviews) and `questions.json`. What the pixels of a target
are is drawn again from the scene's seed where it is asked for, so a scene of 20,000 px needs no
label file and takes the time of one rendering, once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.calibration.sets.items import Item, Picture, Rect
from geomag_edge.calibration.sets.rendered import items_of, scene_name, scene_seed
from geomag_edge.disk.staging import staged_folder
from geomag_edge.scenes import RenderedScene, render_scene, write_scene

SCENE, QUESTIONS = "scene.tif", "questions.json"
BLOCK_PX = 2048
"""Side of what is drawn at once of a scene's labels."""


@dataclass(frozen=True)
class DrawnObjects:
    """The objects of a scene that is not rendered again as a whole.

    Attributes:
        scene: laid out, not rendered.
        known: object id -> its visible pixels and its box's longer side.
    """

    scene: RenderedScene
    known: dict[int, tuple[int, float]]

    def area_px(self, ids: Sequence[int]) -> int:
        """Visible pixels of all these objects."""
        return sum(self.known[i][0] for i in ids)

    def sides_px(self, ids: Sequence[int]) -> list[float]:
        """The longer side of each object's tight box."""
        return [self.known[i][1] for i in ids]

    def window(self, ids: Sequence[int], rect: Rect) -> NDArray[np.bool_]:
        """The union of these objects in a window, bool[h,w]."""
        row0, col0, row1, col1 = rect
        return np.asarray(self.scene.mask(list(ids), (col0, row0, col1, row1)))


def make_scene(folder: Path, set_seed: int, size_px: int, per_level: int) -> Path:
    """Renders the first scene of a set into a new folder; one that is there already is kept.

    Args:
        folder: of this scene.
        set_seed: as in `scenes:SEED:COUNT`.
        size_px: side of the scene.
        per_level: questions of each level; only those of the pixel level are kept.
    """
    if (folder / QUESTIONS).exists():
        return folder
    scene = render_scene(scene_seed(set_seed, 0), size_px)
    with staged_folder(folder, False, QUESTIONS) as stage:
        write_scene(scene, stage / SCENE)
        items = [item for item in items_of(scene, per_level) if item.level == "pixel"]
        record = {
            "seed": scene.seed,
            "size_px": size_px,
            "questions": [_line(item) for item in items],
        }
        (stage / QUESTIONS).write_text(json.dumps(record) + "\n")
    return folder


def open_scene(folder: Path, keep_labels: bool = False) -> Picture:
    """The scene of a folder, as a picture of a set.

    With `keep_labels` what each pixel is of is drawn once and kept, 4 bytes a pixel: for scores
    that look at all of a scene, where drawing it window by window takes far longer.
    """
    record = json.loads((folder / QUESTIONS).read_text())
    scene = render_scene(record["seed"], record["size_px"])
    if keep_labels:
        scene.labels.whole = _all_labels(scene)
    items = []
    for line in record["questions"]:
        known = {int(k): (int(area), float(side)) for k, (area, side) in line["targets"].items()}
        items.append(
            Item(
                id=line["id"],
                level="pixel",
                kind=line["kind"],
                prompt=line["prompt"],
                target_ids=tuple(known),
                objects=DrawnObjects(scene, known),
            )
        )
    return Picture(scene_name(scene), folder / SCENE, items)


def _all_labels(scene: RenderedScene) -> NDArray[np.int32]:
    side = scene.size_px
    labels = np.empty((side, side), np.int32)
    for y0 in range(0, side, BLOCK_PX):
        for x0 in range(0, side, BLOCK_PX):
            x1, y1 = min(x0 + BLOCK_PX, side), min(y0 + BLOCK_PX, side)
            labels[y0:y1, x0:x1] = scene.labels.window((x0, y0, x1, y1))
    return labels


def _line(item: Item) -> dict[str, Any]:
    objects, targets = item.objects, {}
    if objects is not None:
        targets = {i: (objects.area_px([i]), objects.sides_px([i])[0]) for i in item.target_ids}
    return {"id": item.id, "kind": item.kind, "prompt": item.prompt, "targets": targets}
