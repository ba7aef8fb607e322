"""PROJ's database: found in spite of the environment, or missed aloud; never a network."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

PROGRAM = """
import json, sys
import numpy as np
from geomag_edge.runtime.answers.geojson import feature_collection
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.images.scene import Scene
with Scene.open(sys.argv[1]) as scene:
    mask = Mask((8, 8), [[0, 0, 8, 8]], np.ones((1, 4, 4), np.float32), np.ones(1), 1.0)
    data = feature_collection([mask], ["x"], scene.georef)
    print(json.dumps([data["geomag_coordinates"], list(scene.notes), data["geomag_notes"]]))
"""
DATABASE = Path(rasterio.__file__).parent / "proj_data" / "proj.db"

pytestmark = pytest.mark.skipif(not DATABASE.exists(), reason="needs rasterio's own proj.db")


def coordinates_of(image, **environment):
    """geomag_coordinates, the scene's notes and the polygons', in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PROJ_", "GDAL_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(image)],
        capture_output=True, text=True, env=clean | environment, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture
def image(tmp_path):
    return write(tmp_path / "a.tif", "EPSG:32641", rasterio.transform.from_origin(4e5, 17e5, 1, 1))


def write(path, crs, transform):
    with rasterio.open(
        path, "w", driver="GTiff", height=8, width=8, count=3, dtype="uint8", crs=crs,
        transform=transform,
    ):  # fmt: skip
        return path


@pytest.fixture
def older(tmp_path):
    """A folder with the database of another PROJ version."""
    (tmp_path / "older").mkdir()
    shutil.copy(DATABASE, tmp_path / "older")
    with sqlite3.connect(tmp_path / "older" / "proj.db") as db:
        db.execute("UPDATE metadata SET value = 0 WHERE key = 'DATABASE.LAYOUT.VERSION.MINOR'")
    return tmp_path / "older"


@pytest.mark.parametrize("variable", ["PROJ_DATA", "PROJ_LIB"])
@pytest.mark.parametrize("kind", ["missing", "empty", "older"])
def test_a_database_that_proj_cannot_read_is_replaced_by_its_own_with_a_note(
    image, older, tmp_path, variable, kind
):
    (tmp_path / "empty").mkdir()
    (coordinates, (note,), others) = coordinates_of(image, **{variable: str(tmp_path / kind)})
    assert coordinates == "wgs84"
    assert f"{variable}={tmp_path / kind}" in note
    assert "unset it" in note
    assert others == []


def test_a_good_database_of_the_user_is_kept_without_a_word(image, tmp_path):
    shutil.copy(DATABASE, tmp_path)
    assert coordinates_of(image, PROJ_DATA=str(tmp_path)) == ["wgs84", [], []]
    assert coordinates_of(image, GDAL_DATA="/nonexistent") == ["wgs84", [], []]


def test_a_grid_that_the_user_insists_on_and_lacks_is_named(tmp_path):
    image = write(tmp_path / "a.tif", "EPSG:4267", rasterio.transform.from_origin(-100, 40, 1, 1))
    coordinates, _, (note,) = coordinates_of(image, PROJ_ONLY_BEST_DEFAULT="ON")
    assert coordinates == "native"
    assert "cannot be taken to WGS 84 on this machine" in note
    assert "is not available" in note


def test_proj_asks_no_network_for_grids_even_if_it_may(tmp_path):
    image = write(tmp_path / "a.tif", "EPSG:4267", rasterio.transform.from_origin(-100, 40, 1, 1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        found = coordinates_of(image, PROJ_NETWORK="ON", PROJ_NETWORK_ENDPOINT=endpoint)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert found == ["wgs84", [], []]
