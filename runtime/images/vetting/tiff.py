"""Directories of a TIFF, counted before GDAL does: it walks them all for each overview."""

from __future__ import annotations

import os

from geomag_edge.errors import ImageError

MOST_DIRECTORIES = 2_000
CLASSIC, BIG = 42, 43


def check_tiff(path: str) -> None:
    """A file that may be a TIFF; others pass. A chain that leads out of the file or back to itself
    is left to the library, which ends it there.

    Raises:
        ImageError: too many directories.
    """
    with open(path, "rb") as file:
        head = file.read(16)
        if head[:2] not in (b"II", b"MM") or len(head) < 8:
            return

        def number(data: bytes) -> int:
            return int.from_bytes(data, "little" if head[:2] == b"II" else "big")

        kind = number(head[2:4])
        if kind not in (CLASSIC, BIG):
            return
        count_bytes, entry_bytes, offset_bytes = (2, 12, 4) if kind == CLASSIC else (8, 20, 8)
        at = number(head[4:8] if kind == CLASSIC else head[8:16])
        size, seen = os.fstat(file.fileno()).st_size, set[int]()
        while 0 < at < size and at not in seen:
            seen.add(at)
            if len(seen) > MOST_DIRECTORIES:
                raise ImageError(
                    f"{path} has more than {MOST_DIRECTORIES:,} directories (pages, overviews): "
                    "write the picture to a file of its own (gdal_translate IN OUT.tif)"
                )
            file.seek(at)
            entries = number(file.read(count_bytes))
            if entries > size // entry_bytes:
                return
            file.seek(at + count_bytes + entries * entry_bytes)
            at = number(file.read(offset_bytes))
