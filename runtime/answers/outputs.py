"""Writing an answer: answer.json, masks.tif, masks.geojson and overlay.png, whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.windows import Window

from geomag_edge.errors import InputError, OutputError
from geomag_edge.printing import printable
from geomag_edge.runtime.images.georef import Georef
from geomag_edge.runtime.images.reading import CACHE_BYTES
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.images.unwarned import unwarned

from .exchange import ANSWER, check_inputs, placed
from .geojson import feature_collection
from .masks import BLOCK_PX, Mask
from .overlay import Looked, draw_overlay, mask_colour
from .wording import cut_short

SIDECAR = "masks.tif.aux.xml"
TAGS = ("prompt", "text", "engine", "precision")
"""What of answer.json masks.tif says itself."""


def write_outputs(
    out_dir: Path | str,
    scene: Scene,
    answer: dict[str, Any],
    masks: Sequence[Mask],
    labels: Sequence[str],
    seen: Looked,
) -> dict[str, Path]:
    """Writes the four files of an answer into a folder, which is made if it is not there.

    They appear together, and an earlier answer goes with all that programs keep beside its files,
    so that a full disk, an error, Ctrl-C or a kill leaves the old answer or the new one. Other
    files stay.

    Args:
        out_dir: the folder; files of an earlier answer are replaced.
        scene: the open scene that was asked about.
        answer: what answer.json holds; `prompt`, `text` and `boxes` (px) also go into the picture.
            What is to be known of the polygons' coordinates is added to its `notes`.
        masks: in order; where they overlap, the earlier one keeps its pixels in masks.tif.
        labels: one for each mask.
        seen: where the model looked, for the picture.

    Returns:
        Paths of `answer`, `masks`, `polygons` and `overlay`.

    Raises:
        OutputError: the folder cannot be made or written, the disk is full, or the image itself
            would be replaced.
    """
    if len(labels) != len(masks):
        raise InputError(f"{len(labels)} labels for {len(masks)} masks: give one for each mask")
    out = Path(out_dir)
    check_inputs(out, scene.files)
    try:
        with placed(out) as stage:
            size, prompt = (scene.height, scene.width), str(answer.get("prompt", ""))
            polygons = feature_collection(masks, labels, scene.georef, size, prompt)
            if polygons["geomag_notes"]:
                answer["notes"] = [*answer.get("notes", []), *polygons["geomag_notes"]]
            if short := cut_short(answer):  # already among the answer's own
                polygons["geomag_notes"].append(short)
            names = {
                "masks": _write(
                    stage / "masks.tif", lambda: mask_raster(masks, scene, stage, answer)
                ),
                "polygons": _write(stage / "masks.geojson", lambda: _json(polygons, indent=None)),
                "overlay": _write(
                    stage / "overlay.png",
                    lambda: _png(draw_overlay(scene, answer, masks, labels, seen)),
                ),
                "answer": _write(stage / ANSWER, lambda: _json(answer, indent=2)),
            }
    except OSError as e:
        raise OutputError(
            f"cannot write to {out}: {e.strerror or e}; nothing of this answer was left there, "
            "choose another folder or make room"
        ) from e
    return {kind: out / name for kind, name in names.items()}


def _write(path: Path, make: Callable[[], bytes | memoryview]) -> str:
    """Writes one file; returns its name."""
    path.write_bytes(make())
    return path.name


def mask_raster(
    masks: Sequence[Mask],
    scene: Scene,
    stage: Path | None = None,
    answer: Mapping[str, Any] | None = None,
) -> bytes:
    """A GeoTIFF with the scene's size and georeference: 0 is background, i is mask i.

    Background is declared as no data, so that a viewer shows the image below it.

    It is compressed in memory, where it takes little, because GDAL does not report a full disk.
    Blocks that no mask touches are left out and read as 0.

    Args:
        masks: in order; an earlier one is not overwritten by a later one.
        scene: gives height, width and georeference.
        stage: folder for the sidecar that a CRS needs which GeoTIFF cannot hold exactly.
        answer: as in answer.json; who said what goes into the file's tags.
    """
    dtype = "uint8" if len(masks) < 256 else "uint16"
    options: dict[str, Any] = {"crs": scene.georef.crs} | _place(scene.georef)
    with unwarned(), rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=scene.height,
            width=scene.width,
            count=1,
            dtype=dtype,
            nodata=0,
            tiled=True,
            blockxsize=BLOCK_PX,
            blockysize=BLOCK_PX,
            compress="deflate",
            bigtiff="IF_SAFER",
            sparse_ok=True,
            **options,
        ) as ds:
            ds.set_band_description(1, "number of the mask, 0 where there is none")
            ds.update_tags(
                **{f"GEOMAG_{k.upper()}": printable(str((answer or {}).get(k, ""))) for k in TAGS}
            )
            if dtype == "uint8":
                colours = {i: (*mask_colour(i), 255) for i in range(1, len(masks) + 1)}
                ds.write_colormap(1, {0: (0, 0, 0, 0)} | colours)
            for r0, c0, r1, c1 in sorted({b for mask in masks for b in mask.blocks()}):
                block = np.zeros((r1 - r0, c1 - c0), dtype)
                for i in range(len(masks), 0, -1):
                    block[masks[i - 1].window(r0, c0, r1, c1)] = i
                if block.any():
                    ds.write(block, 1, window=Window(c0, r0, c1 - c0, r1 - r0))
        tiff = bytes(memory.getbuffer())
        crs = scene.georef.crs
        if stage is not None and crs is not None and _crs_in(tiff) != crs:
            xml = f"<PAMDataset><SRS>{escape(crs.to_wkt())}</SRS></PAMDataset>\n"
            _write(stage / SIDECAR, xml.encode)
        return tiff


def _crs_in(tiff: bytes) -> Any:
    """The CRS that a GeoTIFF itself holds; a file in memory may have a sidecar there as well."""
    with MemoryFile(tiff) as memory, memory.open() as ds:
        return ds.crs or ds.gcps[1] or None


def _place(georef: Georef) -> dict[str, Any]:
    """What rasterio needs to write the image's place, whichever way the image gives it."""
    place: dict[str, Any] = {}
    if georef.transform is not None:
        place["transform"] = georef.transform
    elif georef.gcps:
        place |= {"gcps": list(georef.gcps), "crs": georef.crs or CRS()}
    if georef.rpcs is not None:
        place["rpcs"] = georef.rpcs
    return place


def _png(picture: Any) -> memoryview:
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # a fifth of the default's time, little larger
    return buffer.getbuffer()


def _json(data: Any, indent: int | None) -> bytes:
    text = json.dumps(_plain(data), indent=indent, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _plain(data: Any) -> Any:
    """Numpy values and paths as plain JSON values; NaN and infinity, which JSON lacks, as null."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if isinstance(data, (np.ndarray, np.generic)):
        return _plain(data.tolist())
    if isinstance(data, os.PathLike):
        return os.fspath(data)
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
