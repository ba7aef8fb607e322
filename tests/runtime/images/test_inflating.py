"""Small files of which a decoder would make much, or do anything, while it opens them."""

import json
import os
import shutil
import socket
import sqlite3
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.images.vetting.formats import check_size

PICTURE = np.random.default_rng(0).integers(0, 256, (3, 60, 80), np.uint8)


def refused(name):
    with pytest.raises(ImageError) as e:
        Scene.open(str(name))
    return str(e.value)


def written(path, driver, **options):
    place = {"crs": "EPSG:3857", "transform": from_origin(0, 0, 10, 10)} | options
    with rasterio.open(
        path, "w", driver=driver, width=80, height=60, count=3, dtype="uint8", **place
    ) as ds:
        ds.write(PICTURE)
    return path


def gif(frames, width, height):
    frame = b"\x21\xf9\x04" + bytes(5) + b"," + struct.pack("<4HB", 0, 0, width, height, 0x80)
    frame += bytes(6) + b"\x02\x03\x84\x51\x00\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x81, 0, 0) + bytes(12) + frame * frames


def j2k(side, tile, components):
    size = struct.pack(">H8I", 0, side, side, 0, 0, tile, tile, 0, 0)
    size += struct.pack(">H", components) + b"\x07\x01\x01" * components
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gif(6, 9999, 9999), "599,880,006 pixels together"),
        (j2k(65280, 256, 3), "too many tiles"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99) + j2k(1020, 4, 100), "too many tiles"),
        (b"NITF02.10" + bytes(99) + j2k(65280, 256, 3), "too many tiles"),
        (b"GIF89a", "cannot read"),
        (b"GIF89a" + b"," * 200, "cannot read"),
        (b"\xff\x4f\xff\x51\0", "cannot read"),
        (j2k(100, 0, 3), "which do not hold them"),
        (b"SQLite format 3\0", "database is broken"),
        (b"SQLite format 3\0" + bytes(4096), "database is broken"),
    ],
)
def test_what_a_decoder_would_make_of_it_is_bounded(tmp_path, data, message):
    (tmp_path / "a").write_bytes(data)
    assert message in refused(tmp_path / "a")


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
VIEWS = {
    "a view": ["ALTER TABLE gpkg_tile_matrix RENAME TO t", "CREATE VIEW gpkg_tile_matrix AS {}"],
    "a view that is called a table": [
        "CREATE VIEW v AS {}",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET type = 'table' WHERE name = 'v'",
    ],
    "a made column": ["CREATE TABLE t (a, b AS (zeroblob(900000000)))"],
}


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("name", ["{}", "GPKG:{}:a"])
def test_a_geopackage_that_computes_is_refused(tmp_path, kind, name):
    path = written(tmp_path / "a.gpkg", "GPKG")
    base = sqlite3.connect(path)
    for line in VIEWS[kind]:
        base.execute(line.format(ENDLESS + " WHERE x < 0"))
    base.commit()
    base.close()
    assert any(why in refused(name.format(path)) for why in ("worked out", "malformed"))


def test_a_geopackage_is_read_unless_it_is_being_written(tmp_path):
    path = written(tmp_path / "a#?% é.gpkg", "GPKG")
    with Scene.open(path) as scene:
        assert (scene.height, scene.width) == (60, 80)
    (tmp_path / f"{path.name}-wal").write_bytes(b"x")
    assert "is being written" in refused(path)


def zarr(path, chunk):
    path.mkdir()
    about = {"zarr_format": 2, "shape": [60, 80], "chunks": [60, 80], "dtype": "|u1", "order": "C"}
    about |= {"compressor": None, "fill_value": 0, "filters": None}
    (path / ".zarray").write_text(json.dumps(about))
    if chunk is not None:
        (path / "0.0").write_bytes(chunk)
    return path


def test_a_zarr_lies_in_its_folder(tmp_path):
    whole = zarr(tmp_path / "whole.zarr", PICTURE[0].tobytes())
    for name in (str(whole), f'ZARR:"{whole}"'):
        with Scene.open(name) as scene:
            assert scene.width == 80
    linked = zarr(tmp_path / "linked.zarr", None)
    (linked / "0.0").symlink_to(whole / "0.0")
    assert "leads out of its image" in refused(linked)
    assert "leads out of its image" in refused(f'ZARR:"{linked}"')
    piped = zarr(tmp_path / "piped.zarr", None)
    os.mkfifo(piped / "0.0")
    assert "is a pipe" in refused(piped)
    for text in ('{"metadata": {"../whole.zarr/.zarray": {}}}', "[" * 100_000):
        index = tmp_path / "index.zarr"
        shutil.rmtree(index, ignore_errors=True)
        (zarr(index, None) / ".zmetadata").write_text(text)
        assert "zmetadata" in refused(index)


@pytest.mark.parametrize("beside", ["LC8_MTL.txt", "metadata.xml"])
def test_pipes_that_may_be_metadata_are_refused_and_sockets_are_not(tmp_path, monkeypatch, beside):
    path = written(tmp_path / "LC8_B1.TIF", "GTiff")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a.txt")
        Scene.open(path).close()
    os.mkfifo(tmp_path / beside)
    assert "is a pipe" in refused(path)


@pytest.mark.parametrize("beside", ["a.ntf.r1", "a.r5", "A.R2"])
@pytest.mark.parametrize("data", [b"<VRTDataset>", b"NITF<VRTDataset>", b"II*\0" + bytes(99)])
def test_coarser_levels_of_a_nitf_are_nitf(tmp_path, beside, data):
    written(tmp_path / "a.ntf", "NITF", crs=None, transform=None)
    (tmp_path / beside).write_bytes(data)
    assert "is no NITF" in refused(tmp_path / "a.ntf")


def test_what_is_decoded_whole_has_a_bound(tmp_path):
    Image.new("RGB", (12_000, 8_000)).save(tmp_path / "a.webp", lossless=True, method=0)
    assert "blocks of 288,000,000 bytes" in refused(tmp_path / "a.webp")


def test_halves_give_no_warning(recwarn):
    values = np.linspace(-6e4, 6e4, 4800).astype(np.float16).reshape(60, 80)
    values[0, 0] = np.inf
    for nodata in (None, -9999, 1e20):
        Scene.open(values, nodata=nodata).close()
    assert not recwarn.list


def test_overviews_without_number_are_refused(tmp_path):
    written(tmp_path / "a.tif", "GTiff")
    rasterio.shutil.copy(str(tmp_path / "a.tif"), str(tmp_path / "a.vrt"), driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    text = text.replace('XSize="80"', 'XSize="900"').replace('YSize="60"', 'YSize="900"')
    many = " ".join(map(str, range(2, 200)))
    for listed, count in ((many, 198), ("2 4 8", 0)):
        more = f"<OverviewList>{listed}</OverviewList></VRTDataset>"
        (tmp_path / "a.vrt").write_text(text.replace("</VRTDataset>", more))
        if count:
            assert f"has {count} overviews" in refused(tmp_path / "a.vrt")
        else:
            Scene.open(tmp_path / "a.vrt").close()


def test_a_zarr_of_a_million_files_is_refused(tmp_path):
    about = {"zarr_format": 2, "shape": [3000, 1300], "chunks": [1, 1], "dtype": "|u1",
             "compressor": None, "fill_value": 0, "order": "C", "filters": None}  # fmt: skip
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(about))
    (tmp_path / "a.zarr" / "0.0").write_bytes(b"x")
    assert "3,900,000 blocks of 1 x 1; the most is 200,000" in refused(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("height", "width", "block"),
    [(0, 5, (1, 1)), (5, -1, (1, 1)), (-1, -1, (1, 1)), (5, 5, (0, 1))],
)
def test_sides_below_one_are_refused(height, width, block):
    dataset = SimpleNamespace(height=height, width=width, count=1, block_shapes=[block])
    with pytest.raises(ImageError, match="pixels: copy or download it again"):
        check_size("a", dataset)


def test_weather_fields_are_no_pictures(tmp_path):
    (tmp_path / "a.grb2").write_bytes(b"GRIB\0\0\0\2" + bytes(8) + b"7777")
    assert "not recognized" in refused(tmp_path / "a.grb2")
