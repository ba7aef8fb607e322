"""What GDAL and rasterio say while an image is read: one line for what fails, a note for the rest.

rasterio hears GDAL through a callback in which nothing can be raised. What is lost there (text
that is no UTF-8, Ctrl-C) is caught here instead of being printed.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import (
    CRSError,
    RasterioError,
    RPCError,
)

from geomag_edge.errors import ImageError
from geomag_edge.printing import one_line
from geomag_edge.runtime.images.vetting.formats import directions

from .unwarned import unwarned

T = TypeVar("T")

CACHE_BYTES = 64_000_000
"""GDAL's block cache while we read; its default of 5 % of the machine's memory is too much."""
NOTE_CHARS = 200
MOST_WARNINGS = 3
"""Decoder warnings that become notes of one image; a broken file can give thousands."""

LINKED = "geomag-edge-name-"
"""Begins the name of a folder of links to an image whose own name rasterio cannot take."""

GDAL_ERRORS = (RasterioError, CPLE_BaseError, CRSError, RPCError, UnicodeError, OSError)
"""What rasterio raises for what a file holds. GDAL's own errors come through bare in places, and
have no public name."""

REMOTE = re.compile(
    r"\b(https?|ftp|s3|gs|az|oss)://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)", re.I
)
_ADVICE = re.compile(r"(?<! ) *\(this (error|warning) can be turned .*?\)", re.I)
_LINKED = re.compile(rf"(?<![^\s'\"])[^\s'\"]*/{LINKED}[^/]*/")
_WARNING = "read, though GDAL warns: "


CALLBACK = "rasterio._env.log_error"
"""How Python names the callback that rasterio hears GDAL by."""

_lost = threading.local()
_lock = threading.Lock()
_readers = 0
_print_unraisable = sys.unraisablehook


@contextmanager
def reading(
    name: str, notes: list[str] | None = None, cache_bytes: int = CACHE_BYTES
) -> Iterator[None]:
    """Bounds GDAL's cache, turns what rasterio raises into an `ImageError` of one line, and what a
    decoder merely warns of into `notes`. Keeps GDAL from the network but for names that ask for
    it, and from files beside what is no file here."""
    here = os.path.exists(name.removeprefix("file://"))
    options: dict[str, Any] = {
        "GDAL_CACHEMAX": cache_bytes,
        # EMPTY_DIR, a usual setting for remote files, would hide the .msk and .ovr of local ones.
        "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE" if here else "EMPTY_DIR",
        "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
        "GDAL_VRT_ENABLE_PYTHON": "NO",
    }
    if here or not REMOTE.search(name):
        options["CPL_VSIL_CURL_ALLOWED_FILENAME"] = "none"
    heard = _Warnings(name, notes)
    log = logging.getLogger("rasterio")
    log.addHandler(heard)
    _listen(1)
    try:
        with unwarned(), rasterio.Env(**options):
            yield
        raise_lost()
    except Exception as e:
        raise_lost()
        if not isinstance(e, GDAL_ERRORS) and not _of_rasterio(e):
            raise
        raise ImageError(_explained(name, cause_of(e, name))) from e
    finally:
        _listen(-1)
        log.removeHandler(heard)


def raise_lost() -> None:
    """Ctrl-C, where it came while rasterio was hearing GDAL. To be called between reads."""
    if lost := getattr(_lost, "interrupt", None):
        _lost.interrupt = None
        raise lost


def _listen(more: int) -> None:
    """Catches what the callback of rasterio raises, while anyone reads."""
    global _readers, _print_unraisable
    with _lock:
        _readers += more
        if _readers == 1 and more == 1:
            _print_unraisable, sys.unraisablehook = sys.unraisablehook, _caught
        elif _readers == 0 and sys.unraisablehook is _caught:
            sys.unraisablehook = _print_unraisable


def _caught(what: Any) -> None:
    if what.object != CALLBACK:
        _print_unraisable(what)
    elif not isinstance(what.exc_value, Exception):
        _lost.interrupt = what.exc_value


def _of_rasterio(e: BaseException) -> bool:
    """Whether rasterio itself raised it: it lets a garbled file end in errors of any class."""
    trace = e.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = "" if trace is None else trace.tb_frame.f_code.co_filename
    return "rasterio" in file.replace("\\", "/").split("/") and not isinstance(e, MemoryError)


def told(read: Callable[[], T], default: T, what: str, notes: list[str]) -> T:
    """Something that a file says about itself, or the default and a note where it is garbled.

    rasterio may raise a fault of one field when the next one is read, hence the second try.
    """
    for _ in range(2):
        try:
            return read()
        except Exception as e:
            raise_lost()
            if not isinstance(e, (*GDAL_ERRORS, ValueError)) and not _of_rasterio(e):
                raise
            note = f"{what} cannot be read and is left out: {one_line(cause_of(e), NOTE_CHARS)}"
            if note not in notes:
                notes.append(note)
    return default


def cause_of(e: BaseException, name: str = "") -> str:
    """What went wrong, in one line, without the file's name and GDAL's advice on its settings."""
    first = e.__cause__ or e
    if isinstance(first, UnicodeDecodeError):  # of GDAL's words
        words = bytes(first.object).decode("utf-8", "backslashreplace")
    else:
        words = str(first)
    text = _LINKED.sub("", _ADVICE.sub("", words))
    cause = (text.strip().splitlines() or [type(e).__name__])[0].rstrip(".")
    for said in (name, os.path.abspath(name)) if name else ():
        for prefix in (f"{said}: ", f"{said}, ", f"'{said}' "):
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
    if REMOTE.search(name):
        return f"cannot read {name}: {cause}; check the address, the network and your credentials"
    if os.path.isfile(name) and "not recognized" in cause and (kind := directions(name)):
        return (
            f"{name} is {kind}, which leads to other files or servers: give the image itself "
            "(a VRT of files beside it is read under a name that ends in .vrt)"
        )
    return (
        f"cannot read {name}: {cause}; check that the file is complete and is a PNG, JPEG, "
        "GeoTIFF or another raster that GDAL reads (docs/IMAGES.md lists them)"
    )


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
        note = _WARNING + one_line(text, NOTE_CHARS)
        if note not in self._notes and sum(_WARNING in n for n in self._notes) < MOST_WARNINGS:
            self._notes.append(note)
