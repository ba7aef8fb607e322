"""Scenes as tiled GeoTIFF files, written block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window

from geomag_edge.disk.staging import staged_file

from ..errors import OutputError
from .raster import TILE
from .scene import RenderedScene, render_scene

SAMPLE_SEED = 63
SAMPLE_GSD_M = 0.4


def write_scene(scene: RenderedScene, path: str | Path) -> Path:
    """Writes a scene as a tiled, deflated GeoTIFF with CRS, transform and overviews.

    Memory stays at a few tiles whatever the scene's size. The file appears under its name only
    when it is complete.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a .tif file")
    try:
        with staged_file(path) as part:
            _write(scene, part)
    except (OSError, rasterio.errors.RasterioError) as e:
        raise OutputError(f"cannot write {path}: {e}") from e
    return path


def _write(scene: RenderedScene, path: Path) -> None:
    size = scene.size_px
    block = 512 if size >= 512 else 256
    # Beyond 4 GiB of pixels a classic TIFF may not hold the file.
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS", GDAL_CACHEMAX=128, COMPRESS_OVERVIEW="DEFLATE"):
        with rasterio.open(
            path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8",
            crs=CRS.from_epsg(scene.crs), transform=scene.transform, tiled=True,
            blockxsize=block, blockysize=block, compress="deflate", zlevel=1, predictor=2,
            photometric="RGB", interleave="pixel", BIGTIFF="IF_SAFER",
        ) as out:  # fmt: skip
            out.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            out.update_tags(
                GSD_M=f"{scene.gsd_m:g}", SCENE_CLASS=scene.scene_class, SEED=str(scene.seed)
            )

            def put(tile: NDArray[np.uint8], tx: int, ty: int) -> None:
                height, width = tile.shape[:2]
                at = Window(tx * TILE, ty * TILE, width, height)
                out.write(tile.transpose(2, 0, 1), window=at)

            scene.stream(put)
        factors = [2**k for k in range(1, 12) if size / 2**k >= 128]
        if factors:
            with rasterio.open(path, "r+") as out:
                out.build_overviews(factors, Resampling.average)


def sample_scene(path: str | Path) -> Path:
    """Writes the sample of the quickstart: a harbour of 2048 px with ships, tanks and roads."""
    return write_scene(render_scene(SAMPLE_SEED, 2048, SAMPLE_GSD_M), path)
