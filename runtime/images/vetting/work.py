"""How much one look at an image may decode: a few bytes may declare pixels for days of work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from geomag_edge.errors import ImageError

from .formats import bytes_per_pixel

MOST_LOOK_PX = 40_000_000_000
"""200,000 px squared."""
MOST_LOOK_BYTES = 200_000_000_000
FREE_BYTES = 500_000_000
"""So much is decoded of any file."""
MOST_PACKED = 500
"""How many bytes may come of each byte of a file: photographs are packed to a tenth, a page of one
colour to a thousandth."""


class Work:
    """What one look decodes; to be told of each part before it is read.

    Args:
        name: of the image.
        dataset: it.
        bands: that are read.
    """

    def __init__(self, name: str, dataset: Any, bands: Sequence[int]) -> None:
        self._name, self._dataset = name, dataset
        self._each = bytes_per_pixel(dataset, bands)
        self._bytes = 0
        self._most = float(FREE_BYTES)

    def expect(self, px: int, holes: bool) -> None:
        """All pixels of the look, before it begins; with `holes` many of them may be left out, and
        `add` is told of those that are not.

        Raises:
            ImageError: the look takes more than any look may.
        """
        if px > MOST_LOOK_PX:
            raise self._refused(f"{px:,} pixels (the most is {MOST_LOOK_PX:,})")
        if not holes:
            self.add(px)

    def add(self, px: int) -> None:
        """Pixels that are read next.

        Raises:
            ImageError: as above.
        """
        self._bytes += px * self._each
        if self._bytes > self._most:
            self._most = min(MOST_LOOK_BYTES, max(FREE_BYTES, MOST_PACKED * self._stored()))
            if self._bytes > self._most:
                raise self._refused(
                    f"{self._bytes:,} bytes, decoded (the most is {int(self._most):,}, or "
                    f"{MOST_PACKED} for each byte of its files)"
                )

    def _stored(self) -> float:
        """Bytes of all the files of an image; infinite for what is not here."""
        files = self._dataset.files
        if not files or not all(map(os.path.exists, files)):
            return float("inf")
        return float(sum(map(_size, files)))

    def _refused(self, what: str) -> ImageError:
        return ImageError(
            f"one look at {self._name} takes {what}: give it overviews (`rio overview --build auto "
            "FILE`), or a part of it (gdal_translate -srcwin X Y W H IN OUT.tif)"
        )


def _size(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(at, f)) for at, _, fs in os.walk(path) for f in fs)
