"""Image files: what is refused before GDAL sees it, and GDAL's own errors in one line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geomag_edge.errors import ImageError

CACHE_BYTES = 64_000_000
"""GDAL's block cache while we read; its default of 5 % of the machine's memory is too much."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Bounds GDAL's cache and turns its errors into an `ImageError` of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_ERROR_ON_LIBJPEG_WARNING=True):
                yield
    except (RasterioError, OSError) as e:
        cause = str(e.__cause__ or e).strip().splitlines()[0].rstrip(".")
        for prefix in (f"{name}: ", f"{name}, ", f"'{name}' "):
            cause = cause.removeprefix(prefix)
        raise ImageError(
            f"cannot read {name}: {cause}; check that the file is complete and is a PNG, JPEG, "
            "GeoTIFF or another raster that GDAL reads"
        ) from e


def check_file(name: str) -> None:
    """Refuses what GDAL would misread or explain badly.

    Raises:
        ImageError: missing, a directory, empty, or a PNG that ends too early.
    """
    if name.startswith("/vsi") or "://" in name:
        return
    path = Path(name)
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a directory: give an image file")
        if not path.exists():
            raise ImageError(f"no image at {name}: check the path")
        if path.stat().st_size == 0:
            raise ImageError(f"{name} is empty (0 bytes): copy or download it again")
        # GDAL reads a PNG that was cut short without a word and leaves the rest black.
        with path.open("rb") as file:
            if file.read(8) == b"\x89PNG\r\n\x1a\n" and not _png_is_whole(file):
                raise ImageError(f"{name} is a truncated PNG: copy or download it again")
    except (OSError, ValueError) as e:
        if isinstance(e, ImageError):
            raise
        raise ImageError(f"cannot read {name}: {e}; check the path and its permissions") from e


def _png_is_whole(file: Any) -> bool:
    """Walks the chunks of a PNG, whose signature has been read, to its end mark."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(8)) == 8:
        if head[4:] == b"IEND":
            return True
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        if file.tell() > size:
            return False
    return False
