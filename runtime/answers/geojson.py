"""Masks as GeoJSON polygons (RFC 7946): WGS 84 longitude and latitude where that can be had.

Polygons follow the pixel edges exactly. The member `geomag_coordinates` says what they are in:
"wgs84"; "native", the coordinates of a CRS that nothing relates to WGS 84 (a local grid, another
planet), which `geomag_crs` names; or "pixel" (x to the right, y down). `geomag_notes` says why it
is not WGS 84, or how exact it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely

from geomag_edge.runtime.images.georef import Georef

from .antimeridian import cut_polygon, ellipsoid_area, joined, rounded
from .curves import EndlessError, Ring, placed
from .ground import Ground, ground_of, in_pixels
from .masks import Mask
from .outline import F64, outline, signed_area


def feature_collection(
    masks: Sequence[Mask],
    labels: Sequence[str],
    georef: Georef,
    shape: tuple[int, int] | None = None,
    prompt: str = "",
) -> dict[str, Any]:
    """One feature a mask, in order; `id` counts from 1 as the values of masks.tif do.

    `shape` is the image's H, W where no mask has it.

    Properties: id, label, score, area_px, prompt; `area_m2` on the WGS 84 ellipsoid where
    coordinates are longitude and latitude; `outline_step_px` where a huge mask was outlined on a
    coarser grid. An empty mask, and one that lies off the Earth, has no geometry.
    """
    ground = ground_of(georef, masks[0].shape if masks else shape or (1, 1))
    try:
        features, notes = _features(masks, labels, ground)
    except EndlessError:
        ground = in_pixels("lies on the ground in curves that have no end")
        features, notes = _features(masks, labels, ground)
    collection = {
        "type": "FeatureCollection",
        "name": "masks",
        "geomag_coordinates": ground.coordinates,
        "geomag_notes": notes,
        "features": features,
    }
    for feature in features:
        feature["properties"]["prompt"] = prompt
    if ground.coordinates == "native":
        collection["geomag_crs"] = georef.crs.to_wkt()
    return collection


def _features(
    masks: Sequence[Mask], labels: Sequence[str], ground: Ground
) -> tuple[list[dict[str, Any]], list[str]]:
    """(a feature a mask, notes)"""
    notes = list(ground.notes)
    with np.errstate(all="ignore"):  # what is out of all bounds has no place in the end
        features = [
            _feature(i, mask, label, ground, notes)
            for i, (mask, label) in enumerate(zip(masks, labels, strict=True), start=1)
        ]
    return features, notes


def _feature(
    number: int, mask: Mask, label: str, ground: Ground, notes: list[str]
) -> dict[str, Any]:
    outlined, step = outline(mask)
    on_earth = outlined
    if ground.on_earth is not None:
        on_earth, _ = outline(mask, ground.on_earth)
        if lost := _area_px(outlined) - _area_px(on_earth):
            notes.append(
                f"{lost:.0f} px of mask {number} lie off the Earth, or in a pixel that crosses its "
                "edge, and are not in masks.geojson"
            )
    polygons = [part for rings in placed(on_earth, ground) for part in _polygons(rings, ground)]
    properties: dict[str, Any] = {
        "id": number,
        "label": label,
        "score": round(mask.score, 6),
        "area_px": mask.area_px,
    }
    if step > 1:
        properties["outline_step_px"] = step
    if ground.coordinates == "wgs84":
        if on_earth and not polygons:
            notes.append(f"mask {number} lies off the Earth and has no polygon in masks.geojson")
        polygons = joined(polygons)
        area_m2 = ellipsoid_area(polygons)
        if step > 1:  # a coarser outline encloses a slightly different number of pixels
            area_m2 *= mask.area_px / _area_px(outlined) if outlined else 0.0
        properties["area_m2"] = float(f"{area_m2:.9g}")
        polygons = rounded(polygons)
    geometry: Any = None
    if polygons:
        geometry = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
        geometry = shapely.geometry.mapping(geometry)
    return {"type": "Feature", "id": number, "geometry": geometry, "properties": properties}


def _polygons(rings: list[Ring], ground: Ground) -> list[shapely.Polygon]:
    """One polygon in the coordinates of the ground: several where it is cut."""
    if ground.coordinates == "wgs84":
        surrounds = ground.on_earth is not None
        return cut_polygon(rings, surrounds) if len(rings[0].at) >= 4 else []
    exterior, *holes = [np.round(ring.at, 4) for ring in rings]
    return [shapely.orient_polygons(shapely.Polygon(exterior, holes))]


def _area_px(polygons: list[list[F64]]) -> float:
    return sum(signed_area(ring) for rings in polygons for ring in rings)
