"""Polygons on the ellipsoid as polygons of longitude and latitude (RFC 7946): cut at 180 degrees,
closed over the poles, longitudes in -180..180.
"""

from __future__ import annotations

import math

import numpy as np
import shapely
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from .curves import Ring
from .outline import F64, signed_area

WGS84_A, WGS84_E2 = 6378137.0, 0.0066943799901413165
EARTH = shapely.box(-180, -90, 180, 90)
GAUSS = np.polynomial.legendre.leggauss(3)
GRID_DEG = 1e-8
"""Coordinates are rounded to about a millimetre."""


def cut_polygon(rings: list[Ring], may_surround: bool = False) -> list[shapely.Polygon]:
    """One polygon of the ellipsoid, its exterior first, in parts between -180 and 180 degrees.

    `may_surround` says that it may be all but what its exterior goes round, as a map of the whole
    Earth around one point is.
    """
    exterior, *holes = rings = [ring for ring in rings if len(ring.at) >= 4]
    if not may_surround and all(_is_plain(ring) for ring in rings):
        polygon = shapely.Polygon(exterior.at, [hole.at for hole in holes])
        if polygon.is_valid:
            return [polygon]
    plane = _unrolled(exterior)
    shape = _filled(plane)
    if may_surround and signed_area(plane) < 0:
        shape = EARTH.difference(shape)
    for hole in holes:  # it is filled where it is on the left
        shape = shape.difference(_filled(_unrolled(Ring(hole.at[::-1], hole.pole[::-1]))))
    return parts_of(shape)


def _is_plain(ring: Ring) -> bool:
    """Whether a ring neither crosses 180 degrees nor goes round a pole or through it."""
    (west, south), (east, north) = ring.at.min(axis=0), ring.at.max(axis=0)
    inside = west >= -180 and east <= 180 and south >= -90 and north <= 90
    return inside and east - west < 180 and not ring.pole.any()


def _unrolled(ring: Ring) -> F64:
    """A ring in a plane where longitudes go on past 180.

    At a pole, where all longitudes meet, it runs along the edge of the plane: from the meridian
    that it came by to the one that it leaves by, or, if the pole lies inside, all the way round.
    """
    at, pole = ring.at[:-1], ring.pole[:-1]
    if pole.any():
        first = int(np.flatnonzero(pole == 0)[0])
        at, pole = np.roll(at, -first, axis=0), np.roll(pole, -first)
        twice = np.where(pole != 0, 2, 1)
        at, pole = np.repeat(at, twice, axis=0), np.repeat(pole, twice)
    steps = np.diff(at[:, 0], append=at[0, 0])
    steps -= 360 * np.round(steps / 360)
    for i in np.flatnonzero(pole)[::2]:
        # What the ring bounds is on its left: it runs west along the north pole, east along the
        # south pole.
        west = math.copysign(1, pole[i])
        came, leaves = at[i - 1, 0], at[(i + 2) % len(at), 0]
        steps[i - 1] = steps[i + 1] = 0
        steps[i] = -west * ((west * (came - leaves)) % 360)
        at[i : i + 2, 1] = pole[i]
    lon = at[0, 0] + np.append(0, np.cumsum(steps))
    plane = np.stack([lon, np.append(at[:, 1], at[0, 1])], axis=1)
    turn = round((lon[-1] - lon[0]) / 360)
    return _closed(plane, turn) if turn else plane


def _closed(plane: F64, turn: int) -> F64:
    """A ring that goes round a pole, eastwards round the north pole (`turn` 1) or westwards round
    the south pole (-1): from a point at 180 degrees to the same point and back over the pole.

    Of all points at 180 degrees it is the one next to the pole, so that nothing of the ring lies
    between them.
    """
    lon, lat = plane.T * np.array([[turn], [1]])  # eastwards
    strip = np.ceil((lon - 180) / 360)
    strip[-1] = strip[0] + 1  # whatever rounding says of a ring that begins at 180 degrees
    across = np.flatnonzero(strip[:-1] < strip[1:])
    cuts = 180 + 360 * strip[across]
    along = lon[across + 1] - lon[across]
    step = np.divide(cuts - lon[across], along, out=np.zeros(len(cuts)), where=along != 0)
    lats = lat[across] + (lat[across + 1] - lat[across]) * step
    nearest = np.argmax(lats * turn)
    i, cut, at_cut = across[nearest], cuts[nearest], lats[nearest]
    cut, again, pole = cut * turn, (cut + 360) * turn, 90 * turn
    seam = [(again, at_cut), (again, pole), (cut, pole), (cut, at_cut)]
    onwards = plane[: i + 1] + np.array([360 * turn, 0])
    return np.concatenate([seam[-1:], plane[i + 1 : -1], onwards, seam])


def _filled(ring: F64) -> BaseGeometry:
    """What a ring encloses, all parts moved into -180..180."""
    whole = shapely.Polygon(ring)
    if not whole.is_valid:
        whole = shapely.make_valid(whole)
    west, east = ring[:, 0].min(), ring[:, 0].max()
    turns = range(math.floor((west + 180) / 360), math.ceil((east + 180) / 360))
    parts = [
        translate(whole.intersection(shapely.box(360 * k - 180, -90, 360 * k + 180, 90)), -360 * k)
        for k in turns
    ]
    return shapely.union_all(parts)


def parts_of(shape: BaseGeometry) -> list[shapely.Polygon]:
    """The polygons of what a cut left, without lines, points and rounding's slivers."""
    least = shape.area * 1e-12
    return [
        part
        for part in shapely.get_parts(shapely.get_parts(shape))
        if part.geom_type == "Polygon" and part.area > least
    ]


def joined(polygons: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """Polygons that do not overlap or share an edge, as the first and last column of an image
    that goes round the Earth do."""
    if len(polygons) < 2 or shapely.MultiPolygon(polygons).is_valid:
        return polygons
    return parts_of(shapely.union_all(polygons))


def rounded(polygons: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """Coordinates on GRID_DEG, exteriors counterclockwise; polygons that would vanish stay."""
    out = []
    for polygon in polygons:
        out += parts_of(shapely.set_precision(polygon, GRID_DEG)) or [polygon]
    return [shapely.orient_polygons(polygon) for polygon in joined(out)]


def ellipsoid_area(polygons: list[shapely.Polygon]) -> float:
    """Area in m2 on the WGS 84 ellipsoid; edges are straight in longitude and latitude.

    Sums strips between edges and the parallel through their ring's first point; `q` is the
    ellipsoid's area up to a latitude.
    """
    rings = shapely.get_rings(shapely.orient_polygons(polygons))  # holes run the other way
    degrees, ring = shapely.get_coordinates(rings, return_index=True)
    lon, lat = np.radians(degrees).T
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    e = math.sqrt(WGS84_E2)

    def q(lat: F64) -> F64:
        s = np.sin(lat)
        return (1 - WGS84_E2) * (s / (1 - WGS84_E2 * s**2) + np.arctanh(e * s) / e)

    start = np.flatnonzero(np.diff(ring) == 0)
    middle, half = (lat[start + 1] + lat[start]) / 2, (lat[start + 1] - lat[start]) / 2
    parallel = q(lat[first])[ring[start]]
    strips = sum(w / 2 * (q(middle + half * x) - parallel) for x, w in zip(*GAUSS, strict=True))
    return float(((lon[start] - lon[start + 1]) * strips).sum() * WGS84_A**2 / 2)
