"""Sets of rendered scenes, `scenes:SEED:COUNT[:SIZE]`, and the same sets written as a folder.

Which scenes: scene i (0, 1, ...) of set SEED has the generator seed

    1_000_000_000 + SEED * 100_000 + i

Training uses seeds below 10_000_000 and its own measurements seeds around 50_000_000, so no set
shares a scene with them, nor with another set. Without SIZE the scenes' sides take turns through
`SIZES_PX`: what is 40 px long fills 10 px of a 128 px view of 512 px, and 2.5 px at 2048.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.windows import Window

from geomag_edge.disk.staging import staged_folder
from geomag_edge.errors import DatasetError
from geomag_edge.runtime.images.unwarned import unwarned
from geomag_edge.scenes import RenderedScene, SceneObject, make_questions, render_scene, write_scene

from .items import Item, Picture, Rect

PREFIX = "scenes:"
SIZES_PX = (512, 1024, 2048)
QUESTIONS_PER_LEVEL = 4
FIRST_SEED, SEEDS_PER_SET = 1_000_000_000, 100_000

IN_MEMORY_PX = 4096
"""Larger scenes are asked from a temporary GeoTIFF, so that memory stays bounded."""

_FORM = re.compile(r"scenes:(\d{1,9}):(\d{1,9})(?::(\d{1,9}))?")


def scene_seed(set_seed: int, index: int) -> int:
    """The generator seed of a set's scene."""
    return FIRST_SEED + set_seed * SEEDS_PER_SET + index


class RenderedObjects:
    """The objects of a rendered scene."""

    def __init__(self, scene: RenderedScene) -> None:
        self.scene = scene
        self._by_id: dict[int, SceneObject] = {o.id: o for o in scene.objects}

    def area_px(self, ids: Sequence[int]) -> int:
        """Visible pixels of all these objects."""
        return sum(self._by_id[i].area_px for i in ids)

    def sides_px(self, ids: Sequence[int]) -> list[float]:
        """The longer side of each object's tight box."""
        boxes = [self._by_id[i].box for i in ids]
        return [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]

    def window(self, ids: Sequence[int], rect: Rect) -> NDArray[np.bool_]:
        """The union of these objects in a window, bool[h,w]."""
        row0, col0, row1, col1 = rect
        return self.scene.mask(list(ids), (col0, row0, col1, row1))


@dataclass(frozen=True)
class RenderedSet:
    """A set of rendered scenes.

    Attributes:
        seed: of the set; see the module's docstring for the scenes' own seeds.
        count: number of scenes.
        size_px: side of every scene, or None to take turns through `SIZES_PX`.
        per_level: questions of each level and scene.
        limit: only the first so many questions, or None.
    """

    seed: int
    count: int
    size_px: int | None = None
    per_level: int = QUESTIONS_PER_LEVEL
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS_PER_SET:
            raise DatasetError(f"a set's seed is {self.seed}: give 0 to {SEEDS_PER_SET - 1}")
        if not 1 <= self.count <= SEEDS_PER_SET:
            raise DatasetError(f"{self.count} scenes were asked for: give 1 to {SEEDS_PER_SET}")
        if self.per_level < 1:
            raise DatasetError(f"{self.per_level} questions a level were asked for: give 1 or more")
        if self.size_px is not None and not 64 <= self.size_px <= 32768:
            raise DatasetError(f"scenes of {self.size_px} px were asked for: give 64 to 32768")

    @classmethod
    def parse(cls, text: str, limit: int | None = None) -> RenderedSet:
        """Reads `scenes:SEED:COUNT[:SIZE]`."""
        match = _FORM.fullmatch(text)
        if not match:
            raise DatasetError(
                f"{text[:60]!r} is not a set of scenes: write scenes:SEED:COUNT or "
                "scenes:SEED:COUNT:SIZE, such as scenes:1:60 or scenes:1:20:1024"
            )
        size_px = int(match[3]) if match[3] else None
        return cls(int(match[1]), int(match[2]), size_px, limit=limit)

    @property
    def name(self) -> str:
        """The form that `parse` reads."""
        size = "" if self.size_px is None else f":{self.size_px}"
        return f"{PREFIX}{self.seed}:{self.count}{size}"

    def __len__(self) -> int:
        """Number of pictures."""
        asked = self.count if self.limit is None else -(-self.limit // (3 * self.per_level))
        return min(self.count, asked)

    def scenes(self) -> Iterator[RenderedScene]:
        """The scenes, not yet rendered."""
        for i in range(len(self)):
            yield render_scene(
                scene_seed(self.seed, i), self.size_px or SIZES_PX[i % len(SIZES_PX)]
            )

    def pictures(self) -> Iterator[Picture]:
        """Renders the scenes one at a time."""
        left = self.limit
        for scene in self.scenes():
            if scene.size_px <= IN_MEMORY_PX:
                items = items_of(scene, self.per_level)[:left]
                yield Picture(scene_name(scene), scene.image, items)
            else:
                with tempfile.TemporaryDirectory(prefix="geomag-scene-") as folder:
                    path = write_scene(scene, Path(folder) / "scene.tif")
                    items = items_of(scene, self.per_level)[:left]
                    yield Picture(scene_name(scene), path, items)
            left = None if left is None else left - len(items)


def scene_name(scene: RenderedScene) -> str:
    """The name of a scene in reports and files."""
    return f"scene-{scene.seed}-{scene.size_px}"


def items_of(scene: RenderedScene, per_level: int) -> list[Item]:
    """The scene's questions, the same on every run."""
    objects = RenderedObjects(scene)
    return [
        Item(
            id=f"{scene_name(scene)}-{i}",
            level=q.level,
            kind=q.kind,
            prompt=q.prompt,
            answer=q.answer,
            boxes=q.boxes,
            target_ids=q.targets if q.level == "pixel" else (),
            objects=objects if q.level == "pixel" else None,
        )
        for i, q in enumerate(make_questions(scene, 0, per_level))
    ]


def write_folder(
    dataset: RenderedSet,
    out: Path,
    force: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> int:
    """Writes a rendered set as the folder that docs/DATA.md describes, whole or not at all.

    Args:
        dataset: the set; its limit is kept.
        out: the folder.
        force: replace an existing folder.
        progress: called with each scene's name as its work starts.

    Returns:
        The number of questions.
    """
    asked = 0
    with staged_folder(out, force, "questions.jsonl") as stage:
        (stage / "images").mkdir()
        (stage / "masks").mkdir()
        with (stage / "questions.jsonl").open("w", encoding="utf-8") as lines:
            for scene in dataset.scenes():
                name = scene_name(scene)
                progress(name)
                write_scene(scene, stage / "images" / f"{name}.tif")
                write_labels(scene, stage / "masks" / f"{name}.png")
                left = None if dataset.limit is None else dataset.limit - asked
                items = items_of(scene, dataset.per_level)[:left]
                asked += len(items)
                lines.writelines(json.dumps(_line(item, name)) + "\n" for item in items)
    return asked


def _line(item: Item, name: str) -> dict[str, object]:
    line: dict[str, object] = {
        "id": item.id,
        "image": f"images/{name}.tif",
        "level": item.level,
        "kind": item.kind,
        "prompt": item.prompt,
        "answer": item.answer,
        "boxes": [list(box) for box in item.boxes],
    }
    if item.level == "pixel":
        line |= {"mask": f"masks/{name}.png", "mask_ids": list(item.target_ids)}
    return line


def write_labels(scene: RenderedScene, path: Path) -> None:
    """Writes a scene's object ids as a 16-bit grey PNG; memory stays at a few blocks."""
    size = scene.size_px
    top = max((thing.id for thing in scene.spec.things), default=0)
    if top > np.iinfo(np.uint16).max:
        raise DatasetError(f"a scene of {size} px has {top} objects: more than a mask file holds")
    block = 512 if size >= 512 else 16
    tiled = path.with_suffix(".partial.tif")
    with unwarned(), rasterio.Env(GDAL_CACHEMAX=128):
        with rasterio.open(
            tiled, "w", driver="GTiff", width=size, height=size, count=1, dtype="uint16",
            tiled=True, blockxsize=block, blockysize=block, compress="deflate", zlevel=1,
        ) as out:  # fmt: skip
            for y0 in range(0, size, 512):
                for x0 in range(0, size, 512):
                    x1, y1 = min(x0 + 512, size), min(y0 + 512, size)
                    ids = scene.labels.window((x0, y0, x1, y1)).astype(np.uint16)
                    out.write(ids, 1, window=Window(x0, y0, x1 - x0, y1 - y0))
        rasterio.shutil.copy(tiled, path, driver="PNG", ZLEVEL=6)
    tiled.unlink()
    path.with_suffix(".png.aux.xml").unlink(missing_ok=True)
