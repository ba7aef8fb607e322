"""Large scenes: districts on an irregular grid, main roads between them, airports, a coast."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

from geomag_edge.scenes import catalog

from . import countryside, districts
from .builder import WATER, Builder, Cell

Key = tuple[int, int]

DISTRICT_M = 330.0

FILL: dict[str, Callable[[Builder, Cell], None]] = {
    "harbour": countryside.harbour,
    "industrial": districts.industrial,
    "airport": districts.airport,
    "residential": districts.residential,
    "farmland": countryside.farmland,
    "forest": countryside.forest,
    "lake": countryside.lake,
    "commercial": districts.commercial,
    "solar farm": districts.solar_farm,
}
INLAND = tuple(name for name in catalog.SCENE_CLASSES if name != "harbour")
AIRPORT_CELLS = ((4, 2), (3, 2), (2, 2), (2, 1))
"""Districts along u and v that an airport takes together, the first that fits."""


def fill_mosaic(builder: Builder, size_m: float, theme: str, seed: int) -> tuple[str, float]:
    """Fills a large scene with districts; returns its most frequent class and that one's share."""
    rng = builder.rng
    # The bend moves points by up to 56 m along each axis.
    reach = 0.71 * size_m + 70
    us, vs = _grid_lines(rng, reach), _grid_lines(rng, reach)
    coast_row = len(vs)
    if theme == "harbour":
        middle = rng.uniform(-0.2, 0.25) * size_m
        coast_row = next(k for k in range(len(vs)) if vs[k + 1] > middle)
    coast = vs[coast_row] + 0.5 * DISTRICT_M if coast_row < len(vs) else math.inf
    if coast_row < len(vs):
        corners = [(us[0] - 300, coast), (us[-1] + 300, coast), (us[-1] + 300, vs[-1] + 600),
                   (us[0] - 300, vs[-1] + 600)]  # fmt: skip
        builder.sea = builder.area_thing(
            "water", corners, WATER, "blue", "large", builder.water_rgb, catalog.WATER
        )
    grid = _zone(builder, us, vs, coast_row, size_m, theme)
    merged = _place_airports(grid, us, vs, size_m)
    for (i, j), kind in grid.items():
        builder.rng = random.Random(f"{seed}:{i}:{j}")
        cell = Cell(us[i] + 7, vs[j] + 7, us[i + 1] - 7, vs[j + 1] - 7, builder.rng)
        if kind == "sea":
            countryside.sea(builder, cell)
        elif kind == "harbour":
            wide = Cell(us[i], vs[j] + 7, us[i + 1], vs[j + 1], builder.rng)
            countryside.harbour(builder, wide, coast)
        elif kind == "airport":
            first, (i1, j1) = merged[i, j]
            if first == (i, j):
                whole = Cell(us[i] + 7, vs[j] + 7, us[i1 + 1] - 7, vs[j1 + 1] - 7, builder.rng)
                districts.airport(builder, whole)
        else:
            FILL[kind](builder, cell)
    builder.rng = rng
    _main_roads(builder, us, vs, grid, merged, coast)
    return _most_frequent(builder, us, vs, grid, theme)


def _grid_lines(rng: random.Random, reach: float) -> list[float]:
    """Borders of the districts along one axis, metres, from -reach to reach and a bit."""
    lines = [-reach - rng.uniform(0, DISTRICT_M)]
    while lines[-1] < reach:
        lines.append(lines[-1] + DISTRICT_M * rng.uniform(0.8, 1.25))
    return lines


def _zone(
    builder: Builder, us: list[float], vs: list[float], coast_row: int, size_m: float, theme: str
) -> dict[Key, str]:
    """What each district near the picture is: sea, harbour, or like its part of town."""
    rng = builder.rng
    reach = 0.71 * size_m
    town = [
        (rng.uniform(-reach, reach), rng.uniform(-reach, reach), rng.choice(INLAND))
        for _ in range(max(3, int((size_m / 900) ** 2)))
    ]
    low = -0.8 * DISTRICT_M / builder.frame.gsd_m
    high = builder.frame.size_px - low
    grid: dict[Key, str] = {}
    for j in range(len(vs) - 1):
        for i in range(len(us) - 1):
            u, v = (us[i] + us[i + 1]) / 2, (vs[j] + vs[j + 1]) / 2
            x, y = builder.frame.point(u, v)
            if not (low < x < high and low < y < high):
                continue
            near = min(town, key=lambda t: (t[0] - u) ** 2 + (t[1] - v) ** 2)[2]
            kind = near if rng.random() < 0.7 else rng.choice(INLAND)
            if theme != "harbour" and rng.random() < 0.55:
                kind = theme
            if j >= coast_row:
                kind = "harbour" if j == coast_row else "sea"
            grid[i, j] = kind
    return grid


def _place_airports(
    grid: dict[Key, str], us: list[float], vs: list[float], size_m: float
) -> dict[Key, tuple[Key, Key]]:
    """Gives each airport a block of districts and the rest of its zone to farms.

    Returns the first and the last district of the block by district.
    """
    merged: dict[Key, tuple[Key, Key]] = {}
    left = 1 + int((size_m / 4000.0) ** 2)
    wanted = [key for key, kind in grid.items() if kind == "airport"]
    wanted.sort(key=lambda k: math.hypot(us[k[0]] + us[k[0] + 1], vs[k[1]] + vs[k[1] + 1]))
    for i, j in wanted:
        if (i, j) in merged:
            continue
        for wide, tall in AIRPORT_CELLS if left else ():
            # The block lies around the district, so that one at the centre shows whole.
            i0, j0 = i - (wide - 1) // 2, j - (tall - 1) // 2
            block = [(i0 + a, j0 + b) for b in range(tall) for a in range(wide)]
            if all(grid.get(k, "sea") not in ("sea", "harbour") and k not in merged for k in block):
                for key in block:
                    grid[key] = "airport"
                    merged[key] = block[0], block[-1]
                left -= 1
                break
        else:
            grid[i, j] = "farmland"
    return merged


def _main_roads(
    builder: Builder,
    us: list[float],
    vs: list[float],
    grid: dict[Key, str],
    merged: dict[Key, tuple[Key, Key]],
    coast: float,
) -> None:
    """Roads along the borders of districts, one object for each straight run on land."""
    dry = {key for key, kind in grid.items() if kind not in ("sea", "harbour")}
    for axis in (0, 1):
        lines, steps = (us, vs) if axis == 0 else (vs, us)
        for a in range(1, len(lines) - 1):
            start = None
            for k in range(len(steps)):
                one = (a - 1, k) if axis == 0 else (k, a - 1)
                two = (a, k) if axis == 0 else (k, a)
                on = one in dry and two in dry
                if on and one in merged and merged[one] == merged.get(two):
                    on = False
                if on and start is None:
                    start = k
                if not on and start is not None:
                    end = steps[k]
                    if axis == 0 and grid.get(one) == grid.get(two) == "harbour":
                        end = coast - countryside.QUAY_M - countryside.QUAY_ROAD_M
                    _main_road(builder, axis, lines[a], steps[start], end)
                    start = None


def _main_road(builder: Builder, axis: int, at: float, begin: float, end: float) -> None:
    width = builder.rng.choice((8.0, 10.0, 12.0))
    ends = (at, begin, at, end) if axis == 0 else (begin, at, end, at)
    builder.road(*ends, width)
    builder.traffic(*ends, width, builder.rng.uniform(40, 120))


def _most_frequent(
    builder: Builder, us: list[float], vs: list[float], grid: dict[Key, str], theme: str
) -> tuple[str, float]:
    """The class of most districts whose centre is in the picture, and its share of them."""
    kinds: Counter[str] = Counter()
    size = builder.frame.size_px
    for (i, j), kind in grid.items():
        x, y = builder.frame.point((us[i] + us[i + 1]) / 2, (vs[j] + vs[j + 1]) / 2)
        if 0 <= x < size and 0 <= y < size:
            kinds["harbour" if kind == "sea" else kind] += 1
    if not kinds:
        return theme, 1.0
    name, count = kinds.most_common(1)[0]
    return name, count / sum(kinds.values())
