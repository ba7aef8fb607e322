"""JPEG 2000 files, looked at before GDAL does: it makes a kilobyte of each tile that they declare,
and walks their boxes for ever where one leads to itself.

Source: ISO/IEC 15444-1, annexes A (codestream) and I (boxes).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

from geomag_edge.errors import ImageError

CODESTREAM = b"\xff\x4f\xff\x51"
BOXES = b"\0\0\0\x0cjP  "
STARTS = (BOXES, CODESTREAM, b"NITF", b"NSIF")
"""What files begin with that may hold JPEG 2000."""
MOST_TILES = 200_000
"""Tiles times components, and some."""
LEAST_TILE_BYTES = 14
"""Of the markers that begin each."""
MOST_BOXES = 10_000
MOST_DEEP = 8
PARENTS = (b"jp2h", b"res ", b"asoc", b"uinf")
"""Boxes of boxes."""


def check_jp2(path: str) -> None:
    """A file that may hold JPEG 2000; others pass.

    Raises:
        ImageError: too many tiles, or its boxes have no end.
    """
    with open(path, "rb") as file:
        if not file.read(16).startswith(STARTS):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for tiles, components in _declared(data):
                if tiles * (components + 5) > MOST_TILES:
                    raise ImageError(
                        f"{path} is a JPEG 2000 of too many tiles and components: rewrite it "
                        "(gdal_translate -co TILED=YES IN OUT.tif)"
                    )
                if tiles * LEAST_TILE_BYTES > len(data):
                    raise ImageError(
                        f"{path} is a JPEG 2000 of {tiles:,} tiles in {len(data):,} bytes, which "
                        "do not hold them: copy or download it again"
                    )
            count, at = 0, data.find(BOXES)
            while at >= 0 and count <= MOST_BOXES:
                for whole in _boxes(data, at, len(data)):
                    count += 1
                    if not whole or count > MOST_BOXES:
                        raise ImageError(
                            f"cannot read {path}: the boxes of its JPEG 2000 are broken: copy or "
                            "download it again"
                        )
                at = data.find(BOXES, at + len(BOXES))


def _declared(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """(tiles, components) of each place where a codestream may begin."""
    at = data.find(CODESTREAM)
    while at >= 0:
        size = data[at + 8 : at + 42]  # behind the marker, its length and capabilities
        if len(size) == 34:
            numbers = [int.from_bytes(size[i : i + 4], "big") for i in range(0, 32, 4)]
            width, height, _, _, across, down, left, top = numbers
            counts = [
                math.ceil(max(side - first, 0) / max(tile, 1))
                for side, first, tile in ((width, left, across), (height, top, down))
            ]
            yield math.prod(counts), int.from_bytes(size[32:], "big")
        at = data.find(CODESTREAM, at + 1)


def _boxes(data: mmap.mmap, at: int, end: int, depth: int = 0) -> Iterator[bool]:
    """Whether each box from `at` on ends behind its head and within its parent; the last one of a
    file may go on to its end, or past it where the file was cut short."""
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        kind = data[at + 4 : at + 8]
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size == 0 and depth == 0:
            size = end - at
        whole = head <= size < 2**62 and (depth == 0 or at + size <= end) and depth < MOST_DEEP
        yield whole
        if not whole:
            return
        if kind in PARENTS:
            yield from _boxes(data, at + head, min(at + size, end), depth + 1)
        at += size
    if depth and at != end:  # GDAL would take what is left, and what follows the parent, for a head
        yield False
