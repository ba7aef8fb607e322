"""What a set is made of: pictures with questions whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
Rect = tuple[int, int, int, int]
"""row0, col0, row1, col1 in pixels, half open."""


class Objects(Protocol):
    """The labelled objects of one image, by id."""

    def area_px(self, ids: Sequence[int]) -> int:
        """Pixels of all these objects."""
        ...

    def sides_px(self, ids: Sequence[int]) -> list[float]:
        """The longer side of each object's tight box."""
        ...

    def window(self, ids: Sequence[int], rect: Rect) -> NDArray[np.bool_]:
        """The union of these objects in a window, bool[h,w]."""
        ...


@dataclass(frozen=True)
class Item:
    """One question and what is true of it.

    Attributes:
        id: unique in its set.
        level: image, region or pixel.
        kind: a name to split results by; `describe_box` also means that the prompt is about
            `boxes[0]`, all other kinds of the region level ask for `boxes`.
        prompt: plain text, without box markup.
        answer: the expected words; read at the image level and for `describe_box`.
        boxes: x0, y0, x1, y1 in px of the image; none for an absent target.
        target_ids: the objects to segment; none for an absent target.
        objects: where the targets lie, at the pixel level.
    """

    id: str
    level: str
    kind: str
    prompt: str
    answer: str = ""
    boxes: tuple[Box, ...] = ()
    target_ids: tuple[int, ...] = ()
    objects: Objects | None = None

    @property
    def describes_box(self) -> bool:
        """Whether the prompt is about a box instead of asking for one."""
        return self.level == "region" and self.kind == "describe_box"

    @property
    def absent(self) -> bool:
        """Whether the prompt asks for what the image does not show."""
        if self.level == "pixel":
            return not self.target_ids
        return self.level == "region" and not self.boxes

    def longer_side_px(self) -> float | None:
        """Mean over the targets of the longer side of their boxes, px of the image."""
        if self.target_ids and self.objects is not None:
            return float(np.mean(self.objects.sides_px(self.target_ids)))
        if self.boxes:
            return float(np.mean([max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in self.boxes]))
        return None


@dataclass
class Picture:
    """One image and the questions about it; `image` is a path or u8[H,W,3]."""

    name: str
    image: Path | NDArray[np.uint8]
    items: list[Item]


class Dataset(Protocol):
    """A set that can be asked: `len` pictures, made or opened one at a time."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def __len__(self) -> int: ...

    def pictures(self) -> Iterator[Picture]:
        """The pictures in a fixed order; each is valid until the next is asked for."""
        ...
