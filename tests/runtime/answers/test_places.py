"""masks.geojson all over the Earth: 180 degrees, poles, edges of world maps, any CRS."""

import functools
import json

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import from_origin

from geomag_edge.benchmarks.studies import places
from geomag_edge.runtime.answers.geojson import feature_collection
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.images.georef import Georef

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

GEOD = pyproj.Geod(ellps="WGS84")
EARTH_M2 = 510_065_621_724_088.44
PLACES = {place.name: place for place in places.places()}
MASKS = places.masks()
SINUSOIDAL = "+proj=sinu +R=6371007.181 +units=m +no_defs"
GOES = places.GOES


def feature_of(mask, crs, transform, notes=()):
    """The feature of one mask, checked for what must hold everywhere; and its polygons."""
    georef = Georef(CRS.from_user_input(crs), transform)
    data = json.loads(json.dumps(feature_collection([mask], ["x"], georef)))
    assert data["geomag_coordinates"] == "wgs84"
    assert len(data["geomag_notes"]) == len(notes)
    for note, part in zip(data["geomag_notes"], notes, strict=True):
        assert part in note
    (feature,) = data["features"]
    if feature["geometry"] is None:
        return feature, shapely.MultiPolygon()
    geometry = shapely.geometry.shape(feature["geometry"])
    assert geometry.is_valid, shapely.is_valid_reason(geometry)
    west, south, east, north = geometry.bounds
    assert west >= -180
    assert east <= 180
    assert south >= -90
    assert north <= 90
    for part in shapely.get_parts(geometry):
        assert part.exterior.is_ccw
        assert not any(ring.is_ccw for ring in part.interiors)
    return feature, geometry


def rectangle(height, width, x0=0, y0=0, x1=None, y1=None):
    """A mask of all pixels, or of those in a box."""
    box = [x0, y0, width if x1 is None else x1, height if y1 is None else y1]
    return Mask((height, width), [box], np.ones((1, 4, 4), np.float32), np.ones(1), 1.0)


@functools.cache
def true_areas(name):
    return places.pixel_areas(PLACES[name], samples=32)


@pytest.mark.parametrize("name", PLACES)
def test_areas_and_polygons_are_right_all_over_the_earth(name):
    for kind in ("hole", "noise", "corner", "line"):
        found = places.check(PLACES[name], MASKS[kind], true_areas(name))
        assert found["error"] < 1e-4, kind
        assert found["wrong_px"] == 0, kind
        assert found["valid"], kind
        assert found["inside"], kind
        assert found["right_handed"], kind
        assert found["coordinates"] == "wgs84", kind


@pytest.mark.parametrize(
    ("crs", "transform", "shape"),
    [
        ("EPSG:4326", from_origin(-180, 90, 1, 1), (180, 360)),
        ("EPSG:4326", from_origin(0, 90, 1, 1), (180, 360)),
        ("EPSG:4326", from_origin(-180.25, 90.25, 0.5, 0.5), (361, 721)),
        ("EPSG:4326", from_origin(-0.25, 90.25, 0.5, 0.5), (361, 721)),
        ("EPSG:4326", Affine(1, 0, -180, 0, 1, -90), (180, 360)),
        ("EPSG:4267", from_origin(-0.25, 90.25, 0.5, 0.5), (361, 721)),
        ("EPSG:4087", from_origin(-20037508.3428, 10018754.1714, 1e5, 1e5), (201, 401)),
    ],
)
def test_a_mask_of_the_whole_globe_is_the_whole_globe(crs, transform, shape):
    feature, geometry = feature_of(rectangle(*shape), crs, transform)
    assert geometry.bounds == pytest.approx((-180, -90, 180, 90), abs=1e-3)
    assert feature["properties"]["area_m2"] == pytest.approx(EARTH_M2, rel=1e-4)
    assert geometry.geom_type == "Polygon"


@pytest.mark.parametrize(
    ("crs", "px", "share"),
    [
        (SINUSOIDAL, 50_000, 0.99),
        ("+proj=moll +datum=WGS84", 50_000, 0.99),
        ("+proj=moll +lon_0=150 +datum=WGS84", 50_000, 0.99),
        ("+proj=robin +datum=WGS84", 50_000, 0.99),
        ("+proj=igh +datum=WGS84", 50_000, 0.99),
        ("+proj=aeqd +lat_0=40 +lon_0=-100 +datum=WGS84", 100_000, 0.99),
        ("EPSG:3408", 50_000, 0.99),
        (GOES, 30_000, 0.37),
        (places.METEOSAT, 30_000, 0.37),
        ("+proj=ortho +lat_0=60 +lon_0=170 +datum=WGS84", 50_000, 0.44),
    ],
)
def test_a_world_map_loses_no_more_than_the_pixels_on_its_edge(crs, px, share):
    half = 21_000_000 // px
    transform = from_origin(-half * px, half * px, px, px)
    feature, geometry = feature_of(
        rectangle(2 * half, 2 * half), crs, transform, ["lie off the Earth"]
    )
    ceiling = {0.99: 1.0, 0.37: 0.43, 0.44: 0.5}[share]
    assert share < feature["properties"]["area_m2"] / EARTH_M2 < ceiling
    # Points of the Earth that are well inside the map are in its mask.
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 4000), np.degrees(np.arcsin(rng.uniform(-1, 1, 4000)))
    there = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = there.transform(lon, lat)
    back = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    inside = np.ones(len(x), bool)
    for dx, dy in [(2 * px, 0), (-2 * px, 0), (0, 2 * px), (0, -2 * px)]:
        again = there.transform(*back.transform(x + dx, y + dy))
        with np.errstate(invalid="ignore"):
            inside &= np.hypot(again[0] - x - dx, again[1] - y - dy) < 1000
    assert inside.sum() > 1000
    assert shapely.contains_xy(geometry, lon[inside], lat[inside]).all()


def test_a_mask_in_the_middle_of_a_full_disk_has_longitude_and_latitude():
    transform = from_origin(-5434894, 5434894, 42458.8, 42458.8)
    feature, geometry = feature_of(rectangle(256, 256, 88, 88, 168, 168), GOES, transform)
    assert geometry.centroid.x == pytest.approx(-75, abs=0.01)
    assert feature["properties"]["area_m2"] > 80 * 80 * 42458.8**2


def test_a_mask_on_the_limb_keeps_its_part_on_the_earth_and_one_beyond_has_none():
    transform = from_origin(-5434894, 5434894, 42458.8, 42458.8)
    notes = ["lie off the Earth"]
    feature, geometry = feature_of(rectangle(256, 256, 0, 100, 60, 160), GOES, transform, notes)
    assert geometry.area > 100
    assert feature["properties"]["area_px"] == 3600
    notes = ["100 px of mask 1"]
    feature, _ = feature_of(rectangle(256, 256, 0, 0, 10, 10), GOES, transform, notes)
    assert feature["geometry"] is None
    assert feature["properties"]["area_m2"] == 0
    feature, _ = feature_of(
        rectangle(5, 5), "EPSG:4326", from_origin(0, 100, 1, 1), ["has no polygon"]
    )
    assert feature["geometry"] is None


def test_an_answer_without_masks_names_the_coordinates_of_the_disk_it_saw():
    georef = Georef(CRS.from_user_input(GOES), from_origin(-5434894, 5434894, 42458.8, 42458.8))
    assert feature_collection([], [], georef, (256, 256))["geomag_coordinates"] == "wgs84"


def test_an_image_that_lies_wholly_off_the_earth_says_so():
    georef = Georef(CRS.from_user_input(GOES), from_origin(-9e6, 9e6, 1000, 1000))
    data = feature_collection([rectangle(10, 10)], ["x"], georef)
    assert data["geomag_coordinates"] == "native"
    assert "no part of the image lies on the Earth" in data["geomag_notes"][0]


def test_a_map_may_go_on_past_its_own_180_degrees():
    feature, geometry = feature_of(
        rectangle(40, 60), "EPSG:3857", from_origin(19_500_000, 200_000, 1e4, 1e4)
    )
    assert geometry.geom_type == "MultiPolygon"
    assert len(geometry.geoms) == 2
    feature, _ = feature_of(
        rectangle(400, 600), "EPSG:3857", from_origin(-30e6, 20_037_508, 1e5, 1e5)
    )
    assert feature["properties"]["area_m2"] == pytest.approx(EARTH_M2 * 0.9962, rel=1e-3)


CRSS = [
    # CRS, longitudes, latitudes, metres of a pixel
    ("EPSG:32601", (177, 183), (-2, 84), (10, 5000)),
    ("EPSG:32760", (173, 187), (-80, 2), (10, 5000)),
    ("EPSG:3031", (-180, 180), (-90, -60), (10, 50_000)),
    ("EPSG:3413", (-180, 180), (55, 90), (10, 50_000)),
    ("EPSG:3571", (-180, 180), (50, 90), (10, 50_000)),
    ("EPSG:3832", (170, 190), (-60, 60), (10, 10_000)),
    ("EPSG:3338", (165, 195), (50, 70), (10, 10_000)),
    ("EPSG:6933", (-179, 179), (-70, 70), (10, 10_000)),
    (places.METEOSAT, (150, 190), (-50, 50), (500, 10_000)),
    ("EPSG:4326", (-400, 400), (-89, 89), (1e-4, 0.04)),
]


@settings(max_examples=40)
@given(st.data())
def test_any_rectangle_of_pixels_is_where_pyproj_has_it(data):
    crs, lons, lats, sizes = data.draw(st.sampled_from(CRSS))
    number = functools.partial(st.floats, allow_subnormal=False)
    lon, lat = data.draw(number(*lons)), data.draw(number(*lats))
    px = float(np.exp(data.draw(number(*np.log(sizes)))))
    x0, y0 = data.draw(st.integers(0, 15)), data.draw(st.integers(0, 15))
    x1, y1 = data.draw(st.integers(x0 + 1, 16)), data.draw(st.integers(y0 + 1, 16))
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    turn = data.draw(st.sampled_from([0, 0, 30, 90]))
    up = data.draw(st.sampled_from([-1, -1, 1]))
    transform = Affine.translation(x, y) * Affine.rotation(turn) * Affine.scale(px, px * up)
    transform = transform * Affine.translation(-8, -8)
    feature, geometry = feature_of(rectangle(16, 16, x0, y0, x1, y1), crs, transform)

    to_ground = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    share = np.arange(2000) / 2000
    zero, one = np.zeros(2000), np.ones(2000)
    edge_x = x0 + (x1 - x0) * np.concatenate([share, one, 1 - share, zero])
    edge_y = y0 + (y1 - y0) * np.concatenate([zero, share, one, 1 - share])
    truth = abs(
        GEOD.polygon_area_perimeter(*to_ground.transform(*(transform * (edge_x, edge_y))))[0]
    )
    assert feature["properties"]["area_m2"] == pytest.approx(truth, rel=1e-4, abs=1e-6)

    rng = np.random.default_rng(0)
    px_x, px_y = rng.uniform(0, 16, (2, 500))
    inside = (px_x > x0) & (px_x < x1) & (px_y > y0) & (px_y < y1)
    off = np.minimum.reduce([abs(px_x - x0), abs(px_x - x1), abs(px_y - y0), abs(px_y - y1)])
    at_lon, at_lat = to_ground.transform(*(transform * (px_x, px_y)))
    at_lon = (np.asarray(at_lon) + 180) % 360 - 180
    found = shapely.contains_xy(geometry, at_lon, at_lat)
    assert (found == inside)[off > 0.01].all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crs", ["EPSG:3031", "EPSG:3413", "EPSG:3571"])
def test_a_ring_round_a_pole_may_cross_180_degrees_on_its_way_there_and_back(crs, flip):
    pixels = np.zeros((24, 24), bool)
    pixels[8:16, 8:16] = True  # the pole, and then a hook on every side of it
    pixels[8:21, 16] = pixels[19, 5:16] = pixels[3:9, 8] = pixels[3, 8:20] = True
    pixels[15, 3:9] = pixels[4:16, 3] = pixels[8, 15:21] = pixels[8:19, 20] = True
    pixels = pixels[:, ::-1] if flip else pixels
    transform = from_origin(-12.3 * 400, 11.6 * 400, 400, 400)
    place = places.Place("hooks", crs, transform)
    found = places.check(place, pixels, places.pixel_areas(place, samples=32))
    assert found["error"] < 1e-4
    assert found["wrong_px"] == 0
    assert found["valid"]


@settings(max_examples=12)
@given(
    st.sampled_from(["EPSG:3031", "EPSG:3413", "EPSG:32661", "EPSG:3571"]),
    st.sampled_from([30, 400, 5000]),
    st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    st.sampled_from([0.4, 0.6, 0.9]),
    st.integers(0, 1000),
)
def test_any_mask_near_a_pole_is_where_pyproj_has_it(crs, px, pole, share, seed):
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_crs.transform(0, -90 if crs == "EPSG:3031" else 90)
    transform = from_origin(x - (12 + pole[0]) * px, y + (12 + pole[1]) * px, px, px)
    place = places.Place("pole", crs, transform)
    pixels = np.random.default_rng(seed).random((24, 24)) < share
    found = places.check(place, pixels, places.pixel_areas(place, samples=16))
    assert found["error"] < 1e-4
    assert found["wrong_px"] == 0
    assert found["valid"]
    assert found["inside"]
    assert found["right_handed"]
