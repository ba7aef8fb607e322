"""Opening what a user calls an image, and saying in one line why it cannot be read.

A name is no path: it may be a URL, a `/vsi` path, a part of a file (`netcdf:a.nc:blue`) or a folder
(Zarr). GDAL decides what it is; the file system only explains a failure after GDAL's.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.abc import FileContainer
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

GDAL_ERRORS = (RasterioError, CPLE_BaseError, CRSError, RPCError, UnicodeError, OSError)
"""What rasterio raises for what a file holds. GDAL's own errors come through bare in places, and
have no public name."""

_REMOTE = re.compile(
    r"\b(https?|ftp|s3|gs|az|oss)://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)", re.I
)
_ADVICE = re.compile(r" *\(this (error|warning) can be turned .*?\)", re.I)
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
        # GDAL reads a PNG that was cut short without a word and leaves the rest black.
        if dataset.driver == "PNG" and os.path.isfile(name) and not _png_is_whole(name):
            dataset.close()
            raise ImageError(f"{name} is a truncated PNG: copy or download it again")
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
    text = _ADVICE.sub("", str(e.__cause__ or e))
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
    try:
        name.encode()
    except UnicodeEncodeError:  # rasterio speaks UTF-8 alone, a file system any bytes
        return rasterio.open(quote_from_bytes(os.fsencode(name)), opener=_AnyBytes(), **options)
    path = unquote(name.removeprefix("file://"))
    if name.startswith("file://") and os.path.exists(path):
        name = path
    # rasterio takes the first part of a relative path for a host.
    archive = re.match(r"((?:zip|tar|gzip)(?:\+file)?://)([^/].*)", name)
    if archive:
        name = archive[1] + os.path.abspath(archive[2])
    return rasterio.open(name, **options)


class _AnyBytes(FileContainer):
    """Local files under percent-quoted names, so that an image's sidecars are found beside it."""

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return open(unquote_to_bytes(path), "rb")

    def isfile(self, path: str) -> bool:
        return os.path.isfile(unquote_to_bytes(path))

    def isdir(self, path: str) -> bool:
        return os.path.isdir(unquote_to_bytes(path))

    def ls(self, path: str) -> list[str]:
        return [quote_from_bytes(name) for name in os.listdir(unquote_to_bytes(path))]

    def mtime(self, path: str) -> int:
        return int(os.path.getmtime(unquote_to_bytes(path)))

    def size(self, path: str) -> int:
        return os.path.getsize(unquote_to_bytes(path))

    def rm(self, path: str) -> None:
        raise PermissionError(f"{path} is only read")


class _Warnings(logging.Handler):
    """Gathers as notes what GDAL warns of in this thread; rasterio logs it."""

    def __init__(self, name: str, notes: list[str] | None) -> None:
        super().__init__(logging.WARNING)
        self._name, self._notes, self._thread = name, notes, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if self._notes is None or record.thread != self._thread:
            return
        text = re.sub(r"^CPLE_\w+( in |:)", "", _ADVICE.sub("", record.getMessage()))
        for name in (self._name, os.path.basename(self._name)):
            text = text.removeprefix(f"{name}: ")
        note = _WARNING + " ".join(text.split())
        if note not in self._notes and sum(_WARNING in n for n in self._notes) < MOST_WARNINGS:
            self._notes.append(note)


def _png_is_whole(name: str) -> bool:
    """Walks the chunks of a PNG to its end mark."""
    with open(name, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] == b"IEND":
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
            if file.tell() > size:
                return False
    return False
