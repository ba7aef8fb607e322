"""Masks as GeoJSON polygons (RFC 7946): WGS 84 longitude and latitude where that can be had.

Polygons follow the pixel edges exactly. An image without a georeference gives pixel coordinates
(x to the right, y down), one in a CRS that PROJ cannot relate to WGS 84 (a local grid, another
planet) its own coordinates; the member `geomag_coordinates` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import CRSError, RasterioError
from rasterio.features import shapes
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points

from .masks import Mask
from .raster import Georef

F64 = NDArray[np.float64]
ToCrs = Callable[[F64], F64]
"""Pixel coordinates [n,2] (x, y) -> coordinates [n,2] of the GeoJSON."""

POLYGON_PX = 16_000_000
"""Masks whose bounding box has more pixels are outlined on a coarser grid."""
SEGMENT_PX = 256
"""Longest straight edge before a change of CRS: the image of a line is a curve."""
WGS84_A, WGS84_E2 = 6378137.0, 0.0066943799901413165


class _NotOnEarth(Exception):
    """The CRS has no way to WGS 84 for these points."""


def feature_collection(
    masks: Sequence[Mask], labels: Sequence[str], georef: Georef
) -> dict[str, Any]:
    """One feature a mask, in order; `id` counts from 1 as the values of masks.tif do.

    Properties: id, label, score, area_px; `area_m2` on the WGS 84 ellipsoid where coordinates are
    longitude and latitude; `outline_step_px` where a huge mask was outlined on a coarser grid. An
    empty mask has no geometry.
    """
    if georef.is_georeferenced:
        try:
            return _collection(masks, labels, "wgs84", _to_wgs84(georef))
        except _NotOnEarth:
            native = _collection(masks, labels, "native", lambda xy: _affine(georef.transform, xy))
            return native | {"geomag_crs": georef.crs.to_wkt()}
    return _collection(masks, labels, "pixel", lambda xy: xy)


def _collection(
    masks: Sequence[Mask], labels: Sequence[str], coordinates: str, to_crs: ToCrs
) -> dict[str, Any]:
    features = [
        _feature(i, mask, label, coordinates, to_crs)
        for i, (mask, label) in enumerate(zip(masks, labels, strict=True), start=1)
    ]
    return {
        "type": "FeatureCollection",
        "name": "masks",
        "geomag_coordinates": coordinates,
        "features": features,
    }


def _feature(
    number: int, mask: Mask, label: str, coordinates: str, to_crs: ToCrs
) -> dict[str, Any]:
    pixel_polygons, step = outline(mask)
    properties: dict[str, Any] = {
        "id": number,
        "label": label,
        "score": round(mask.score, 6),
        "area_px": mask.area_px,
    }
    if step > 1:
        properties["outline_step_px"] = step
    polygons, area_m2, outlined_px = [], 0.0, 0.0
    for rings in pixel_polygons:
        placed = [to_crs(_dense(ring) if coordinates == "wgs84" else ring) for ring in rings]
        digits = 8 if coordinates == "wgs84" else 4
        polygons.append([_ring(p, digits, hole=k > 0) for k, p in enumerate(placed)])
        for sign, ring, at in zip([1] + [-1] * len(rings), rings, placed, strict=False):
            outlined_px += sign * abs(_signed_area(ring))
            area_m2 += sign * _ellipsoid_area(at) if coordinates == "wgs84" else 0.0
    if coordinates == "wgs84":
        # A coarser outline encloses a slightly different number of pixels than the mask has.
        area_m2 *= mask.area_px / outlined_px if outlined_px else 0.0
        properties["area_m2"] = round(area_m2, 3)
    geometry: dict[str, Any] | None = None
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    elif polygons:
        geometry = {"type": "MultiPolygon", "coordinates": polygons}
    return {"type": "Feature", "id": number, "geometry": geometry, "properties": properties}


def outline(mask: Mask) -> tuple[list[list[F64]], int]:
    """Polygons of a mask along pixel edges, and the grid step in pixels (1 unless it is huge).

    A polygon is its rings [n,2] (x, y in pixels, closed), the exterior first.
    """
    if mask.bbox is None:
        return [], 1
    x0, y0, x1, y1 = mask.bbox
    step = max(1, math.ceil(math.sqrt((y1 - y0) * (x1 - x0) / POLYGON_PX)))
    if step == 1:
        grid = mask.window(y0, x0, y1, x1)
    else:
        y, x = (np.arange(a, b, step) + step / 2 for a, b in ((y0, y1), (x0, x1)))
        grid = np.concatenate([mask.at(y[i : i + 256], x) for i in range(0, len(y), 256)])
    place = Affine(step, 0, x0, 0, step, y0)
    found = shapes(grid.view(np.uint8), mask=grid, connectivity=4, transform=place)
    return [[np.asarray(ring, np.float64) for ring in g["coordinates"]] for g, _ in found], step


def _affine(transform: Any, xy: F64) -> F64:
    x, y = xy.T
    t = transform
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)


def _to_wgs84(georef: Georef) -> ToCrs:
    def to_wgs84(xy: F64) -> F64:
        x, y = _affine(georef.transform, xy).T
        try:
            lon, lat = warp_points(georef.crs, "EPSG:4326", x.tolist(), y.tolist())[:2]
        # rasterio lets some of PROJ's refusals through as bare GDAL errors, which have no public
        # class; whatever it was, the masks can still be given in the image's own coordinates.
        except Exception as e:
            if isinstance(e, (RasterioError, CRSError)) or type(e).__name__.startswith("CPLE_"):
                raise _NotOnEarth from e
            raise
        out = np.array([lon, lat], np.float64).T
        if not np.isfinite(out).all() or (np.abs(out[:, 1]) > 90 + 1e-9).any():
            raise _NotOnEarth
        return out

    to_wgs84(np.zeros((1, 2)))  # an answer without masks names its coordinates, too
    return to_wgs84


def _dense(ring: F64) -> F64:
    """The ring with points added so that no edge is longer than SEGMENT_PX."""
    lengths = np.abs(np.diff(ring, axis=0)).max(axis=1)
    if (lengths <= SEGMENT_PX).all():
        return ring
    pieces = np.maximum(1, np.ceil(lengths / SEGMENT_PX)).astype(int)
    parts = [
        a + (b - a) * (np.arange(n) / n)[:, None]
        for a, b, n in zip(ring[:-1], ring[1:], pieces, strict=True)
    ]
    return np.concatenate([*parts, ring[-1:]])


def _ring(points: F64, digits: int, hole: bool) -> list[list[float]]:
    """A closed ring, rounded; exteriors run counterclockwise and holes clockwise."""
    if (_signed_area(points) < 0) != hole:
        points = points[::-1]
    rounded = np.round(points, digits)
    moved = np.concatenate([[True], (np.diff(rounded, axis=0) != 0).any(axis=1)])
    # Pixels finer than the rounding may fall together, but a ring needs four positions.
    return (rounded[moved] if moved.sum() >= 4 else points).tolist()


def _signed_area(ring: F64) -> float:
    """Area of a closed ring [n,2] in the plane, positive if counterclockwise (y up)."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _ellipsoid_area(lon_lat: F64) -> float:
    """Area in m2 of a closed ring of degrees on the WGS 84 ellipsoid.

    Sums strips between the ring and a parallel; `q` is the ellipsoid's area function of latitude.
    """
    lon, sin_lat = np.radians(lon_lat[:, 0]), np.sin(np.radians(lon_lat[:, 1]))
    e = math.sqrt(WGS84_E2)
    q = (1 - WGS84_E2) * (
        sin_lat / (1 - WGS84_E2 * sin_lat**2) + np.arctanh(e * sin_lat) / e
    )  # [n]
    q -= q[0]  # a closed ring does not notice, and small rings keep their precision
    return float(abs((np.diff(lon) * (q[1:] + q[:-1]) / 2).sum()) * WGS84_A**2 / 2)
