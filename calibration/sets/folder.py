"""Sets in a folder: `images/`, `masks/` and `questions.jsonl`, as docs/DATA.md describes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from geomag_edge.budgets import LEVELS
from geomag_edge.disk.staging import found_again
from geomag_edge.disk.stored import json_lines
from geomag_edge.errors import DatasetError
from geomag_edge.prompts import MAX_PROMPT_CHARS
from geomag_edge.runtime.images.files import open_raster

from .items import Box, Item, Picture
from .labels import LabelImage

QUESTIONS = "questions.jsonl"
FIELDS = (
    "id", "image", "level", "kind", "prompt", "answer", "boxes", "mask", "mask_ids"
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of questions.jsonl, its paths still relative; `mask_ids` None means all ids."""

    number: int
    id: str
    image: str
    level: str
    kind: str
    prompt: str
    answer: str
    boxes: tuple[Box, ...]
    mask: str | None
    mask_ids: tuple[int, ...] | None

    @property
    def has_target(self) -> bool:
        """Whether there is something to segment."""
        return self.level == "pixel" and self.mask is not None and self.mask_ids != ()


class FolderSet:
    """A set in a folder; `open` has checked all of it."""

    def __init__(self, root: Path, lines: list[Line]) -> None:
        self.name = str(root)
        self.root = root.absolute()  # `netcdf:a.nc` in it must be a file's name, not GDAL's
        self._by_image: dict[str, list[Line]] = {}
        for line in lines:
            self._by_image.setdefault(line.image, []).append(line)

    @classmethod
    def open(
        cls,
        root: Path,
        limit: int | None = None,
        progress: Callable[[str], None] = lambda name: None,
    ) -> FolderSet:
        """Reads the questions and checks every file that they name.

        Raises:
            DatasetError: see `open_dataset`.
        """
        found_again(root)
        if not root.is_dir():
            raise DatasetError(
                f"no set at {root}: give a folder with {QUESTIONS}, or scenes:SEED:COUNT"
            )
        path = root / QUESTIONS
        if not path.is_file():
            raise DatasetError(f"{root} has no {QUESTIONS}: docs/DATA.md shows what a set holds")
        lines = read_lines(path)[:limit]
        if not lines:
            raise DatasetError(f"{path} is empty: write one JSON object a line for each question")
        made = cls(root, lines)
        for image, of_image in made._by_image.items():
            progress(image)
            made._check(of_image)
        return made

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._by_image)

    def pictures(self) -> Iterator[Picture]:
        """The images in the order in which questions first name them."""
        for image, lines in self._by_image.items():
            labels: dict[str, LabelImage] = {}
            yield Picture(image, self.root / image, [self._item(line, labels) for line in lines])

    def _item(self, line: Line, labels: dict[str, LabelImage]) -> Item:
        objects: LabelImage | None = None
        ids: tuple[int, ...] = ()
        if line.has_target:
            assert line.mask is not None
            objects = labels.setdefault(line.mask, LabelImage(self.root / line.mask))
            ids = objects.ids if line.mask_ids is None else line.mask_ids
        return Item(
            line.id, line.level, line.kind, line.prompt, line.answer, line.boxes, ids, objects
        )

    def _check(self, lines: list[Line]) -> None:
        """Looks into an image's header and its masks."""
        first = lines[0]
        height, width = self._size(first.image, first)
        known: dict[str, tuple[int, ...]] = {}
        for line in lines:
            where = f"{self.root / QUESTIONS} line {line.number}"
            for x0, y0, x1, y1 in line.boxes:
                if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                    raise DatasetError(
                        f"{where}: box {x0:g},{y0:g},{x1:g},{y1:g} lies outside {line.image} "
                        f"({width} x {height} px)"
                    )
            if not line.has_target:
                continue
            assert line.mask is not None
            if line.mask not in known:
                got = self._size(line.mask, line)
                if got != (height, width):
                    raise DatasetError(
                        f"{where}: {line.mask} has {got[1]} x {got[0]} px, its image {line.image} "
                        f"has {width} x {height}: a mask must have its image's size"
                    )
                known[line.mask] = LabelImage(self.root / line.mask).ids
            if not known[line.mask]:
                raise DatasetError(
                    f"{where}: {line.mask} is all background: give mask_ids [] (or no mask) for "
                    "an absent target"
                )
            unknown = sorted(set(line.mask_ids or ()) - set(known[line.mask]))
            if unknown:
                raise DatasetError(f"{where}: {line.mask} has no object {unknown[0]}")

    def _size(self, name: str, line: Line) -> tuple[int, int]:
        """Height and width of a file of the set."""
        path = self.root / name
        if not path.is_file():
            raise DatasetError(
                f"{self.root / QUESTIONS} line {line.number}: there is no {name[:80]}"
            )
        with open_raster(str(path.absolute())) as image:
            return image.height, image.width


def read_lines(path: Path) -> list[Line]:
    """Reads questions.jsonl; empty lines are skipped.

    Raises:
        DatasetError: names the line that is wrong.
    """
    lines: list[Line] = []
    seen: dict[str, int] = {}
    for number, data in json_lines(path, DatasetError):
        try:
            line = _parse(number, data)
        except DatasetError as e:
            raise DatasetError(f"{path} line {number}: {e}") from e
        if line.id in seen:
            raise DatasetError(
                f"{path} line {number}: id {line.id[:40]!r} is that of line {seen[line.id]} too"
            )
        seen[line.id] = number
        lines.append(line)
    return lines


def _parse(number: int, data: Any) -> Line:
    if not isinstance(data, dict):
        raise DatasetError(f"a question is a JSON object, got {type(data).__name__}")
    unknown = [key for key in data if key not in FIELDS]
    if unknown:
        raise DatasetError(f"unknown field {unknown[0][:40]!r}: a question has {', '.join(FIELDS)}")
    level = _text(data, "level")
    if level not in LEVELS:
        raise DatasetError(
            f"level is {level[:40]!r}: give {', '.join(LEVELS[:-1])} or {LEVELS[-1]}"
        )
    boxes = boxes_of(data.get("boxes"))
    mask = data.get("mask")
    mask_ids = _ids(data.get("mask_ids"))
    if mask is None and mask_ids:
        raise DatasetError("mask_ids without a mask: name the mask's file")
    has_target = bool(boxes) if level == "region" else mask is not None and mask_ids != ()
    kind = _text(data, "kind", _usual_kind(level, has_target))
    describes = level == "region" and kind == "describe_box"
    if describes and len(boxes) != 1:
        raise DatasetError(f"describe_box is about one box, got {len(boxes)}")
    answer = _text(data, "answer", "")
    if not answer and (level == "image" or describes):
        raise DatasetError("the answer is missing, and nothing else could be measured")
    return Line(
        number=number,
        id=_text(data, "id", f"line-{number}"),
        image=path_inside(_text(data, "image"), "image"),
        level=level,
        kind=kind,
        prompt=_text(data, "prompt"),
        answer=answer,
        boxes=boxes,
        mask=None if mask is None else path_inside(_text(data, "mask"), "mask"),
        mask_ids=mask_ids,
    )


def _usual_kind(level: str, has_target: bool) -> str:
    if level == "image":
        return "question"
    if not has_target:
        return "absent"
    return "find_box" if level == "region" else "refer"


def _text(data: dict[str, Any], key: str, default: str | None = None) -> str:
    """A field that must be text with something in it; without a default it must be there."""
    value = data.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise DatasetError(f"{key} is missing")
    if key in ("answer", "id") and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not (value.strip() or key == "answer"):
        raise DatasetError(f"{key} is {_shown(value)}: give text")
    if len(value) > MAX_PROMPT_CHARS:
        raise DatasetError(f"{key} has {len(value)} characters, the limit is {MAX_PROMPT_CHARS}")
    return value.strip()


def _shown(value: Any) -> str:
    """A wrong value, as much of it as an error may show."""
    return repr(value)[:80]


def path_inside(name: str, key: str) -> str:
    """A file of a set: relative to it, and inside it.

    Raises:
        DatasetError: absolute, leaving the set, or no name that a file can have.
    """
    parts = PurePosixPath(name)
    too_long = len(name) > 1000 or any(len(part.encode()) > 255 for part in parts.parts)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name or too_long:
        raise DatasetError(
            f"{key} is {name[:80]!r}: give a path inside the set, such as {key}s/1.png"
        )
    return name


def boxes_of(value: Any) -> tuple[Box, ...]:
    """A question's boxes.

    Raises:
        DatasetError: not a list of [x0, y0, x1, y1], finite and not empty.
    """
    made: list[Box] = []
    if not isinstance(value, list | None):
        raise DatasetError(f"boxes is {_shown(value)}: give a list of [x0, y0, x1, y1]")
    for box in value or ():
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise DatasetError(f"box {_shown(box)} is not [x0, y0, x1, y1] in pixels")
        x0, y0, x1, y1 = (float(v) for v in box)
        if x0 >= x1 or y0 >= y1:
            raise DatasetError(
                f"box {_shown(box)} is empty: x0 < x1 and y0 < y1 in [x0, y0, x1, y1]"
            )
        made.append((x0, y0, x1, y1))
    return tuple(made)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) < 1e9
    )


def _ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or any(
        not isinstance(i, int) or isinstance(i, bool) or i < 1 for i in value
    ):
        raise DatasetError(f"mask_ids is {_shown(value)}: give a list of ids of 1 or more")
    return tuple(dict.fromkeys(value))
