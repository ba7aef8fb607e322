"""Where pixels lie: control points, rational polynomials, half a georeference, no way to WGS 84."""

import json

import attrs
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import GCPTransformer, RPCTransformer, from_origin

from geomag_edge.runtime.answers.geojson import feature_collection
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.answers.outputs import write_outputs
from geomag_edge.runtime.answers.overlay import Looked
from geomag_edge.runtime.images.georef import Georef
from geomag_edge.runtime.images.scene import Scene

pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "error::RuntimeWarning"
)
WGS84 = CRS.from_epsg(4326)
SHAPE = 120, 160


def box_mask(x0=40, y0=30, x1=80, y1=60):
    return Mask(SHAPE, [[x0, y0, x1, y1]], np.ones((1, 4, 4), np.float32), np.ones(1), 1.0)


def placed(georef, mask=None):
    """The collection as JSON has it, and the points [n,2] of its first polygon."""
    data = feature_collection([mask or box_mask()], ["x"], georef)
    data = json.loads(json.dumps(data))
    geometry = data["features"][0]["geometry"]
    rings = geometry["coordinates"][0]
    return data, np.array(rings[0] if geometry["type"] == "MultiPolygon" else rings)


def grid_of_points(to_ground, step=40):
    return tuple(
        GroundControlPoint(row, col, *to_ground(col, row))
        for row in range(0, SHAPE[0] + 1, step)
        for col in range(0, SHAPE[1] + 1, step)
    )


def corners_among(points, expected):
    """Whether every expected point is one of a ring's."""
    off = np.abs(points[None] - np.array(expected)[:, None]).max(axis=2).min(axis=1)
    return (off < 1e-6).all()


def rpc(height_off=320.0):
    """A sensor that looks aside: a point moves by height."""
    return RPC(
        height_off=height_off, height_scale=500, lat_off=40, lat_scale=0.1, long_off=10,
        long_scale=0.1, line_off=60, line_scale=60, samp_off=80, samp_scale=80, err_bias=1,
        err_rand=1, line_num_coeff=[0.0, 0, -1, 0.1, *[0.0] * 16],
        line_den_coeff=[1.0, *[0.0] * 19], samp_num_coeff=[0.0, 1, 0, 0.2, *[0.0] * 16],
        samp_den_coeff=[1.0, *[0.0] * 19],
    )  # fmt: skip


def test_control_points_give_approximate_longitude_and_latitude_with_their_error():
    points = grid_of_points(lambda x, y: (10 + 1e-5 * x + 2e-6 * y, 50 - 1e-5 * y + 1e-6 * x))
    data, ring = placed(Georef(WGS84, None, points))
    assert data["geomag_coordinates"] == "wgs84"
    assert data["features"][0]["properties"]["area_m2"] > 0
    (note,) = data["geomag_notes"]
    assert "approximate" in note
    assert "20 ground control points" in note
    assert "0.00 px" in note
    with GCPTransformer(points) as gdal:
        x, y = gdal.xy([30, 30, 60, 60], [40, 80, 80, 40], offset="ul")
    assert corners_among(ring, list(zip(x, y, strict=True)))


def test_control_points_that_disagree_say_by_how_much():
    points = list(grid_of_points(lambda x, y: (10 + 1e-5 * x, 50 - 1e-5 * y)))
    points[7].x += 1e-4  # ten pixels
    (note,) = placed(Georef(WGS84, None, tuple(points)))[0]["geomag_notes"]
    missed = float(note.split("misses by ")[1].split(" px")[0])
    assert 0.5 < missed < 10


def test_control_points_in_metres_go_through_their_crs():
    points = grid_of_points(lambda x, y: (500_000 + 10 * x, 4_100_000 - 10 * y))
    data, ring = placed(Georef(CRS.from_epsg(32633), None, points))
    straight, expected = placed(
        Georef(CRS.from_epsg(32633), from_origin(500_000, 4_100_000, 10, 10))
    )
    assert corners_among(ring, expected)
    areas = [d["features"][0]["properties"]["area_m2"] for d in (data, straight)]
    assert areas[0] == pytest.approx(areas[1], rel=1e-5)


@pytest.mark.parametrize("lat", [-17.0, 79.0, 89.5, -89.5])
def test_control_points_may_lie_on_both_sides_of_180_degrees_and_round_a_pole(lat):
    plane = CRS.from_proj4(f"+proj=laea +lat_0={lat} +lon_0=180 +datum=WGS84")
    transform = from_origin(-80_000, 60_000, 1000, 1000)

    def ground(x, y):
        lon, lat = rasterio.warp.transform(plane, WGS84, *([v] for v in transform * (x, y)))[:2]
        return (lon[0] + 180) % 360 - 180, lat[0]

    mask = box_mask(70, 50, 90, 70)
    data, _ = placed(Georef(WGS84, None, grid_of_points(ground)), mask)
    area = data["features"][0]["properties"]["area_m2"]
    assert area == pytest.approx(400e6, rel=0.01)
    assert data["features"][0]["geometry"]["type"] == "MultiPolygon" or abs(lat) > 89


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([(0, 0, 10, 50)], "1 ground control points that fix no place"),
        ([(i, i, 10 + i, 50 + i) for i in range(5)], "not solvable"),
        ([(0, 0, 10, 50)] * 6, "6 ground control points that fix no place"),
    ],
)
def test_control_points_that_fix_no_place_leave_pixels_and_a_note(points, why, capfd):
    points = tuple(GroundControlPoint(*p) for p in points)
    data, ring = placed(Georef(WGS84, None, points))
    assert data["geomag_coordinates"] == "pixel"
    assert ring.min(axis=0).tolist() == [40, 30]
    (note,) = data["geomag_notes"]
    assert why in note
    assert capfd.readouterr().err == ""


def test_rational_polynomials_take_the_ground_at_their_mean_height_and_say_so():
    data, ring = placed(Georef(None, None, (), rpc()))
    assert data["geomag_coordinates"] == "wgs84"
    (note,) = data["geomag_notes"]
    assert "320 m above the ellipsoid" in note
    with RPCTransformer(rpc(), RPC_HEIGHT=320, RPC_PIXEL_ERROR_THRESHOLD=1e-6) as gdal:
        x, y = gdal.xy([30, 30, 60, 60], [40, 80, 80, 40], offset="ul")
    assert corners_among(ring, list(zip(x, y, strict=True)))
    assert len(ring) == 5
    flat, _ = placed(Georef(None, None, (), rpc(0.0)))
    assert "0 m above the ellipsoid" in flat["geomag_notes"][0]


def test_a_world_file_without_a_crs_stays_in_pixels_and_says_why(tmp_path):
    Image.new("RGB", SHAPE[::-1]).save(tmp_path / "a.jpg")
    (tmp_path / "a.jgw").write_text("1.0\n0\n0\n-1.0\n400300.5\n1699699.5\n")
    with Scene.open(tmp_path / "a.jpg") as scene:
        data, ring = placed(scene.georef)
    assert data["geomag_coordinates"] == "pixel"
    assert ring.min(axis=0).tolist() == [40, 30]
    assert "names no CRS" in data["geomag_notes"][0]


@pytest.mark.parametrize(
    ("georef", "why"),
    [
        (Georef(CRS.from_epsg(32633), None), "not where its pixels lie"),
        (Georef(None, None, grid_of_points(lambda x, y: (x, y))), "names no CRS for them"),
    ],
)
def test_half_a_georeference_stays_in_pixels_and_says_what_is_missing(georef, why):
    data, _ = placed(georef)
    assert data["geomag_coordinates"] == "pixel"
    assert why in data["geomag_notes"][0]


def test_an_image_that_claims_no_place_needs_no_note():
    data, _ = placed(Georef())
    assert data["geomag_coordinates"] == "pixel"
    assert data["geomag_notes"] == []


@pytest.mark.parametrize(
    ("crs", "name"),
    [
        (CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]'), "site grid"),
        (CRS.from_user_input("IAU_2015:30100"), "Moon"),
        (
            CRS.from_wkt(
                'ENGCRS["drone site",EDATUM["pad"],CS[Cartesian,2],AXIS["x",east],'
                'AXIS["y",north],LENGTHUNIT["metre",1]]'
            ),
            "drone site",
        ),
    ],
)
def test_a_crs_with_no_way_to_wgs84_is_named(crs, name):
    data, ring = placed(Georef(crs, from_origin(100, 80, 0.5, 0.5)))
    assert data["geomag_coordinates"] == "native"
    assert ring.min(axis=0).tolist() == [120, 50]
    (note,) = data["geomag_notes"]
    assert note.startswith("nothing relates")
    assert name in note


def broken_rpc(**changes):
    return Georef(None, None, (), RPC(**(attrs.asdict(rpc()) | changes)))


def gcps(crs, *points):
    return Georef(crs, None, tuple(GroundControlPoint(*p) for p in points))


CORNERS = [(0, 0, 10.0, 50.0), (0, 160, 11, 50), (120, 0, 10, 49), (120, 160, 11, 49)]
ECEF = CRS.from_epsg(4978)
UTM = CRS.from_epsg(32633)


@pytest.mark.parametrize(
    ("georef", "coordinates"),
    [
        (broken_rpc(line_scale=0.0), "pixel"),
        (broken_rpc(lat_scale=0.0, long_scale=0.0), "pixel"),
        (broken_rpc(line_num_coeff=[0.0] * 20, samp_num_coeff=[0.0] * 20), "pixel"),
        (broken_rpc(line_den_coeff=[0.0] * 20), "pixel"),
        (broken_rpc(lat_off=np.nan), "pixel"),
        (Georef(UTM, Affine(10, 0, 500000, 0, 0, 5000000)), "pixel"),
        (Georef(UTM, Affine(0, 0, 500000, 0, 0, 5000000)), "pixel"),
        (Georef(UTM, Affine(0.1, 0.3, 500000, 0.3, 0.9, 5000000)), "pixel"),
        (Georef(WGS84, Affine(np.nan, 0, 10, 0, -1, 50)), "pixel"),
        (Georef(UTM, Affine(10, 0, np.inf, 0, -10, 5000000)), "pixel"),
        (Georef(ECEF, from_origin(4e6, 1e6, 10, 10)), "native"),
        (Georef(CRS.from_epsg(4920), from_origin(4e6, 1e6, 10, 10)), "native"),
        (Georef(CRS.from_epsg(7789), from_origin(4e6, 1e6, 10, 10)), "native"),
        (Georef(CRS.from_epsg(5773), from_origin(0, 0, 10, 10)), "native"),
        (gcps(ECEF, *[(r, c, x * 4e5, y * 1e4) for r, c, x, y in CORNERS]), "native"),
        (gcps(WGS84, *CORNERS, (60, 80, np.nan, 49.5)), "pixel"),
        (gcps(UTM, *CORNERS, (np.nan, 80, 10.5, 49.5)), "pixel"),
        (gcps(WGS84, *[(r, c, x, y * 1e9) for r, c, x, y in CORNERS]), "pixel"),
    ],
)
def test_a_place_that_is_none_never_costs_the_answer(tmp_path, capfd, georef, coordinates):
    with Scene.open(np.zeros((*SHAPE, 3), np.uint8)) as scene:
        scene.georef = georef
        view = [0, 0, SHAPE[1], SHAPE[1]]
        answer = {"text": "", "boxes": []}
        files = write_outputs(tmp_path, scene, answer, [box_mask()], ["x"], Looked(view))
    data = json.loads(files["polygons"].read_text())
    assert data["geomag_coordinates"] == coordinates
    assert data["features"][0]["geometry"] is not None
    note = data["geomag_notes"][-1]
    assert coordinates == "pixel" or "x and y alone name no place" in note
    assert "off the Earth" not in str(data["geomag_notes"])
    assert capfd.readouterr().err == ""
