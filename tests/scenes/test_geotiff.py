"""GeoTIFF files open with what GIS programs expect."""

import numpy as np
import pytest
import rasterio

from geomag_edge.errors import OutputError
from geomag_edge.scenes import render_scene, sample_scene, write_scene


def test_file_has_pixels_crs_transform_gsd_and_overviews(tmp_path):
    scene = render_scene(4, 1100, 0.5)
    path = write_scene(scene, tmp_path / "scene.tif")
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(
            src.read().transpose(1, 2, 0), render_scene(4, 1100, 0.5).image
        )
        assert src.crs.to_epsg() == scene.crs
        assert src.transform == scene.transform
        assert src.res == (0.5, 0.5)
        assert src.overviews(1) == [2, 4, 8]
        assert src.profile["tiled"]
        assert src.block_shapes[0] == (512, 512)
        assert float(src.tags()["GSD_M"]) == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_writing_also_measures_the_objects(tmp_path):
    scene = render_scene(4, 600, 0.5)
    write_scene(scene, tmp_path / "a.tif")
    assert "image" not in vars(scene)
    assert [o.box for o in scene.objects] == [o.box for o in render_scene(4, 600, 0.5).objects]


def test_sample_is_a_harbour_with_much_to_ask_about(tmp_path):
    path = sample_scene(tmp_path / "sample.tif")
    with rasterio.open(path) as src:
        assert (src.width, src.height) == (2048, 2048)
        assert src.tags()["SCENE_CLASS"] == "harbour"


def test_places_that_cannot_be_written(tmp_path):
    scene = render_scene(4, 64)
    with pytest.raises(OutputError, match="does not exist"):
        write_scene(scene, tmp_path / "no" / "scene.tif")
    with pytest.raises(OutputError, match="is a folder"):
        write_scene(scene, tmp_path)
