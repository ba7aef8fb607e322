"""Which formats are opened, and that what GDAL follows of its own accord leads nowhere else.

An image may come from a stranger. GDAL goes by content, not by name, and some of its formats are
not pictures but directions to other files, to servers, or to raw bytes of anything. So formats are
listed that hold their pixels themselves; what lies beside an image and would be opened with it
(overviews, masks) is looked at before GDAL does.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rasterio
from rasterio.env import ensure_env_with_credentials
from rasterio.io import DatasetReader

from geomag_edge.errors import ImageError

from .inflating import check_declared

NESTED = ("GTiff", "PNG", "JPEG", "JP2OpenJPEG", "JP2KAK", "JP2ECW")
"""Formats of files that are opened because another file says so. GDAL opens these without our list;
each begins with bytes by which it is told from all others."""
RASTERS = (
    *NESTED, "WEBP", "GIF", "BIGGIF", "BMP", "PNM", "JPEGXL", "AVIF", "HEIF", "HFA", "ENVI", "EHdr",
    "AAIGrid", "DTED", "SRTMHGT", "NITF", "Zarr",
)  # fmt: skip
"""Formats that hold their own pixels."""
HERE = (*RASTERS, "netCDF", "HDF5", "HDF5Image", "BAG", "GPKG")
"""The same and those of files and folders that were looked into."""

DIRECTIONS = ("VRTDataset", "GDAL_WMS", "GDAL_WMTS", "WCS_GDAL", "MRF_META", "GDALTileIndexDataset")
PAM, AUX = ".aux.xml", ".aux"
MOST_LEVELS = 64
"""Overviews, each of which is opened to be asked its size."""
COARSER = tuple(f".r{i}" for i in range(1, 6))
"""What overviews of NITF end in; GDAL puts them together as a VRT, which takes anything."""
SIDECARS = (".ovr", ".msk", PAM, AUX, *COARSER)
MOST_PX = 10**13
"""A map of the whole Earth at 10 m has 8e12."""
MOST_BANDS = 4096
MOST_BLOCK_BYTES = 256_000_000
"""A block is decoded whole, with all bands where they are interleaved."""
WHOLE = ("WEBP", "AVIF", "HEIF", "JPEGXL")
"""Formats that are decoded whole, whatever blocks GDAL shows them in."""
MOST_BLOCKS = 4_000_000
"""Libraries keep some bytes of each; 100,000 px squared in tiles of 256 px have 152,881."""
MOST_CHUNKS = 200_000
"""Of a Zarr, where each is a file to look for."""
SIDECAR_BYTES = 64_000_000
"""A sidecar of text that is larger is refused: GDAL reads it whole."""
HFA_START = b"EHFA_HEADER_TAG"


@ensure_env_with_credentials
def opened(name: str, drivers: tuple[str, ...], **options: Any) -> Any:
    """`rasterio.open` by one of several drivers, which that lacks."""
    return DatasetReader(name, driver=list(drivers), **options)


def directions(path: str) -> str | None:
    """What a file is in words, if it begins like one that names other files or servers."""
    with open(path, "rb") as file:
        head = file.read(1024)
    for mark in (
        b"VRTDataset",
        b"GDAL_WMS",
        b"GDAL_WMTS",
        b"WCS_GDAL",
        b"MRF_META",
        b"GDALTileIndex",
    ):
        if b"<" + mark in head:
            return f"a {mark.decode()}"
    return None


def check_nested(path: str, drivers: tuple[str, ...] = NESTED) -> None:
    """A file that GDAL would open because of another one.

    Raises:
        ImageError: it is none of the plain formats, so it may lead anywhere.
        RasterioError: it is broken.
    """
    if not os.path.isfile(path):
        raise ImageError(f"{path} is no file (a folder, a pipe or a device): put a file there")
    check_declared(path)
    with open(path, "rb") as file:
        # GDAL looks for the words of formats made of text up to the first null byte.
        binary = b"\0" in file.read(32)
    if not binary:
        raise ImageError(f"{path} is no GeoTIFF, PNG, JPEG or JPEG 2000, so it is not opened")
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        _in_utf8(path) as name,
        opened(name, drivers) as dataset,
    ):
        check_inside(path, dataset)


@contextmanager
def _in_utf8(path: str) -> Iterator[str]:
    """The path of a file as rasterio can take it: a link's where it is no UTF-8."""
    try:
        path.encode()
        yield path
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(path, os.path.join(folder, "image"))
            yield os.path.join(folder, "image")


def check_inside(name: str, dataset: Any) -> None:
    """A dataset whose metadata name another file as its overviews.

    To be asked before anything that looks for overviews: masks, statistics, lists of files.
    """
    if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):
        raise ImageError(
            f"{name} names another file as its overviews, which is not followed: remove "
            "OVERVIEW_FILE from its metadata"
        )


def check_size(name: str, dataset: Any) -> None:
    """What one read of a dataset takes, by what it declares.

    Raises:
        ImageError: more than a machine should be asked for.
    """
    height, width, bands = dataset.height, dataset.width, dataset.count
    sides = height, width, *(side for block in dataset.block_shapes for side in block)
    if min(sides) < 1:
        raise ImageError(f"{name} declares {height} x {width} pixels: copy or download it again")
    if height * width > MOST_PX:
        raise ImageError(
            f"{name} declares {height} x {width} pixels, more than {MOST_PX:.0e}: give a part of it"
        )
    if bands > MOST_BANDS:
        raise ImageError(
            f"{name} declares {bands} bands, more than {MOST_BANDS}: write the bands that matter "
            "to a file (gdal_translate -b 1 -b 2 -b 3 IN OUT.tif)"
        )
    if bands and (levels := len(dataset.overviews(1))) > MOST_LEVELS:
        raise ImageError(
            f"{name} has {levels} overviews, more than {MOST_LEVELS}: make a GeoTIFF of it "
            "(gdal_translate IN OUT.tif)"
        )
    block_bytes = largest_block_bytes(dataset)
    if dataset.driver in WHOLE:
        block_bytes = height * width * bytes_per_pixel(dataset, dataset.indexes)
    if block_bytes > MOST_BLOCK_BYTES:
        raise ImageError(
            f"{name} holds its pixels in blocks of {block_bytes:,} bytes; the most is "
            f"{MOST_BLOCK_BYTES:,}: rewrite it (gdal_translate -co TILED=YES IN OUT.tif)"
        )
    for rows, columns in set(dataset.block_shapes):
        blocks = -(-height // rows) * -(-width // columns)
        most = MOST_CHUNKS if dataset.driver == "Zarr" else MOST_BLOCKS
        if blocks > most:
            raise ImageError(
                f"{name} holds its pixels in {blocks:,} blocks of {rows} x {columns}; the most is "
                f"{most:,}: rewrite it (gdal_translate -co TILED=YES IN OUT.tif)"
            )


def largest_block_bytes(dataset: Any) -> int:
    """Bytes that are decoded for one pixel or more."""
    together = dataset.count if _interleaved(dataset) else 1
    shapes = set(zip(dataset.block_shapes, dataset.dtypes, strict=True))
    return max((rows * cols * _bytes_of(k) * together for (rows, cols), k in shapes), default=0)


def bytes_per_pixel(dataset: Any, bands: Iterable[int]) -> int:
    """Bytes that are decoded for a pixel of these bands: all bands where they are interleaved."""
    kinds = dataset.dtypes
    return sum(map(_bytes_of, kinds if _interleaved(dataset) else [kinds[b - 1] for b in bands]))


def _interleaved(dataset: Any) -> bool:
    return bool(dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL")


def _bytes_of(kind: str) -> int:
    """Bytes of a value; rasterio has types that numpy lacks."""
    return 4 if kind == "complex_int16" else np.dtype(kind).itemsize


def check_beside(paths: Iterable[str]) -> None:
    """The files that GDAL opens with local images because of their names.

    Raises:
        ImageError: one of them is no plain raster, or not even a file.
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, base = os.path.split(path)
        folders[folder].add(os.path.splitext(base)[0].casefold())
    for folder, stems in folders.items():
        with os.scandir(folder or os.curdir) as entries:
            for entry in entries:
                name = entry.name.casefold()
                if not entry.is_file() and not entry.is_dir() and os.path.exists(entry.path):
                    # Metadata of satellites begin like the image or not, and end in .txt or .xml.
                    if name.startswith(tuple(stems)) or _may_be_text(entry):
                        raise ImageError(
                            f"{entry.path} lies beside the image and is a pipe or a device: "
                            "move it away"
                        )
                elif name.endswith(SIDECARS) and _belongs(name, stems):
                    _check_sidecar(entry.path, name)


def _may_be_text(entry: os.DirEntry[str]) -> bool:
    """Whether GDAL may take it for metadata; nobody can open a socket."""
    return "." in entry.name[1:] and not stat.S_ISSOCK(entry.stat().st_mode)


def _belongs(name: str, stems: set[str]) -> bool:
    """Whether a name begins with one of the stems and a dot."""
    parts = name.split(".")
    return any(".".join(parts[:i]) in stems for i in range(1, len(parts)))


def _check_sidecar(path: str, name: str) -> None:
    if name.endswith(PAM):
        if os.path.getsize(path) > SIDECAR_BYTES:
            raise ImageError(f"{path} is larger than {SIDECAR_BYTES // 1_000_000} MB: remove it")
    elif name.endswith(COARSER):
        with open(path, "rb") as file:
            is_nitf = file.read(4) in (b"NITF", b"NSIF")
        if not is_nitf or directions(path):
            raise ImageError(f"{path} is no NITF, so it is not opened: move it away")
        check_declared(path)
    elif not name.endswith(AUX):
        check_nested(path)
    elif os.path.isfile(path):
        with open(path, "rb") as file:  # LaTeX writes .aux, too
            is_overview = file.read(len(HFA_START)) == HFA_START
        if is_overview:
            check_nested(path, ("HFA",))
