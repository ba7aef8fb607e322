"""Calibration sets: which images and prompts a bundle is calibrated on.

Which scenes: scene i of set SEED has the generator seed

    20_000_000_000 + SEED * 100_000 + i

Training stays below 10_000_000, its own measurements are at 50_000_000, and evaluation sets
(`rendered.FIRST_SEED`) end at 11_000_000_000, so that no gate ever measures on a scene that a
bundle was calibrated on.

Answers are not needed: scales come from what the model itself does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geomag_edge.budgets import LEVELS
from geomag_edge.disk.stored import json_lines
from geomag_edge.errors import DatasetError
from geomag_edge.manifest import sha256_of
from geomag_edge.prompts import MAX_PROMPT_CHARS, prompt_with_box
from geomag_edge.runtime.images.files import open_raster
from geomag_edge.scenes import RenderedScene, render_scene

from .folder import QUESTIONS, boxes_of, path_inside
from .rendered import IN_MEMORY_PX, PREFIX, QUESTIONS_PER_LEVEL, SEEDS_PER_SET, SIZES_PX, items_of

FIRST_SEED = 20_000_000_000
MIN_QUESTIONS = 8
"""Fewer say too little of what the graphs see: less is refused."""
USUAL_QUESTIONS = 128

_SCENES = re.compile(r"scenes:(\d{1,5}):(\d{1,5})(?::(\d{1,5}))?")

Image: TypeAlias = Path | NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """One prompt about one image.

    Attributes:
        image: the image's name in its set.
        prompt: plain text.
        level: the task level, or None where the set does not say.
    """

    image: str
    prompt: str
    level: str | None = None


class Source(Protocol):
    """Where questions and images come from."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def questions(self, progress: Callable[[str], None]) -> list[Question]:
        """All questions, in a fixed order, every image looked at."""
        ...

    def images(self, names: Iterable[str]) -> Iterator[tuple[str, Image]]:
        """These images, one at a time; each is valid until the next is asked for."""
        ...

    def digest(self, name: str) -> str:
        """sha256 of an image's content."""
        ...


@dataclass(frozen=True)
class CalibrationSet:
    """The questions that were chosen, in the order of their images.

    Attributes:
        source: gives the images.
        questions: grouped by image.
        digest: sha256 over the chosen prompts, levels and the content of their images.
        notes: warnings in plain words.
    """

    source: Source
    questions: tuple[Question, ...]
    digest: str
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.source.name

    def pictures(self) -> Iterator[tuple[Image, list[Question]]]:
        """Each image with its questions."""
        grouped: dict[str, list[Question]] = defaultdict(list)
        for question in self.questions:
            grouped[question.image].append(question)
        for name, image in self.source.images(list(grouped)):
            yield image, grouped[name]


def open_calibration_set(
    source: str | Path,
    count: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> CalibrationSet:
    """Opens a set and chooses questions, the same for the same set, count and seed.

    The levels get equal shares as far as they have questions.

    Args:
        source: `scenes:SEED:COUNT[:SIZE]`; a folder with `questions.jsonl`, or such a file: one
            JSON object a line with `image` (relative to the file), `prompt` and maybe `level`.
        count: questions to choose; all, but at most `USUAL_QUESTIONS`, without.
        seed: of the choice.
        progress: called with each image's name while images are checked.

    Raises:
        DatasetError: nothing there, malformed, or fewer than `MIN_QUESTIONS` questions.
        ImageError: an image cannot be read.
    """
    text = str(source)
    if not text.strip():
        raise DatasetError(
            "no calibration set was given: scales are never made from random numbers; give a "
            "folder, a .jsonl file or scenes:SEED:COUNT"
        )
    if count is not None and count < MIN_QUESTIONS:
        raise DatasetError(
            f"{count} questions are too few to calibrate on: give a count of {MIN_QUESTIONS} or "
            f"more ({USUAL_QUESTIONS} is usual)"
        )
    opened: Source = Scenes.parse(text) if text.startswith(PREFIX) else Lines.open(Path(source))
    every = opened.questions(progress)
    if len(every) < MIN_QUESTIONS:
        raise DatasetError(
            f"{opened.name} has {len(every)} questions, too few to calibrate on: give "
            f"{MIN_QUESTIONS} or more ({USUAL_QUESTIONS} is usual)"
        )
    chosen = choose(every, count or USUAL_QUESTIONS, seed)
    notes = []
    if count is not None and len(chosen) < count:
        notes.append(f"{count} questions were asked for, {opened.name} has {len(chosen)}")
    have = {question.level for question in chosen}
    missing = [level for level in LEVELS if level not in have]
    if None not in have and missing:
        notes.append(
            f"{opened.name} has no question of the {' and '.join(missing)} level: scales may not "
            "hold for such prompts"
        )
    digest = hashlib.sha256()
    contents: dict[str, str] = {}
    for question in chosen:
        if question.image not in contents:
            contents[question.image] = opened.digest(question.image)
        parts = [contents[question.image], question.prompt, question.level]
        digest.update(json.dumps(parts).encode() + b"\n")
    return CalibrationSet(opened, tuple(chosen), digest.hexdigest(), tuple(notes))


def choose(questions: list[Question], count: int, seed: int) -> list[Question]:
    """`count` questions, the levels as equal as they can be, in the set's order.

    Args:
        questions: to choose from.
        count: at most so many.
        seed: of the choice within a level.
    """
    strata: dict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        strata[question.level or ""].append(i)
    rng = np.random.default_rng(seed)
    queues = [rng.permutation(strata[level]).tolist() for level in sorted(strata)]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return [questions[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes."""

    seed: int
    count: int
    size_px: int | None = None
    _digests: dict[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, text: str) -> Scenes:
        """Reads `scenes:SEED:COUNT[:SIZE]`."""
        match = _SCENES.fullmatch(text)
        if not match:
            raise DatasetError(
                f"{text[:60]!r} is not a set of scenes: write scenes:SEED:COUNT or "
                "scenes:SEED:COUNT:SIZE, such as scenes:1:24"
            )
        made = cls(int(match[1]), int(match[2]), int(match[3]) if match[3] else None)
        if made.count < 1:
            raise DatasetError(f"{text} has no scenes: give a count of 1 or more")
        if made.size_px is not None and not 64 <= made.size_px <= IN_MEMORY_PX:
            raise DatasetError(f"{text}: give a size of 64 to {IN_MEMORY_PX} px")
        return made

    @property
    def name(self) -> str:
        """The form that `parse` reads."""
        size = "" if self.size_px is None else f":{self.size_px}"
        return f"{PREFIX}{self.seed}:{self.count}{size}"

    def _scene(self, name: str) -> RenderedScene:
        seed = FIRST_SEED + self.seed * SEEDS_PER_SET + int(name)
        return render_scene(seed, self.size_px or SIZES_PX[int(name) % len(SIZES_PX)])

    def questions(self, progress: Callable[[str], None]) -> list[Question]:
        """Every scene's questions; each scene is painted once to be hashed."""
        made = []
        for name in map(str, range(self.count)):
            progress(f"scene {name}")
            scene = self._scene(name)
            for item in items_of(scene, QUESTIONS_PER_LEVEL):
                prompt = item.prompt
                if item.describes_box:
                    prompt = prompt_with_box(prompt, item.boxes[0], scene.size_px, scene.size_px)
                made.append(Question(name, prompt, item.level))
            self._digests[name] = hashlib.sha256(scene.image.tobytes()).hexdigest()
        return made

    def images(self, names: Iterable[str]) -> Iterator[tuple[str, Image]]:
        """Paints these scenes one at a time."""
        for name in names:
            yield name, self._scene(name).image

    def digest(self, name: str) -> str:
        """sha256 of a scene's pixels, u8[H,W,3]."""
        return self._digests[name]


class Lines:
    """Images and prompts of a file with one JSON object a line."""

    def __init__(self, name: str, root: Path, questions: list[Question]):
        self.name, self._questions = name, questions
        self._root = root.absolute()  # `netcdf:a.nc` in it must be a file's name, not GDAL's

    @classmethod
    def open(cls, path: Path) -> Lines:
        """Reads the questions of a folder's `questions.jsonl`, or of a file."""
        name = str(path)
        if path.is_dir():
            path = path / QUESTIONS
            if not path.is_file():
                raise DatasetError(
                    f"{name} has no {QUESTIONS}: write one JSON object a line with image and prompt"
                )
        if not path.is_file():
            raise DatasetError(
                f"no calibration set at {name}: give a folder with {QUESTIONS}, a .jsonl file, or "
                "scenes:SEED:COUNT"
            )
        made = cls(name, path.parent, [])
        for number, data in json_lines(path, DatasetError):
            try:
                made._questions.append(made._question(data))
            except DatasetError as e:
                raise DatasetError(f"{path} line {number}: {e}") from e
        return made

    def _question(self, data: Any) -> Question:
        if not isinstance(data, dict):
            raise DatasetError(f"a question is a JSON object, got {type(data).__name__}")
        for key in ("image", "prompt"):
            value = data.get(key)
            if not isinstance(value, str) or not value.strip():
                raise DatasetError(f"{key} is {repr(value)[:80]}: give text")
        path_inside(data["image"], "image")
        level = data.get("level")
        if level not in (None, *LEVELS):
            raise DatasetError(f"level is {repr(level)[:80]}: give {', '.join(LEVELS)} or none")
        prompt = data["prompt"].strip()
        if len(prompt) > MAX_PROMPT_CHARS:
            raise DatasetError(
                f"prompt has {len(prompt)} characters, the limit is {MAX_PROMPT_CHARS}"
            )
        if data.get("kind") == "describe_box":
            prompt = self._with_box(data["image"], prompt, data.get("boxes"))
        return Question(data["image"], prompt, level)

    def _with_box(self, image: str, prompt: str, boxes: Any) -> str:
        """A prompt about a box, as an evaluation asks it."""
        found = boxes_of(boxes)
        if len(found) != 1:
            raise DatasetError(f"describe_box is about one box, got {repr(boxes)[:80]}")
        return prompt_with_box(prompt, found[0], *self._size(image))

    def _size(self, name: str) -> tuple[int, int]:
        """Height and width of an image, which is opened to see that it can be."""
        with open_raster(str((self._root / name).absolute())) as image:
            return image.height, image.width

    def questions(self, progress: Callable[[str], None]) -> list[Question]:
        """Every question; the header of every image has been read."""
        for name in dict.fromkeys(question.image for question in self._questions):
            progress(name)
            self._size(name)
        return self._questions

    def images(self, names: Iterable[str]) -> Iterator[tuple[str, Image]]:
        """The paths of these images."""
        for name in names:
            yield name, self._root / name

    def digest(self, name: str) -> str:
        """sha256 of an image file."""
        try:
            return sha256_of(self._root / name)
        except OSError as e:
            raise DatasetError(
                f"cannot read {self._root / name}: {e.strerror or e}; images of a calibration set "
                "are files"
            ) from e
