"""Straight pixel edges as the curves that they are on the ground: points where they bend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .ground import Ground
from .outline import F64, signed_area

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BATCH_POINTS = 200_000
TURN_DEG = 60.0
"""Longitudes may not change by more along an edge, so that it is plain which way round it goes."""
SHORTEST_PX = 1e-6
MOST_BENDS = 1_000_000
"""Points that may be added to one batch: a mask of a whole scene in UTM takes some thousands."""
NOISE_DEG = 1e-11
"""Differences of a micrometre are rounding, not curves."""


class EndlessError(Exception):
    """Pixel edges are no curves on this ground, however closely they are followed."""


class Ring(NamedTuple):
    """A closed ring on the ground, what it bounds on its left."""

    at: F64
    """Coordinates [n,2]; NaN nowhere."""
    pole: F64
    """For every point the latitude of the pole that it is, else 0."""


def placed(polygons: list[list[F64]], ground: Ground) -> Iterator[list[Ring]]:
    """Polygons of pixels in the coordinates of the ground, ring by ring.

    Args:
        polygons: their rings [n,2] px, closed, the exterior first; the mask on the left of each
            (y up).
        ground: where pixels lie.

    Yields:
        For each polygon its rings, the mask on their left, with points added until the straight
        line between two of them is within the ground's tolerance of the pixel edge.

    Raises:
        EndlessError: that takes more points than any map does.
    """
    batch: list[list[F64]] = []
    points = 0
    for rings in polygons:
        batch.append([_with_poles(ring, ground) for ring in rings])
        points += sum(len(ring) for ring in rings)
        if points > BATCH_POINTS:
            yield from _placed(batch, ground)
            batch, points = [], 0
    if batch:
        yield from _placed(batch, ground)


def _placed(polygons: list[list[F64]], ground: Ground) -> Iterator[list[Ring]]:
    rings = [ring for polygon in polygons for ring in polygon]
    xy, ends = np.concatenate(rings), np.cumsum([len(ring) for ring in rings])
    at, pole = ground.place(xy), _pole_latitudes(xy, ground)
    edge = np.arange(len(xy))
    if ground.tolerance_px:
        tolerance = np.repeat(
            [_tolerance(polygon, ground) for polygon in polygons],
            [sum(len(ring) for ring in polygon) for polygon in polygons],
        )
        starts = np.delete(edge, ends - 1)
        on, share, places = _bends(xy, at, pole != 0, starts, ground, tolerance[starts])
        order = np.lexsort((np.append(np.zeros(len(xy)), share), np.append(edge, on)))
        edge, at = np.append(edge, on)[order], np.concatenate([at, places])[order]
        pole = np.append(pole, np.zeros(len(on)))[order]
    cuts = np.searchsorted(edge, ends)[:-1]
    found = iter(zip(np.split(at, cuts), np.split(pole, cuts), strict=True))
    for polygon in polygons:
        yield [_ring(*next(found), ground.mirrored) for _ in polygon]


def _ring(at: F64, pole: F64, mirrored: bool) -> Ring:
    """A closed ring of the points that have a place."""
    there = np.isfinite(at).all(axis=1)
    at, pole = at[there], pole[there]
    if len(at) and (at[0] != at[-1]).any():  # its first and last point was left out
        at, pole = np.concatenate([at, at[:1]]), np.append(pole, pole[0])
    return Ring(at[::-1], pole[::-1]) if mirrored else Ring(at, pole)


def _tolerance(rings: list[F64], ground: Ground) -> float:
    """How far edges of a polygon may be off (px), so that its area is right to the same share.

    A compact polygon bears more than one of single pixels, whose area is a fourth of its edges.
    """
    area = sum(signed_area(ring) for ring in rings)
    length = sum(float(np.abs(np.diff(ring, axis=0)).sum()) for ring in rings)
    return ground.tolerance_px * max(1.0, 4 * area / length)


def _bends(
    xy: F64, at: F64, is_pole: Bools, starts: Ints, ground: Ground, tolerance_px: F64
) -> tuple[Ints, F64, F64]:
    """Points to add to the edges that begin at `starts`: edge, share of it (0..1), place [n,2]."""
    edge, low, high = starts, np.zeros(len(starts)), np.ones(len(starts))
    a, b, at_a, at_b = xy[starts], xy[starts + 1], at[starts], at[starts + 1]
    # A pole has any longitude, and an edge that ends there is a part of a meridian.
    at_a[:, 0] = np.where(is_pole[starts], at_b[:, 0], at_a[:, 0])
    at_b[:, 0] = np.where(is_pole[starts + 1], at_a[:, 0], at_b[:, 0])
    round_earth = ground.coordinates == "wgs84"
    difference = _difference if round_earth else np.subtract
    found, added = [], 0
    while len(edge):
        length = np.hypot(*(b - a).T)
        middle = (a + b) / 2
        left = np.stack([a[:, 1] - b[:, 1], b[:, 0] - a[:, 0]], axis=1) / length[:, None]
        aside_px = np.minimum(0.5, length / 2)  # into the polygon, which is on the Earth
        at_middle = ground.place(middle)
        at_aside = ground.place(middle + left * aside_px[:, None])
        along, half = difference(at_b, at_a), difference(at_middle, at_a)
        turn = np.abs([along, half, difference(at_b, at_middle)])[..., 0].max(axis=0)
        bend = _cross(half - along / 2, along)
        aside = _cross(along, difference(at_aside, at_middle))
        with np.errstate(divide="ignore", invalid="ignore"):
            off_px = np.abs(bend / aside) * aside_px
        bent = ~(off_px <= tolerance_px) & (np.abs(bend) > NOISE_DEG * np.hypot(*along.T))
        split = (bent | (round_earth & (turn > TURN_DEG))) & (length > SHORTEST_PX)
        split &= np.isfinite(at_middle).all(axis=1)
        share = (low + high) / 2
        added += int(split.sum())
        if added > MOST_BENDS:
            raise EndlessError
        found.append((edge[split], share[split], at_middle[split]))

        def halves(one: Any, other: Any, split: Bools = split) -> Any:
            return np.concatenate([one[split], other[split]])

        low, high = halves(low, share), halves(share, high)
        a, b = halves(a, middle), halves(middle, b)
        at_a, at_b = halves(at_a, at_middle), halves(at_middle, at_b)
        edge, tolerance_px = halves(edge, edge), halves(tolerance_px, tolerance_px)
    edges, shares, places = zip(*found, strict=True)
    return np.concatenate(edges), np.concatenate(shares), np.concatenate(places)


def _difference(a: F64, b: F64) -> F64:
    """a - b in degrees, the short way round."""
    d = a - b
    d[:, 0] -= 360 * np.round(d[:, 0] / 360)
    return d


def _cross(a: F64, b: F64) -> F64:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _with_poles(ring: F64, ground: Ground) -> F64:
    """A ring with a point wherever an edge passes through a pole."""
    for x, y, _ in ground.poles:
        a, b = ring[:-1], ring[1:]
        length = np.hypot(*(b - a).T)
        along = ((np.array([x, y]) - a) * (b - a)).sum(axis=1) / length
        off = np.abs(_cross(b - a, np.array([[x, y]]) - a)) / length
        through = (off < SHORTEST_PX) & (along > SHORTEST_PX) & (along < length - SHORTEST_PX)
        ring = np.insert(ring, np.flatnonzero(through) + 1, [x, y], axis=0)
    return ring


def _pole_latitudes(xy: F64, ground: Ground) -> F64:
    """The latitude of the pole that each point is, else 0."""
    out = np.zeros(len(xy))
    for x, y, lat in ground.poles:
        out[np.hypot(*(xy - [x, y]).T) < 2 * SHORTEST_PX] = lat
    return out
