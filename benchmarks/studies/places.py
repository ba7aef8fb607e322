"""Areas and polygons of masks all over the Earth against PROJ's own geodesics.

    python -m geomag_edge.benchmarks.studies.places [-o benchmarks/results/places.md]

For every coordinate system and place a few masks (a block, a block with a hole, noise, one thin
line) are written as GeoJSON. Their `area_m2` is compared with the truth: every edge of the mask's
pixels sampled at many points, each taken to the ground by pyproj, the area between geodesics
through them by GeographicLib, which knows the poles and 180 degrees, summed over the pixels. Its
own rounding is 1e-6 m2 a pixel or so, which allows pixels of a metre, not of centimetres. Checked
besides: polygons are valid, lie in -180..180, run counterclockwise, and hold the centres of the
mask's pixels and of no others. Needs pyproj; nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import from_origin

from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.disk.staging import write_whole
from geomag_edge.runtime.answers.geojson import feature_collection
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.images.georef import Georef

GEOD = pyproj.Geod(ellps="WGS84")
GOES = "+proj=geos +h=35786023 +lon_0=-75 +sweep=x +ellps=GRS80"
METEOSAT = "+proj=geos +h=35785831 +lon_0=140.7 +sweep=y +ellps=WGS84"
ROTATED = "+proj=ob_tran +o_proj=longlat +o_lat_p=39.25 +lon_0=18 +datum=WGS84"
SIDE = 24
"""Pixels of a mask's side."""


@dataclass(frozen=True)
class Place:
    """An image of SIDE x SIDE pixels."""

    name: str
    crs: str
    transform: Affine


def around(crs: str, lon: float, lat: float, px: float) -> Affine:
    """A north-up transform of pixels of `px` units whose middle lies at a longitude and latitude,
    off the grid by a third of a pixel."""
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_crs.transform(lon, lat)
    return from_origin(x - (SIDE / 2 + 0.33) * px, y + (SIDE / 2 + 0.33) * px, px, px)


def middle(crs: str, px: float, x: float = 0.0, y: float = 0.0) -> Affine:
    """The same around a point of the CRS, which is the corner of four pixels."""
    return from_origin(x - SIDE / 2 * px, y + SIDE / 2 * px, px, px)


def places() -> Iterator[Place]:
    """Coordinate systems and places: ordinary ones, and where the sphere shows."""
    for name, crs, lon, lat, px in (
        ("UTM 33N", "EPSG:32633", 15.4, 37.0, 10),
        ("UTM 33N, 1 m", "EPSG:32633", 15.4, 37.0, 1),
        ("UTM 33N, 10 km pixels", "EPSG:32633", 13.0, 60.0, 10_000),
        ("UTM 1N over 180", "EPSG:32601", 180.0, 69.0, 436),
        ("UTM 60N over 180", "EPSG:32660", 180.0, 0.05, 4),
        ("UTM 60S over 180, Fiji", "EPSG:32760", 180.0, -17.0, 10),
        ("UTM 1N at 83.9 N over 180", "EPSG:32601", 180.0, 83.9, 1000),
        ("polar stereographic at 180", "EPSG:3413", 180.0, 75.0, 10),
        ("polar stereographic, pole off the grid", "EPSG:3413", 0.0, 90.0, 400),
        ("polar stereographic, 25 km pixels", "EPSG:3413", 30.0, 89.0, 25_000),
        ("Antarctic at 180", "EPSG:3031", 180.0, -80.0, 100),
        ("Antarctic, pole inside", "EPSG:3031", 77.0, -89.97, 400),
        ("Arctic 3995, pole inside", "EPSG:3995", 10.0, 89.9, 10_000),
        ("UPS North, pole inside", "EPSG:32661", 10.0, 89.999, 30),
        ("Arctic LAEA 3571, at 180 and pole", "EPSG:3571", 0.0, 90.0, 30_000),
        ("EASE 2.0 North", "EPSG:6931", 100.0, 89.95, 3000),
        ("EASE 2.0 global", "EPSG:6933", 180.0, 60.0, 25_000),
        ("Mercator 41, Pacific", "EPSG:3832", 180.0, 30.0, 40),
        ("Web Mercator", "EPSG:3857", 100.0, 40.0, 0.3),
        ("Web Mercator, 70 N, zoom 5", "EPSG:3857", 100.0, 70.0, 4891),
        ("Web Mercator beyond 180", "EPSG:3857", 179.9999, 60.0, 1000),
        ("WGS 84 at 180", "EPSG:4326", 180.0, -17.0, 0.001),
        ("WGS 84, 1 degree pixels", "EPSG:4326", 20.0, 60.0, 1.0),
        ("WGS 84, at the pole", "EPSG:4326", 20.0, 89.0, 0.08),
        ("Albers, USA", "EPSG:5070", -120.0, 47.0, 30),
        ("LAEA Europe", "EPSG:3035", -9.0, 52.0, 100),
        ("LCC Europe", "EPSG:3034", 30.0, 70.0, 1000),
        ("Alaska Albers over 180", "EPSG:3338", 180.0, 52.0, 1000),
        ("NZTM (north, east axes)", "EPSG:2193", 178.0, -37.5, 5),
        ("Gauss-Krueger 31467 (swapped axes)", "EPSG:31467", 9.0, 49.0, 1),
        ("South African Lo (south, west axes)", "EPSG:2053", 29.5, -26.0, 1),
        ("State plane, US feet", "EPSG:2263", -74.0, 40.7, 1),
        ("Chukotka TM over 180", "EPSG:28462", 180.0, 66.0, 50),
        ("sinusoidal (MODIS)", "+proj=sinu +R=6371007.181 +units=m +no_defs", 60.0, 50.0, 463.3),
        ("GOES, 2 km", GOES, -95.0, 40.0, 2004),
        ("GOES near the limb", GOES, -140.0, 30.0, 2004),
        ("Meteosat over 180", METEOSAT, 180.0, 20.0, 4000),
        ("Mollweide, 100 km", "+proj=moll +datum=WGS84", 90.0, 50.0, 100_000),
        ("Equal Earth at 180", "+proj=eqearth +lon_0=150 +datum=WGS84", 180.0, 40.0, 10_000),
        ("Oblique Mercator", "EPSG:3375", 102.0, 4.0, 30),
    ):  # fmt: skip
        yield Place(name, crs, around(crs, lon, lat, px))
    yield Place("rotated pole", ROTATED, from_origin(-5.0, 5.0, 0.11, 0.11))
    yield Place("Antarctic, pole on a pixel corner", "EPSG:3031", middle("EPSG:3031", 400))
    yield Place("Arctic, pole on a pixel edge", "EPSG:3413", middle("EPSG:3413", 250, y=125))
    yield Place("Arctic, pole in a pixel's middle", "EPSG:3413", middle("EPSG:3413", 250, 125, 125))
    turned = Affine.translation(400_000, 7_650_000) * Affine.rotation(31) * Affine.scale(60, -60)
    yield Place("UTM 1N, turned", "EPSG:32601", turned)
    yield Place("UTM 1N, sheared", "EPSG:32601", Affine(60, 25, 400_000, 10, -50, 7_650_000))
    yield Place("UTM 60N over 180, south up", "EPSG:32660", Affine(4, 0, 833_900, 0, 4, 9_950))
    yield Place(
        "Antarctic, pole inside, south up", "EPSG:3031", Affine(400, 0, -4930, 0, 400, -4930)
    )
    yield Place("longitude 200", "EPSG:4326", from_origin(199.9, 10, 0.01, 0.01))
    yield Place("longitude -200", "EPSG:4326", from_origin(-200, 10, 0.01, 0.01))
    yield Place("179.99 to 180.01", "EPSG:4326", from_origin(179.99, -17, 0.02 / SIDE, 0.02 / SIDE))
    yield Place("0 to 360, over 180", "EPSG:4326", from_origin(0, 60, 360 / SIDE, 120 / SIDE))


def masks() -> dict[str, NDArray[np.bool_]]:
    """Masks [SIDE,SIDE]; the middle of the image is in all of them but "hole"."""
    y, x = np.mgrid[:SIDE, :SIDE]
    half = SIDE // 2
    block = (abs(y - half + 0.5) < 9) & (abs(x - half + 0.5) < 7)
    noise = np.random.default_rng(0).random((SIDE, SIDE)) < 0.55
    line = (y == half) | (x == half - 1)
    corner = block & ~((y >= half) & (x >= half))
    return {
        "block": block,
        "hole": block & ~((abs(y - half) < 5) & (abs(x - half) < 4)),
        "noise": noise,
        "line": line,
        "corner": corner,
        "whole": np.ones((SIDE, SIDE), bool),
    }


def mask_of(pixels: NDArray[np.bool_]) -> Mask:
    """A Mask that is exactly these pixels [n,n]."""
    n = len(pixels)
    logits = np.where(pixels, 1, -1).astype(np.float32)[None]
    return Mask((n, n), [[0, 0, n, n]], logits, np.ones(1), 1.0)


def pixel_areas(place: Place, samples: int = 64) -> NDArray[np.float64]:
    """m2 on the ground of every pixel [SIDE,SIDE], from `samples` points on each of its edges."""
    to_ground = pyproj.Transformer.from_crs(place.crs, "EPSG:4326", always_xy=True)
    share = np.arange(samples) / samples
    zero, one = np.zeros(samples), np.ones(samples)
    edge_x = np.concatenate([share, one, 1 - share, zero])
    edge_y = np.concatenate([zero, share, one, 1 - share])
    row, col = (v.reshape(-1, 1) for v in np.mgrid[:SIDE, :SIDE])
    ground = to_ground.transform(*(place.transform * (col + edge_x, row + edge_y)))
    areas = [abs(GEOD.polygon_area_perimeter(*ring)[0]) for ring in zip(*ground, strict=True)]
    return np.array(areas).reshape(SIDE, SIDE)


def wrong_pixels(geometry: Any, pixels: NDArray[np.bool_], place: Place) -> int:
    """Pixels whose centre is inside the polygons but not of the mask, or the other way round."""
    to_ground = pyproj.Transformer.from_crs(place.crs, "EPSG:4326", always_xy=True)
    y, x = np.mgrid[: len(pixels), : len(pixels)] + 0.5
    lon, lat = to_ground.transform(*(place.transform * (x.ravel(), y.ravel())))
    lon = (np.asarray(lon) + 180) % 360 - 180
    inside = shapely.intersects_xy(geometry, lon, lat)
    return int((inside.reshape(pixels.shape) != pixels).sum())


def check(place: Place, pixels: NDArray[np.bool_], areas: NDArray[np.float64]) -> dict[str, Any]:
    """What the GeoJSON of one mask says, against the true areas of pixels."""
    mask = mask_of(pixels)
    georef = Georef(CRS.from_user_input(place.crs), place.transform)
    collection = json.loads(json.dumps(feature_collection([mask], ["x"], georef)))
    (feature,) = collection["features"]
    geometry = shapely.geometry.shape(feature["geometry"])
    truth = areas[pixels].sum()
    west, south, east, north = geometry.bounds
    parts = shapely.get_parts(geometry)
    return {
        "error": abs(feature["properties"]["area_m2"] / truth - 1),
        "wrong_px": wrong_pixels(geometry, pixels, place),
        "valid": bool(geometry.is_valid),
        "inside": west >= -180 and east <= 180 and south >= -90 and north <= 90,
        "right_handed": all(part.exterior.is_ccw for part in parts),
        "points": int(shapely.get_num_coordinates(geometry)),
        "parts": len(parts),
        "coordinates": collection["geomag_coordinates"],
    }


def main() -> None:
    """Checks all places and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    lines = [
        "| place | CRS | worst area error | wrong px | valid, -180..180, right-handed | points |",
        "|---|---|---|---|---|---|",
    ]
    worst, wrong = 0.0, 0
    for place in places():
        areas = pixel_areas(place)
        rows = [check(place, pixels, areas) for pixels in masks().values()]
        error = max(row["error"] for row in rows)
        bad = sum(row["wrong_px"] for row in rows)
        sound = all(row["valid"] and row["inside"] and row["right_handed"] for row in rows)
        points = max(row["points"] for row in rows)
        worst, wrong = max(worst, error if math.isfinite(error) else math.inf), wrong + bad
        code = place.crs if place.crs.startswith("EPSG") else place.crs.split()[0]
        sound_too = "yes" if sound else "NO"
        lines.append(f"| {place.name} | {code} | {error:.1e} | {bad} | {sound_too} | {points} |")
        print(lines[-1], flush=True)
    summary = {"places": len(lines) - 2, "worst_area_error": worst, "wrong_px": wrong}
    if args.output:
        text = __doc__.split("\n\n", 1)
        command = "python -m geomag_edge.benchmarks.studies.places -o benchmarks/results/places.md"
        head = f"# {text[0]}\n\n    {command}\n"
        body = text[1].split("\n\n", 1)[1]
        host = [described(machine(None, ("rasterio", "shapely", "pyproj", "numpy"))) + ".", ""]
        page = [head, body, *host, *lines, "", json.dumps(summary), ""]
        write_whole(args.output, "\n".join(page))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
