"""Opening what a user calls an image, and saying in one line why it cannot be read.

A name is no path: it may be a URL, a `/vsi` path, a part of a file (`netcdf:a.nc:blue`) or a folder
(Zarr). GDAL decides what it is; the file system only explains a failure after GDAL's.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from typing import Any
from urllib.parse import unquote_to_bytes

import rasterio.shutil

from geomag_edge.errors import ImageError
from geomag_edge.printing import printable
from geomag_edge.runtime.images.vetting.formats import (
    HERE,
    RASTERS,
    check_beside,
    check_inside,
    check_size,
    opened,
)
from geomag_edge.runtime.images.vetting.hdf5 import NAMED, check_hdf5
from geomag_edge.runtime.images.vetting.inflating import check_declared, check_folder
from geomag_edge.runtime.images.vetting.netcdf3 import check_netcdf3
from geomag_edge.runtime.images.vetting.tiff import check_tiff
from geomag_edge.runtime.images.vetting.vrt import MARK, check_vrt

from .reading import GDAL_ERRORS, LINKED, REMOTE, reading


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
        try:
            check_inside(name, dataset)
            check_size(name, dataset)
            if "overview_level" not in options and (cut := _truncated_png(dataset)):
                held = "is" if dataset.driver == "PNG" else f"shows {cut}, which is"
                raise ImageError(f"{name} {held} a truncated PNG: copy or download it again")
        except BaseException:
            dataset.close()
            raise
    return dataset


def _open(name: str, options: dict[str, Any]) -> Any:
    path = os.fsdecode(unquote_to_bytes(os.fsencode(name.removeprefix("file://"))))
    if name.startswith("file://") and os.path.exists(path):
        name = path
    if os.path.exists(name):
        return _open_local(os.path.abspath(name), options)
    try:
        name.encode()
    except UnicodeEncodeError:  # rasterio speaks UTF-8 alone, a file system any bytes
        raise ImageError(
            f"no image at {name}: check the path (a name that is not UTF-8 must be a "
            "file's or a folder's own)"
        ) from None
    if name.startswith("vrt://"):  # a VRT that GDAL makes, of one dataset
        _open(re.split(r"[?]", name.removeprefix("vrt://"))[0], {}).close()
        sign = "&" if "?" in name else "?"
        return opened(f"{name}{sign}if={','.join(RASTERS)}", ("VRT",), **options)
    part = NAMED.fullmatch(name)
    if part and os.path.exists(part[1]):
        _check_contents(part[1])
        return opened(name, HERE, **options)
    # rasterio takes the first part of a relative path for a host.
    archive = re.match(r"((?:zip|tar|gzip)(?:\+file)?://)([^/].*)", name)
    if archive:
        name = archive[1] + os.path.abspath(archive[2])
    return opened(name, RASTERS, **options)


def _open_local(path: str, options: dict[str, Any]) -> Any:
    """A file or a folder here, by its absolute path, which GDAL takes for nothing else."""
    drivers: tuple[str, ...] = HERE
    _check_contents(path)
    check_beside([path])
    if os.path.isfile(path) and path.lower().endswith(".vrt"):
        with open(path, "rb") as file:
            if MARK in file.read(1024):
                check_vrt(path)
                drivers = ("VRT",)
    try:
        path.encode()
    except UnicodeEncodeError:  # rasterio speaks UTF-8 alone, a file system any bytes
        return _open_linked(path, drivers, options)
    return opened(path, drivers, **options)


def _check_contents(path: str) -> None:
    """What can only be known of an image by looking into it before GDAL does."""
    if os.path.isdir(path):
        check_folder(path)
    elif os.path.isfile(path):
        check_hdf5(path)
        check_netcdf3(path)
        check_tiff(path)
        check_declared(path)
    else:
        raise ImageError(f"{path} is a pipe or a device: give an image file")


def _open_linked(name: str, drivers: tuple[str, ...], options: dict[str, Any]) -> Any:
    """A file or folder whose name is not UTF-8, through a link of another name; the files that
    belong to it by their names (masks, overviews, world files) are linked beside it."""
    folder, base = os.path.split(name)
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
        dataset = opened(os.path.join(links, link), drivers, **options)
    except BaseException:
        shutil.rmtree(links, ignore_errors=True)
        raise
    weakref.finalize(dataset, shutil.rmtree, links, ignore_errors=True)
    return dataset


def _truncated_png(dataset: Any) -> str | None:
    """A local PNG that a dataset is or shows (a VRT) and that was cut short: GDAL reads it without
    a word and leaves the rest black."""
    for file in dataset.files:
        if REMOTE.search(file):
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
