"""Opening what a user calls an image, and saying in one line why it cannot be read.

A name is no path: it may be a URL, a `/vsi` path, a part of a file (`netcdf:a.nc:blue`) or a folder
(Zarr). GDAL decides what it is; the file system only explains a failure after GDAL's.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import (
    CRSError,
    NodataShadowWarning,
    NotGeoreferencedWarning,
    RasterioError,
    RPCError,
)

from geomag_edge.errors import ImageError

T = TypeVar("T")

CACHE_BYTES = 64_000_000
"""GDAL's block cache while we read; its default of 5 % of the machine's memory is too much."""
MOST_WARNINGS = 3
"""Decoder warnings that become notes of one image; a broken file can give thousands."""

LINKED = "geomag-edge-name-"
"""Begins the name of a folder of links to an image whose own name rasterio cannot take."""

GDAL_ERRORS = (RasterioError, CPLE_BaseError, CRSError, RPCError, UnicodeError, OSError)
"""What rasterio raises for what a file holds. GDAL's own errors come through bare in places, and
have no public name."""

_REMOTE = re.compile(
    r"\b(https?|ftp|s3|gs|az|oss)://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)", re.I
)
_ADVICE = re.compile(r" *\(this (error|warning) can be turned .*?\)", re.I)
_LINKED = re.compile(rf"[^\s'\"]*/{LINKED}[^/]*/")
_WARNING = "read, though GDAL warns: "


@contextmanager
def reading(name: str, notes: list[str] | None = None) -> Iterator[None]:
    """Bounds GDAL's cache, turns what rasterio raises into an `ImageError` of one line, and what a
    decoder merely warns of into `notes`."""
    options: dict[str, Any] = {"GDAL_CACHEMAX": CACHE_BYTES}
    if not _REMOTE.search(name):
        # EMPTY_DIR, a usual setting for remote files, would hide the .msk and .ovr of local ones.
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = "FALSE"
    heard = _Warnings(name, notes)
    log = logging.getLogger("rasterio")
    log.addHandler(heard)
    try:
        with warnings.catch_warnings():
            for kind in (NotGeoreferencedWarning, NodataShadowWarning):
                warnings.simplefilter("ignore", kind)
            with rasterio.Env(**options):
                yield
    except GDAL_ERRORS as e:
        raise ImageError(_explained(name, cause_of(e, name))) from e
    finally:
        log.removeHandler(heard)


def open_raster(name: str, notes: list[str] | None = None, **options: Any) -> Any:
    """Opens what GDAL knows by this name as a `rasterio.DatasetReader`.

    Args:
        name: path, URL, `/vsi` path, part of a file, or a folder that is an image.
        notes: where the decoder's warnings go.
        options: of `rasterio.open`.

    Raises:
        ImageError: there is none, or it is cut short.
    """
    if not name or "\0" in name:  # GDAL would open what stands before the null byte
        raise ImageError(f"no image at {name!r}: check the path")
    with reading(name, notes):
        dataset = _open(name, options)
        if "overview_level" not in options and (cut := _truncated_png(dataset)):
            dataset.close()
            held = "is" if dataset.driver == "PNG" else f"shows {cut}, which is"
            raise ImageError(f"{name} {held} a truncated PNG: copy or download it again")
    return dataset


def told(read: Callable[[], T], default: T, what: str, notes: list[str]) -> T:
    """Something that a file says about itself, or the default and a note where it is garbled.

    rasterio may raise a fault of one field when the next one is read, hence the second try.
    """
    for _ in range(2):
        try:
            return read()
        except (*GDAL_ERRORS, ValueError) as e:
            note = f"{what} cannot be read and is left out: {cause_of(e)}"
            if note not in notes:
                notes.append(note)
    return default


def printable(name: str) -> str:
    """A file's name as text that any encoding can write."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def cause_of(e: BaseException, name: str = "") -> str:
    """What went wrong, in one line, without the file's name and GDAL's advice on its settings."""
    text = _LINKED.sub("", _ADVICE.sub("", str(e.__cause__ or e)))
    cause = (text.strip().splitlines() or [type(e).__name__])[0].rstrip(".")
    for prefix in (f"{name}: ", f"{name}, ", f"'{name}' "):
        cause = cause.removeprefix(prefix)
    return cause


def _explained(name: str, cause: str) -> str:
    """The message for a failure of GDAL's, which says little where there is no file at all."""
    if os.path.isdir(name) and "not recognized" in cause:
        return f"{name} is a directory: give an image file, or a folder that is one, such as a Zarr"
    if os.path.isfile(name) and os.path.getsize(name) == 0:
        return f"{name} is empty (0 bytes): copy or download it again"
    missing = ("No such file", "does not exist in the file system")
    if any(m in cause for m in missing) and not os.path.exists(name):
        return f"no image at {name}: check the path"
    if _REMOTE.search(name):
        return f"cannot read {name}: {cause}; check the address, the network and your credentials"
    return (
        f"cannot read {name}: {cause}; check that the file is complete and is a PNG, JPEG, "
        "GeoTIFF or another raster that GDAL reads"
    )


def _open(name: str, options: dict[str, Any]) -> Any:
    path = os.fsdecode(unquote_to_bytes(os.fsencode(name.removeprefix("file://"))))
    if name.startswith("file://") and os.path.exists(path):
        name = path
    try:
        name.encode()
    except UnicodeEncodeError:  # rasterio speaks UTF-8 alone, a file system any bytes
        return _open_linked(name, options)
    # rasterio takes the first part of a relative path for a host.
    archive = re.match(r"((?:zip|tar|gzip)(?:\+file)?://)([^/].*)", name)
    if archive:
        name = archive[1] + os.path.abspath(archive[2])
    return rasterio.open(name, **options)


def _open_linked(name: str, options: dict[str, Any]) -> Any:
    """A file or folder whose name is not UTF-8, through a link of another name; the files that
    belong to it by their names (masks, overviews, world files) are linked beside it."""
    if not os.path.exists(name):
        raise ImageError(
            f"no image at {name}: check the path (a name that is not UTF-8 must be a file's or a "
            "folder's own)"
        )
    folder, base = os.path.split(os.path.abspath(name))
    links = tempfile.mkdtemp(prefix=LINKED)
    try:
        if base == printable(base):  # only a folder on the way to it has such a name
            os.symlink(folder, os.path.join(links, "in"))
            link = os.path.join("in", base)
        else:
            stem = os.path.splitext(base)[0]
            for entry in (e for e in os.listdir(folder) if e.startswith(stem)):
                link = printable("image" + entry.removeprefix(stem))
                os.symlink(os.path.join(folder, entry), os.path.join(links, link))
            link = printable("image" + base.removeprefix(stem))
        dataset = rasterio.open(os.path.join(links, link), **options)
    except BaseException:
        shutil.rmtree(links, ignore_errors=True)
        raise
    weakref.finalize(dataset, shutil.rmtree, links, ignore_errors=True)
    return dataset


class _Warnings(logging.Handler):
    """Gathers as notes what GDAL warns of in this thread; rasterio logs it."""

    def __init__(self, name: str, notes: list[str] | None) -> None:
        super().__init__(logging.WARNING)
        self._name, self._notes, self._thread = name, notes, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if self._notes is None or record.thread != self._thread:
            return
        text = re.sub(r"^CPLE_\w+( in |:)", "", _ADVICE.sub("", record.getMessage()))
        text = _LINKED.sub("", text)
        for name in (self._name, os.path.basename(self._name)):
            text = text.removeprefix(f"{name}: ")
        note = _WARNING + " ".join(text.split())
        if note not in self._notes and sum(_WARNING in n for n in self._notes) < MOST_WARNINGS:
            self._notes.append(note)


def _truncated_png(dataset: Any) -> str | None:
    """A local PNG that a dataset is or shows (a VRT) and that was cut short: GDAL reads it without
    a word and leaves the rest black."""
    for file in dataset.files:
        if _REMOTE.search(file):
            continue
        part = re.fullmatch(r"/vsisubfile/(\d+)_(-?\d+),(.+)", file)
        path, start, size = (part[3], int(part[1]), int(part[2])) if part else (file, 0, 0)
        if os.path.isfile(path):
            whole = _png_is_whole(path, start, size)
        elif dataset.driver == "PNG" or file.lower().endswith(".png"):
            whole = _copied_png_is_whole(file)
        else:
            continue
        if not whole:
            return str(file)
    return None


def _copied_png_is_whole(name: str) -> bool:
    """The same for what only GDAL can read (`/vsicached`, `/vsigzip`); True where it cannot copy
    it (`/vsitar`)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy.png")
        try:
            rasterio.shutil.copyfiles(name, copy)
        except GDAL_ERRORS:
            return True
        return _png_is_whole(copy)


def _png_is_whole(name: str, start: int = 0, size: int = 0) -> bool:
    """Walks the chunks of a PNG, which is a file or `size` bytes of it, to its end mark; True of
    what is no PNG."""
    with open(name, "rb") as file:
        rest = os.fstat(file.fileno()).st_size - start
        end = start + (min(size, rest) if size > 0 else rest)
        file.seek(start)
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return True
        while file.tell() + 8 <= end:
            head = file.read(8)
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
            if head[4:] == b"IEND":
                return file.tell() <= end
    return False
