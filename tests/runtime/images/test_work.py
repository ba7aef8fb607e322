"""Work: what an image declares may take days to decode; what it holds is read."""

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images import raster
from geomag_edge.runtime.images.scene import Scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


SPARSE = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}


def sparse(path, size, blocks=(), **profile):
    """A GeoTIFF that lacks all of its blocks but these (row, column), which are full of 77."""
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, bigtiff="yes",
        **{"count": 3, "dtype": "uint8", **SPARSE, **profile},
    ) as ds:  # fmt: skip
        for row, column in blocks:
            ones = np.full((ds.count, 512, 512), 77, ds.dtypes[0])
            ds.write(ones, window=Window(column * 512, row * 512, 512, 512))
    return path


def test_an_image_of_a_hundred_thousand_pixels_may_be_mostly_holes(tmp_path):
    path = sparse(tmp_path / "a.tif", 100_000, [(60, 70)], nodata=0)
    with Scene.open(path) as scene:
        assert scene.validity.box_of_data([0, 0, 1e5, 1e5]) == [35840, 30720, 36352, 31232]
        mean_std = np.array([[0.5] * 3, [1] * 3], np.float32)
        views = scene.crop(np.array([[35840, 30720, 36352, 31232]], np.float32), mean_std, 16)
    np.testing.assert_allclose(views, 77 / 255 - 0.5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_image_of_nothing_but_holes_is_said_to_hold_no_data(tmp_path, dtype):
    path = sparse(tmp_path / "a.tif", 60_000, nodata=0, dtype=dtype, count=1)
    with pytest.raises(ImageError, match="has no valid pixel"):
        Scene.open(path)


@pytest.mark.parametrize("kind", ["RGB", "nodata", "alpha", "mask"])
def test_holes_are_what_gdal_reads_there(tmp_path, monkeypatch, kind):
    profile = {"nodata": 5} if kind == "nodata" else {"count": 4} if kind == "alpha" else {}
    path = sparse(tmp_path / "a.tif", 2048, [(1, 2), (3, 3)], **profile)
    if kind == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as ds:
            ds.write_mask(np.arange(2048) < np.full((2048, 1), 900))
    looks = []
    for hole_px in (1, 10**9):
        monkeypatch.setattr(raster, "HOLE_PX", hole_px)
        made = raster.Raster(str(path))
        whole = (0, 0, made.height, made.width)
        looks.append([made.read(made.levels[0], whole, by) for by in (1, 3)])
        made.close()
    for (rgb, valid), (other, other_valid) in zip(*looks, strict=True):
        np.testing.assert_array_equal(rgb, other)
        np.testing.assert_array_equal(valid, other_valid)


BOMBS = {
    "a million pixels square": lambda p: sparse(p, 1_000_000),
    "one colour": lambda p: sparse(p, 30_000, tiled=False, blockysize=1),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_look_has_bounds_which_the_error_names(tmp_path, kind):
    path = BOMBS[kind](tmp_path / "a.tif")
    with Scene.open(path) as scene, pytest.raises(ImageError, match=r"one look at .* takes [\d,]+"):
        scene.thumbnail(100)


def test_a_mask_of_a_question_is_bounded_too(tmp_path):
    from geomag_edge.calibration.sets.labels import LabelImage
    from geomag_edge.errors import DatasetError

    path = sparse(tmp_path / "a.tif", 100_000, count=1)
    with pytest.raises(DatasetError, match="all of a mask are read"):
        LabelImage(path).area_px([1])


def test_holes_of_large_blocks_are_read_once(tmp_path, monkeypatch):
    """GDAL makes a whole block of 4,096 x 4,096 px for each, which took 24 s of a processor."""
    large = {"blockxsize": 4096, "blockysize": 4096, "dtype": "uint16", "nodata": 0}
    path = sparse(tmp_path / "a.tif", 65_536, **large)
    read, real = [], raster.Raster._values

    def values(self, level, window, hole=False):
        if not (hole and self._hole):
            read.append(window)
        return real(self, level, window, hole)

    monkeypatch.setattr(raster.Raster, "_values", values)
    with pytest.raises(ImageError, match="has no valid pixel"):
        Scene.open(path)
    assert len(read) < 300  # 256 samples, and two for all holes
