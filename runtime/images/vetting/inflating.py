"""Files of which a decoder makes much more than they are while it opens them, before anything that
it says of them can be looked at: so their own bytes are."""

from __future__ import annotations

import json
import mmap
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

from geomag_edge.errors import ImageError

from .jp2 import check_jp2

SQLITE = b"SQLite format 3\0"
MOST_FRAMES_PX = 500_000_000
"""Of all pictures of a GIF, which are decoded together."""
MOST_CHECKED_BYTES = 100_000_000
"""A larger database is not looked through page by page."""
MOST_STEPS = 5_000
"""Thousands of steps of SQLite's machine: a few seconds."""
MOST_ZARR_BYTES = 64_000_000

_PLAIN_SQL = re.compile(r"CREATE\s+(UNIQUE\s+INDEX|INDEX|TRIGGER|(TEMP\s+)?TABLE)\b", re.I)
_MADE_SQL = re.compile(r"\bGENERATED\b|\bAS\s*\(", re.I)


def check_declared(path: str) -> None:
    """A file here.

    Raises:
        ImageError: opening it would take more than a machine should be asked for.
    """
    with open(path, "rb") as file:
        head = file.read(16)
        if head.startswith(b"GIF8"):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                px = sum(_frames(data))
            if px > MOST_FRAMES_PX:
                raise ImageError(
                    f"{path} is a GIF of pictures of {px:,} pixels together; the most is "
                    f"{MOST_FRAMES_PX:,}: give one of its pictures"
                )
    check_jp2(path)
    if head == SQLITE:
        _check_database(path)


def _frames(data: mmap.mmap) -> Iterator[int]:
    """Pixels of each picture of a GIF."""

    def colours(flags: int) -> int:
        return 3 << (flags % 8 + 1) if flags & 128 else 0

    at = 13 + colours(data[10]) if len(data) > 13 else len(data)
    while at + 10 < len(data) and data[at] in b"!,":
        if data[at] == ord(","):
            width, height = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (5, 7))
            yield width * height
            at += 11 + colours(data[at + 9])
        else:
            at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1


def _check_database(path: str) -> None:
    """A GeoPackage holds tables alone: whatever SQLite would work out is a program, without end if
    its writer likes."""
    for more in ("-wal", "-journal"):
        if os.path.exists(path + more) and os.path.getsize(path + more):
            raise ImageError(
                f"{path} is being written ({os.path.basename(path)[:80]}{more} lies beside it): "
                "close it in the other program"
            )
    steps = 0

    def too_long() -> bool:
        nonlocal steps
        steps += 1
        return steps > MOST_STEPS

    address = "file:" + quote(os.fsencode(path)) + "?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as base:
            base.set_progress_handler(too_long, 1000)
            for setting in ("trusted_schema = OFF", "ignore_check_constraints = ON"):
                base.execute(f"PRAGMA {setting}")
            for (sql,) in base.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"):
                is_rtree = re.match(
                    r"CREATE\s+VIRTUAL\s+TABLE\b.*\bUSING\s+rtree\b", sql, re.I | re.S
                )
                is_table = _PLAIN_SQL.match(sql)
                made = is_table and "TABLE" in is_table[1].upper() and _MADE_SQL.search(sql)
                if not (is_table or is_rtree) or made:
                    raise ImageError(
                        f"{path} holds views or values that are worked out, which are not "
                        "followed: copy it (gdal_translate IN.gpkg OUT.tif)"
                    )
            small = os.path.getsize(path) <= MOST_CHECKED_BYTES
            said = base.execute("PRAGMA quick_check(1)").fetchone()[0] if small else "ok"
    except sqlite3.Error as e:
        said = str(e)
    if said != "ok":
        cause = " ".join(str(said).split())[:120]
        raise ImageError(f"cannot read {path}: its database is broken ({cause}): copy it again")


def check_folder(path: str) -> None:
    """A folder that is an image: all of it lies inside.

    Raises:
        ImageError: it holds pipes, devices, links to elsewhere, or names of other folders.
    """
    real = os.path.realpath(path)
    for at, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = os.path.join(at, name)
            mode = os.lstat(entry).st_mode
            if stat.S_ISLNK(mode):
                target = os.path.realpath(entry)
                if os.path.commonpath([real, target]) != real:
                    raise ImageError(f"{entry} leads out of its image, so it is not opened")
                if not os.path.exists(target):
                    continue
                mode = os.stat(entry).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ImageError(f"{entry} lies in an image and is a pipe or a device: remove it")
    for name in (".zmetadata", "zarr.json"):
        index = os.path.join(path, name)
        if os.path.isfile(index):
            _check_index(index)


def _check_index(path: str) -> None:
    """All metadata of a Zarr in one file, by the names of its parts."""
    if os.path.getsize(path) > MOST_ZARR_BYTES:
        raise ImageError(f"{path} is larger than {MOST_ZARR_BYTES // 1_000_000} MB")
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            found: Any = json.load(file)
    except (ValueError, RecursionError) as e:
        raise ImageError(f"cannot read {path}: it is no JSON: copy or write it again") from e
    if not isinstance(found, dict):
        return
    apart = found.get("consolidated_metadata")
    for part in (found, apart if isinstance(apart, dict) else {}):
        names = part.get("metadata")
        for name in names if isinstance(names, dict) else {}:
            if name.startswith("/") or ".." in re.split(r"[/\\]", name):
                raise ImageError(f"{path} names parts that lie outside it, so it is not opened")
