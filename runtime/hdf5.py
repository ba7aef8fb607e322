"""HDF5 files, netCDF-4 among them, that hold all of their pixels.

A data set of HDF5 may lie in other files as raw bytes (external storage), or be put together from
other HDF5 files (virtual), whatever these are and wherever. The library follows both without a
word, so the messages that say so are looked for in the headers of all objects.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from geomag_edge.errors import ImageError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NAMED = re.compile(r'(?:netcdf|hdf5|bag):"?([^"]+?)"?(?::.*)?', re.I | re.S)
"""The name of a part of such a file."""

_HEADER = re.compile(rb"OHDR|OCHK")
_HEADER_BYTES = 65_536
# A message of version 1: type, size, flags, three zeros. One of version 2: type, size, flags and
# perhaps a number. Then a list of files: version 1, three zeros, slots there are, slots in use;
# or a layout: version 4 or 5, class 3.
_FILES_1 = re.compile(rb"\x07\x00(..)[\x00-\x7f]\x00\x00\x00\x01\x00\x00\x00(..)(..)", re.S)
_FILES_2 = re.compile(rb"\x07(..)[\x00-\x7f](?:..)?\x01\x00\x00\x00(..)(..)", re.S)
_VIRTUAL_1 = re.compile(rb"\x08\x00(..)[\x00-\x7f]\x00\x00\x00[\x04\x05]\x03", re.S)
_VIRTUAL_2 = re.compile(rb"\x08(..)[\x00-\x7f](?:..)?[\x04\x05]\x03", re.S)


def check_hdf5(path: str) -> None:
    """A file that may be HDF5; others pass.

    Raises:
        ImageError: it says that pixels lie in other files.
    """
    with open(path, "rb") as file:
        if not _is_hdf5(file):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if any(_outside(data)):
                raise ImageError(
                    f"{path} says that its pixels lie in other files, which are not followed: "
                    "write them into one file (h5repack, or nccopy)"
                )


def _is_hdf5(file: BinaryIO) -> bool:
    """Whether the signature stands at the start, or at 512 bytes times a power of two."""
    size, at = os.fstat(file.fileno()).st_size, 0
    while at < size:
        file.seek(at)
        if file.read(len(SIGNATURE)) == SIGNATURE:
            return True
        at = at * 2 or 512
    return False


def _outside(data: mmap.mmap) -> Iterator[bool]:
    """Whether places that look like such messages are."""
    yield from map(_lists_files, _all(_FILES_1, data, 0, len(data)))
    yield from map(_is_short, _all(_VIRTUAL_1, data, 0, len(data)))
    done = 0
    for header in _HEADER.finditer(data):
        start, end = max(done, header.start()), header.start() + _HEADER_BYTES
        yield from map(_lists_files, _all(_FILES_2, data, start, end))
        yield from map(_is_short, _all(_VIRTUAL_2, data, start, end))
        done = end


def _all(
    pattern: re.Pattern[bytes], data: mmap.mmap, start: int, end: int
) -> Iterator[re.Match[bytes]]:
    """All places, those that overlap others as well."""
    while found := pattern.search(data, start, end):
        yield found
        start = found.start() + 1


def _lists_files(found: re.Match[bytes]) -> bool:
    size, there, used = (int.from_bytes(part, "little") for part in found.groups())
    return 0 < used <= there and size >= 8 + 6 * there


def _is_short(found: re.Match[bytes]) -> bool:
    return 6 <= int.from_bytes(found[1], "little") <= 64
