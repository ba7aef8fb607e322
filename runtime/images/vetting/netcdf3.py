"""Headers of classic netCDF files (CDF-1, 2 and 5), walked before the library does.

The library makes room for as many dimensions, variables and attributes as a file says it has, and
frees what it never filled where the file then ends: a damaged count ends the process. So each
count, name and type is held against the bytes that are there.

Source: the file format specification of netCDF, "classic" formats.
"""

from __future__ import annotations

import mmap

from geomag_edge.errors import ImageError

DIMENSION, VARIABLE, ATTRIBUTE = 10, 11, 12
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
LAST_CLASSIC_TYPE = 6
MOST_NAME_BYTES = 256
MOST_SIDES = 1024
"""Both are netCDF's own, and sizes of arrays in programs that read it."""
MOST_MEMBERS = 10_000
"""Dimensions, variables and attributes together: some of them are looked for one by one."""
LISTS, MOST_LIST_BYTES = (b"coordinates", b"ancillary_variables", b"grid_mapping"), 10_000
"""Attributes that GDAL takes apart word by word, each time from the beginning."""


class _BrokenError(Exception):
    """What is wrong with a header."""


def check_netcdf3(path: str) -> None:
    """A file that may be classic netCDF; others pass.

    Raises:
        ImageError: its header is broken.
    """
    with open(path, "rb") as file:
        if file.read(4) not in (b"CDF\x01", b"CDF\x02", b"CDF\x05"):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _Header(data).walk()
            except _BrokenError as e:
                raise ImageError(
                    f"cannot read {path}: its netCDF header is broken ({e}): copy or download it "
                    "again"
                ) from None


class _Header:
    """A place in a header that moves on with what is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._members = data, 4, 0
        self._count_bytes = 8 if data[3] == 5 else 4
        self._offset_bytes = 4 if data[3] == 1 else 8
        self._last_type = max(TYPE_BYTES) if data[3] == 5 else LAST_CLASSIC_TYPE

    def walk(self) -> None:
        """All of it.

        Raises:
            _BrokenError: at the first thing that cannot be.
        """
        self._number(self._count_bytes)  # records, of which there may be any number, or -1
        dimensions = self._list(DIMENSION, "dimensions")
        for _ in range(dimensions):
            self._name()
            self._number(self._count_bytes)
        self._attributes()
        for _ in range(self._list(VARIABLE, "variables")):
            self._name()
            sides = self._count("sides")
            if sides > MOST_SIDES:
                raise _BrokenError(f"a variable of {sides:,} sides")
            for _ in range(sides):
                if (side := self._number(self._count_bytes)) >= dimensions:
                    raise _BrokenError(f"dimension {side:,} of {dimensions:,}")
            self._attributes()
            self._type_bytes()
            self._number(self._count_bytes)
            if (begin := self._number(self._offset_bytes)) > len(self._data):
                raise _BrokenError(f"values at byte {begin:,} of {len(self._data):,}")

    def _attributes(self) -> None:
        for _ in range(self._list(ATTRIBUTE, "attributes")):
            name = self._name()
            size = self._type_bytes() * self._count("values")
            if name in LISTS and size > MOST_LIST_BYTES:
                raise _BrokenError(f"a list of {size:,} bytes")
            self._skip(size)

    def _list(self, kind: int, what: str) -> int:
        """How many members the list has that begins here."""
        tag, count = self._number(4), self._count(what)
        if tag != kind and (tag or count):
            raise _BrokenError(f"no list of {what} where one must stand")
        self._members += count
        if self._members > MOST_MEMBERS:
            raise _BrokenError(f"more than {MOST_MEMBERS:,} dimensions, variables and attributes")
        return count

    def _count(self, what: str) -> int:
        """Of things of a byte or more each, all of which the file must hold."""
        count = self._number(self._count_bytes)
        if count > len(self._data) - self._at:
            raise _BrokenError(f"{count:,} {what} in {len(self._data) - self._at:,} bytes")
        return count

    def _name(self) -> bytes:
        length = self._number(self._count_bytes)
        if not 0 < length <= MOST_NAME_BYTES:
            raise _BrokenError(f"a name of {length:,} bytes")
        name = self._data[self._at : self._at + length]
        self._skip(length)
        return name

    def _type_bytes(self) -> int:
        kind = self._number(4)
        if not 0 < kind <= self._last_type:
            raise _BrokenError(f"type {kind:,}")
        return TYPE_BYTES[kind]

    def _number(self, size: int) -> int:
        self._skip(size)
        return int.from_bytes(self._data[self._at - size : self._at], "big")

    def _skip(self, size: int) -> None:
        """Values are padded to 4 bytes."""
        self._at += -(-size // 4) * 4
        if self._at > len(self._data):
            raise _BrokenError(f"it ends at byte {len(self._data):,}")
