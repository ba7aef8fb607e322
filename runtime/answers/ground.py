"""Where the pixels of an image lie on the ground, in WGS 84 longitude and latitude if it can be.

The way there is the image's own: its transform and CRS, else its ground control points, else its
rational polynomials (RPC), in GDAL's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine, GCPTransformer, RPCTransformer, from_origin
from rasterio.warp import Resampling, reproject
from rasterio.warp import transform as warp_points

from geomag_edge.printing import one_line
from geomag_edge.runtime.images.georef import Georef
from geomag_edge.runtime.images.proj import database_note
from geomag_edge.runtime.images.unwarned import unwarned

from .outline import F64, Keep

Place = Callable[[F64], F64]
"""Pixel coordinates [n,2] (x, y) -> coordinates [n,2]; NaN where there are none."""

WGS84 = "EPSG:4326"  # looked up when it is needed, for that may fail
NAME_CHARS, SAID_CHARS = 100, 200
"""Of a coordinate system's name and of what PROJ says, in a note."""
STRAY_M = 1000.0
"""A point that comes back from the ground this far away lies outside its projection. The ways there
and back may be different datum shifts, which are some metres apart."""
FARTHEST = 1e15
"""No coordinate is as large: in metres it is a tenth of a light year."""
FARTHEST_M = 1e9
FARTHEST_DEG = 1080.0
"""Nothing farther has a place on the Earth: 25 times round it in metres, 3 times either way in
degrees. Projections that repeat themselves would go round with a pixel's edge for ever."""
MOST_WORLDS = 1.5
"""An edge that goes round twice looks like one that stands still: longitudes are taken the short
way from point to point."""
POLAR_DEG = 80.0
"""Ground control points beyond this latitude are fitted in a plane, as longitudes meet there."""


@dataclass(frozen=True)
class Ground:
    """How pixels of an image become coordinates."""

    coordinates: str
    """"wgs84", "native" (those of the image's CRS) or "pixel"."""
    place: Place
    notes: tuple[str, ...] = ()
    tolerance_px: float = 0.0
    """How far an edge may be from its true curve; 0 where edges stay straight."""
    mirrored: bool = False
    """Whether left of a line of pixels (y up) is right of it on the ground: not so where rows run
    north, for pixels have y down."""
    poles: tuple[tuple[float, float, float], ...] = ()
    """x, y in pixels, and latitude, of the poles that are points of the image."""
    on_earth: Keep | None = None
    """Which pixels lie on the Earth, where some of the image's do not."""


def ground_of(georef: Georef, shape: tuple[int, int]) -> Ground:
    """Finds the way from the pixels of an image of `shape` H, W to the ground."""
    with rasterio.Env():  # without it GDAL prints what it raises
        if georef.transform is not None and georef.crs is None:
            return in_pixels("has a transform (perhaps a world file) but names no CRS")
        if georef.transform is not None and not _has_area(georef.transform):
            return in_pixels("has a transform under which its pixels have no area")
        if georef.transform is not None:
            return _from_transform(georef.crs, georef.transform, shape)
        if georef.gcps:
            return _from_gcps(georef, shape)
        if georef.rpcs is not None:
            return _from_rpcs(georef.rpcs, shape)
        if georef.crs is not None:
            return in_pixels("names a CRS but not where its pixels lie in it")
    return Ground("pixel", lambda xy: xy)


def in_pixels(why: str) -> Ground:
    """The ground of an image that has no place, for a reason that its notes tell."""
    note = f"the image {why}: masks.geojson is in pixels"
    return Ground("pixel", lambda xy: xy, (note,))


def _from_transform(crs: Any, transform: Affine, shape: tuple[int, int]) -> Ground:
    def to_crs(xy: F64) -> F64:
        return _affine(transform, xy)

    ground, lattice = _in_crs(to_crs, crs, shape), _lattice(shape)
    if ground.coordinates == "wgs84" and np.abs(to_crs(lattice)).max() >= _farthest(crs):
        return in_pixels("has a transform that leads farther than any place on the Earth")
    world = _width_of_world(crs) if ground.coordinates == "wgs84" else math.inf
    if np.ptp(to_crs(lattice)[:, 0]) > MOST_WORLDS * world:
        return in_pixels("goes round the Earth more than once")
    if ground.coordinates != "wgs84" or not crs.is_projected:
        return ground
    returning = _returning(to_crs(lattice), crs)
    ground = replace(
        ground,
        poles=_poles(crs, transform, shape),
        mirrored=_mirrored(ground.place, lattice[returning], shape),
    )
    goes_round = math.isfinite(world)
    if returning.all() or (goes_round and np.isfinite(ground.place(lattice)).all()):
        return ground

    def on_earth(x: F64, y: F64) -> NDArray[np.bool_]:
        return _cells_on_earth(crs, transform, x, y, invertible=not goes_round)

    return replace(ground, on_earth=on_earth)


def _in_crs(to_crs: Place, crs: Any, shape: tuple[int, int]) -> Ground:
    """WGS 84, or the CRS's own coordinates with a note where there is no way to WGS 84."""
    why = _no_way(crs, to_crs(_lattice(shape)))
    if why:
        note = f"{why}: masks.geojson is in the coordinates of the image's CRS"
        return Ground("native", to_crs, (note,))

    def place(xy: F64) -> F64:
        return _to_wgs84(crs, to_crs(xy))

    return Ground("wgs84", place, (), 2e-5, _mirrored(place, _lattice(shape), shape))


def _no_way(crs: Any, points: F64) -> str | None:
    """Why none of these points [n,2] of a CRS has a longitude and latitude, or None."""
    about = crs.to_dict(projjson=True) or {}
    name = one_line(str(about.get("name") or "without a name"), NAME_CHARS)
    axes = about.get("source_crs", about).get("coordinate_system", {})
    geocentric = axes.get("subtype") == "Cartesian" and len(axes["axis"]) == 3
    if (geocentric and not crs.is_projected) or axes.get("subtype") == "vertical":
        kind = "geocentric" if geocentric else "one of heights"
        return f"the image's CRS ({name}) is {kind}, in which x and y alone name no place"
    found: list[str] = []
    if np.isfinite(_to_wgs84(crs, points, found)).all(axis=1).any():
        return None
    complaint = found[-1] if found else "no point of it lies on the Earth"
    if "Cannot find coordinate operations" in complaint and database_note() is None:
        return f"nothing relates the image's CRS ({name}) to WGS 84"
    if "outside of projection domain" in complaint or not found:
        return f"no part of the image lies on the Earth, as its CRS ({name}) has it"
    complaint = one_line(complaint, SAID_CHARS)
    return f"the image's CRS ({name}) cannot be taken to WGS 84 on this machine ({complaint})"


def _from_gcps(georef: Georef, shape: tuple[int, int]) -> Ground:
    points, crs = georef.gcps, georef.crs
    if crs is None:
        return in_pixels("has ground control points but names no CRS for them")
    count = f"has {len(points)} ground control points"
    xy = np.array([(p.x, p.y) for p in points], np.float64)
    if not (np.abs([(p.col, p.row, p.x, p.y) for p in points]) < FARTHEST).all():
        return in_pixels(f"{count}, of which some are no numbers or out of all bounds")
    try:
        if crs.is_geographic:
            xy[:, 0] += 360 * np.round((xy[0, 0] - xy[:, 0]) / 360)
            if np.abs(xy[:, 1]).max() > POLAR_DEG:
                pole = 90 if xy[:, 1].mean() > 0 else -90
                plane = CRS.from_proj4(f"+proj=laea +lat_0={pole} +datum=WGS84")
                x, y = warp_points(crs, plane, *xy.T)[:2]
                xy, crs = np.array([x, y]).T, plane
        moved = [GroundControlPoint(p.row, p.col, *at) for p, at in zip(points, xy, strict=True)]
        fit = GCPTransformer(moved)
        there = fit.rowcol(*xy.T, op=np.positive)
    except Exception as e:  # GDAL's own errors have no public class
        return in_pixels(f"{count} that fix no place ({_cause(e)})")
    off = np.stack(there, axis=1) - [(p.row, p.col) for p in points]
    rms = math.sqrt((off**2).sum(axis=1).mean())
    if not math.isfinite(rms):
        return in_pixels(f"{count} that fix no place")
    ground = _in_crs(lambda at: _through(fit, at), crs, shape)
    note = (
        f"coordinates are approximate: a polynomial through {len(points)} ground control points, "
        f"which it misses by {rms:.2f} px (root mean square)"
    )
    return replace(ground, notes=(note, *ground.notes), tolerance_px=0.01)


def _from_rpcs(rpcs: Any, shape: tuple[int, int]) -> Ground:
    height = float(rpcs.height_off)
    # GDAL's own threshold of 0.1 px would make straight edges ragged.
    options = {"RPC_HEIGHT": height, "RPC_PIXEL_ERROR_THRESHOLD": 1e-6}
    try:
        fit = RPCTransformer(rpcs, **options)
        fixed = np.isfinite(_through(fit, _lattice(shape))).any()
    except Exception as e:  # GDAL's own errors have no public class
        return in_pixels(f"has rational polynomials (RPC) that fix no place ({_cause(e)})")
    if not fixed:
        return in_pixels("has rational polynomials (RPC) that fix no place")
    note = (
        "coordinates are approximate: rational polynomials (RPC) with all ground at their mean "
        f"height, {height:g} m above the ellipsoid, as there is no terrain model"
    )

    def place(xy: F64) -> F64:
        at = _through(fit, xy)
        return np.where(np.abs(at) < FARTHEST_DEG, at, np.nan)

    return Ground("wgs84", place, (note,), 0.01, _mirrored(place, _lattice(shape), shape))


def _cause(e: Exception) -> str:
    said = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".").lower()
    return one_line(said, SAID_CHARS)


def _has_area(t: Affine) -> bool:
    """Whether a transform can be inverted, and not only for what rounding left of it, and leads
    to coordinates that anything could have."""
    if not all(abs(v) < FARTHEST for v in t[:6]):  # nor if one is not a number
        return False
    sides = t.a**2 + t.b**2 + t.d**2 + t.e**2
    return abs(t.a * t.e - t.b * t.d) > 1e-12 * sides


def _through(fit: Any, xy: F64) -> F64:
    """Pixel coordinates through one of rasterio's transformers."""
    with rasterio.Env(), unwarned():
        x, y = fit.xy(xy[:, 1], xy[:, 0], offset="ul")
    placed = np.stack([x, y], axis=1)
    return np.where(np.isfinite(placed), placed, np.nan)


def _mirrored(place: Place, xy: F64, shape: tuple[int, int]) -> bool:
    """Which way round the image lies at most of these points; near a pole, where the longitudes
    of a pixel are far apart, some may say otherwise."""
    at = xy * 0.999  # steps that stay inside
    steps = [place(at + step) - place(at) for step in ([1e-3 * shape[1], 0], [0, 1e-3 * shape[0]])]
    for step in steps:
        step[:, 0] -= 360 * np.round(step[:, 0] / 360)
    (x_lon, x_lat), (y_lon, y_lat) = (step.T for step in steps)
    turn = x_lon * y_lat - x_lat * y_lon
    return int((turn < 0).sum()) > int((turn > 0).sum())


def _affine(t: Affine, xy: F64) -> F64:
    x, y = xy.T
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)


def _lattice(shape: tuple[int, int]) -> F64:
    """Points [n,2] all over an image, its corners among them."""
    y, x = (np.linspace(0, side, 33) for side in shape)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _to_wgs84(crs: Any, points: F64, complaints: list[str] | None = None) -> F64:
    return _warp(crs, WGS84, points, complaints)


def _warp(source: Any, target: Any, points: F64, complaints: list[str] | None = None) -> F64:
    """Points [n,2] of one CRS in another, NaN where there are none.

    rasterio gives all points or none, so a batch with bad ones is halved until they are found.
    `complaints` takes what it said.
    """
    near = (np.abs(points) < _farthest(source)).all(axis=1)
    if not near.all():
        out = np.full(points.shape, np.nan)
        if near.any():
            out[near] = _warp(source, target, points[near], complaints)
        return out
    try:
        with rasterio.Env():
            out = np.array(warp_points(source, target, *points.T)[:2], np.float64).T
    except Exception as e:  # GDAL's own errors have no public class
        if complaints is not None:
            complaints.append(str(e).strip().splitlines()[0].rstrip("."))
        no_way = "Cannot find coordinate operations" in str(e) or isinstance(
            e, rasterio.errors.CRSError
        )
        if len(points) == 1 or no_way:
            return np.full(points.shape, np.nan)
        half = len(points) // 2
        return np.concatenate(
            [_warp(source, target, part, complaints) for part in (points[:half], points[half:])]
        )
    out[~np.isfinite(out).all(axis=1)] = np.nan
    return out


def _farthest(crs: Any) -> float:
    """How large the coordinates of a CRS may be, in its units."""
    if crs == WGS84 or crs.is_geographic:
        return FARTHEST_DEG
    return FARTHEST_M / crs.linear_units_factor[1] if crs.is_projected else FARTHEST


def _returning(points: F64, crs: Any) -> NDArray[np.bool_]:
    """Which points [n,2] of a CRS come back to themselves from the ground."""
    there = _to_wgs84(crs, points)
    back = np.full(points.shape, np.nan)
    found = np.isfinite(there).all(axis=1)
    back[found] = _warp(WGS84, crs, there[found])
    return (np.abs(back - points) < STRAY_M / crs.linear_units_factor[1]).all(axis=1)


def _width_of_world(crs: Any) -> float:
    """After how many units of x longitudes repeat themselves, as they do in degrees and in
    cylindrical projections; infinite in others."""
    if crs.is_geographic:
        return 360.0
    lon = np.arange(-180.0, 180.0, 5)
    rows = [_warp(WGS84, crs, np.stack([lon, np.full_like(lon, lat)], axis=1)) for lat in (0, 60)]
    steps = [float(np.nanmedian(np.diff(row[:, 0]))) for row in rows]
    level = all(np.nanmax(row[:, 1]) - np.nanmin(row[:, 1]) < 1e-3 for row in rows)
    cylindrical = level and abs(steps[0] - steps[1]) < 1e-6 * abs(steps[0])
    return 72 * abs(steps[0]) if cylindrical else math.inf


def _cells_on_earth(
    crs: Any, transform: Affine, x: F64, y: F64, invertible: bool
) -> NDArray[np.bool_]:
    """Which cells [h,w] between pixel edges x[w+1], y[h+1] have all four corners on the Earth.

    GDAL warps a raster of the whole Earth onto the corners; with `invertible` it leaves out those
    that do not come back to themselves.
    """
    step = Affine(x[1] - x[0], 0, x[0], 0, y[1] - y[0], y[0])
    corners = np.zeros((len(y), len(x)), np.uint8)
    with rasterio.Env(CHECK_WITH_INVERT_PROJ=invertible):
        reproject(
            np.ones((182, 362), np.uint8),  # 180 degrees and the poles are not its edge
            corners,
            src_crs=WGS84,
            src_transform=from_origin(-181, 91, 1, 1),
            dst_crs=crs,
            dst_transform=transform * step * Affine.translation(-0.5, -0.5),
            resampling=Resampling.nearest,
        )
    on = corners.astype(bool)
    return on[:-1, :-1] & on[:-1, 1:] & on[1:, :-1] & on[1:, 1:]


def _poles(
    crs: Any, transform: Affine, shape: tuple[int, int]
) -> tuple[tuple[float, float, float], ...]:
    """The poles inside an image: x, y in pixels and latitude. None where a pole is a line."""
    found = []
    for lat in (90.0, -90.0):
        around = _warp(WGS84, crs, np.array([(0, lat), (120, lat), (-120, lat)]))
        px = _affine(~transform, around)
        if not np.isfinite(px).all() or np.ptp(px, axis=0).max() > 1e-3:
            continue
        x, y = px[0]
        # Grids are laid out so that the pole is the corner of a pixel.
        x, y = (round(v) if abs(v - round(v)) < 1e-6 else v for v in (x, y))
        back = _to_wgs84(crs, _affine(transform, np.array([[x, y]])))[0, 1]
        if -1 <= x <= shape[1] + 1 and -1 <= y <= shape[0] + 1 and abs(back - lat) < 1e-6:
            found.append((float(x), float(y), lat))
    return tuple(found)
