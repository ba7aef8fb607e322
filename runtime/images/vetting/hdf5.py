"""HDF5 files, netCDF-4 among them, that hold all of their pixels.

A data set of HDF5 may lie in other files as raw bytes (external storage), or be put together from
other HDF5 files (virtual), whatever these are and wherever. The library follows both without a
word, so the messages that say so are looked for, by the address of the heap that they must lead to:
all else in them is ignored by the library, and so by nobody who looks for a way round us.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from geomag_edge.errors import ImageError

from .formats import MOST_BLOCK_BYTES

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NAMED = re.compile(r'(?:netcdf|hdf5|bag|zarr|gpkg):"?([^"]+?)"?(?::.*)?', re.I | re.S)
"""The name of a part of such a file."""

_ADDRESS_BYTES = 8
_PART = 16_000_000
"""Bytes that are searched at a time."""
# What messages begin with: at which byte, and its lowest and highest value. Addresses, of 8 bytes,
# are those of a file of less than a terabyte.
_Marks = tuple[tuple[int, int, int], ...]
# Version 1, 3 bytes, slots there are, slots in use, heap.
_FILES: _Marks = ((0, 1, 1), (13, 0, 0), (14, 0, 0), (15, 0, 0))
# Version, class 3, heap.
_VIRTUAL: _Marks = ((1, 3, 3), (0, 4, 5), (7, 0, 0), (8, 0, 0), (9, 0, 0))
# Chunks of old: version, number of sides, class 2, 5 bytes, tree, sides.
_CHUNKS_1: _Marks = ((2, 2, 2), (0, 1, 2), (1, 2, 33), (13, 0, 0), (14, 0, 0), (15, 0, 0))
# Version 3, class 2, number of sides, tree, sides.
_CHUNKS_3: _Marks = ((0, 3, 3), (1, 2, 2), (2, 2, 33), (8, 0, 0), (9, 0, 0), (10, 0, 0))
# Version, class 2, flags, number of sides, bytes of each, sides, one of five kinds of index.
_CHUNKS_4: _Marks = ((1, 2, 2), (0, 4, 5), (2, 0, 3), (3, 2, 33), (4, 1, 8))


def check_hdf5(path: str) -> None:
    """A file that may be HDF5; others pass.

    Raises:
        ImageError: it says that pixels lie in other files, or its chunks are too large.
    """
    with open(path, "rb") as file:
        base = _start(file)
        if base is None:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if _address_bytes(data, base) != _ADDRESS_BYTES:
                raise ImageError(
                    f"{path} is an HDF5 file of short addresses: write it anew (h5repack, nccopy)"
                )
            if any(_outside(data, base)):
                raise ImageError(
                    f"{path} says that its pixels lie in other files, which are not followed: "
                    "write them into one file (h5repack, or nccopy)"
                )
            # A chunk is decoded whole, with all the bands that it holds.
            if (size := max(_chunk_bytes(data, base), default=0)) > MOST_BLOCK_BYTES:
                raise ImageError(
                    f"{path} holds its pixels in chunks of {size:,} bytes; the most is "
                    f"{MOST_BLOCK_BYTES:,}: write it with smaller ones (h5repack -l CHUNK=...)"
                )


def _address_bytes(data: mmap.mmap, base: int) -> int:
    version, *rest = data[base + len(SIGNATURE) : base + len(SIGNATURE) + 6].ljust(6, b"\0")
    return rest[0] if version >= 2 else rest[4]


def _outside(data: mmap.mmap, base: int) -> Iterator[bool]:
    """Whether places that look like such messages are."""
    for at in _places(data, _FILES):
        yield data[at + 6 : at + 8] != b"\0\0" and _leads_to(data, base, at + 8, b"HEAP")
    for at in _places(data, _VIRTUAL):
        yield _leads_to(data, base, at + 2, b"GCOL")


def _chunk_bytes(data: mmap.mmap, base: int) -> Iterator[int]:
    """Bytes of a chunk, decoded, at all places that look like the layout of a data set."""
    for at in _places(data, _CHUNKS_1):
        if _leads_to(data, base, at + 8, b"TREE"):
            yield _product(data, at + 16, data[at + 1], 4)
    for at in _places(data, _CHUNKS_3):
        if _leads_to(data, base, at + 3, b"TREE"):
            yield _product(data, at + 11, data[at + 2], 4)
    for at in _places(data, _CHUNKS_4):
        count, each = data[at + 3], data[at + 4]
        if 1 <= int.from_bytes(data[(end := at + 5 + count * each) : end + 1], "little") <= 5:
            yield _product(data, at + 5, count, each)


def _places(data: mmap.mmap, marks: _Marks) -> Iterator[int]:
    """Where bytes are as the marks say."""
    last = max(offset for offset, _, _ in marks)
    for part in range(0, len(data) - last, _PART):
        window = np.frombuffer(data[part : part + _PART + last], np.uint8)
        found = np.arange(0)
        for n, (offset, low, high) in enumerate(marks):
            some = (
                window[offset : len(window) - last + offset] if n == 0 else window[found + offset]
            )
            hit = (some >= low) & (some <= high) if low < high else some == low
            found = np.flatnonzero(hit) if n == 0 else found[hit]
        yield from (found + part).tolist()


def _leads_to(data: mmap.mmap, base: int, at: int, mark: bytes) -> bool:
    """Whether there is such a mark at the address that stands at a place."""
    there = base + int.from_bytes(data[at : at + _ADDRESS_BYTES], "little")
    return data[there : there + len(mark)] == mark


def _product(data: mmap.mmap, at: int, count: int, each: int) -> int:
    """Of the sides of a chunk and the size of an element."""
    sides = (data[i : i + each] for i in range(at, at + count * each, each))
    return math.prod(int.from_bytes(side, "little") for side in sides)


def _start(file: BinaryIO) -> int | None:
    """Where the signature stands: at the start, or at 512 bytes times a power of two."""
    size, at = os.fstat(file.fileno()).st_size, 0
    while at < size:
        file.seek(at)
        if file.read(len(SIGNATURE)) == SIGNATURE:
            return at
        at = at * 2 or 512
    return None
