"""Decides what lies where: districts on a grid, roads between them, a coast; a scene as vectors."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

from ..errors import InputError
from . import catalog, countryside, districts
from .builder import WATER, Builder, Cell
from .raster import index_tiles
from .shapes import shade
from .spec import Frame, SceneSpec, make_look

SIZE_RANGE_PX = (64, 32768)
GSD_RANGE_M = (0.1, 5.0)
DISTRICT_M = 330.0
SINGLE_M = 620.0
"""Scenes up to this extent are one district."""

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
UNPAVED = {"farmland", "forest", "lake", "solar farm", "airport"}


def lay_out(seed: int, size_px: int, gsd_m: float | None = None) -> SceneSpec:
    """The vector description of the scene of a seed.

    Args:
        seed: any non-negative integer; the same arguments always give the same scene.
        size_px: the side of the square image.
        gsd_m: metres per pixel; drawn from 0.3 to 1.0 if None.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"a scene's seed is {seed!r}; give a non-negative integer")
    low, high = SIZE_RANGE_PX
    if isinstance(size_px, bool) or not isinstance(size_px, int) or not low <= size_px <= high:
        raise InputError(f"a scene of {size_px!r} px was asked for; give {low} to {high} px")
    rng = random.Random(f"{seed}:{size_px}")
    if gsd_m is None:
        gsd_m = rng.choice((0.3, 0.4, 0.5, 0.6, 0.8, 1.0))
    if not GSD_RANGE_M[0] <= gsd_m <= GSD_RANGE_M[1]:
        raise InputError(
            f"a ground sample distance of {gsd_m!r} m was asked for; give "
            f"{GSD_RANGE_M[0]} to {GSD_RANGE_M[1]} metres per pixel"
        )
    return _assemble(seed, size_px, float(gsd_m), rng, rng.choice(catalog.SCENE_CLASSES))


def _assemble(seed: int, size_px: int, gsd_m: float, rng: random.Random, theme: str) -> SceneSpec:
    look = make_look(rng)
    frame = Frame(rng, size_px, gsd_m)
    builder = Builder(frame, look, rng)
    size_m = size_px * gsd_m
    if size_m <= SINGLE_M:
        half = 0.72 * size_m
        FILL[theme](builder, Cell(-half, -half, half, half, rng))
        share = 1.0
    else:
        theme, share = _mosaic(builder, size_m, theme, seed)
    spec = SceneSpec(
        seed=seed,
        size_px=size_px,
        gsd_m=gsd_m,
        scene_class=theme,
        class_share=share,
        look=look,
        ground_rgb=shade(builder.ground["grass"], rng.uniform(0.9, 1.1)),
        items=builder.items,
        things=builder.things,
    )
    index_tiles(spec)
    return spec


def _grid_lines(rng: random.Random, reach: float) -> list[float]:
    """Borders of the districts along one axis, metres, from -reach to reach and a bit."""
    lines = [-reach - rng.uniform(0, DISTRICT_M)]
    while lines[-1] < reach:
        lines.append(lines[-1] + DISTRICT_M * rng.uniform(0.8, 1.25))
    return lines


def _mosaic(builder: Builder, size_m: float, theme: str, seed: int) -> tuple[str, float]:
    """Fills a large scene with districts; returns its most frequent class and that one's share."""
    rng = builder.rng
    # The bend moves points by up to 63 m along each axis.
    reach = 0.71 * size_m + 70
    us, vs = _grid_lines(rng, reach), _grid_lines(rng, reach)
    coast_row = len(vs)
    if theme == "harbour":
        middle = rng.uniform(-0.2, 0.25) * size_m
        coast_row = next(k for k in range(len(vs)) if vs[k + 1] > middle)
    town = [
        (rng.uniform(-reach, reach), rng.uniform(-reach, reach), rng.choice(INLAND))
        for _ in range(max(3, int((size_m / 900) ** 2)))
    ]
    coast = vs[coast_row] + 0.5 * DISTRICT_M if coast_row < len(vs) else math.inf
    if coast_row < len(vs):
        _make_sea(builder, us[0] - 300, coast, us[-1] + 300, vs[-1] + 600)
    kinds: Counter[str] = Counter()
    grid: dict[tuple[int, int], str] = {}
    for j in range(len(vs) - 1):
        for i in range(len(us) - 1):
            u, v = (us[i] + us[i + 1]) / 2, (vs[j] + vs[j + 1]) / 2
            x, y = builder.frame.point(u, v)
            margin = 0.8 * DISTRICT_M / builder.frame.gsd_m
            if not (-margin < x < builder.frame.size_px + margin) or not (
                -margin < y < builder.frame.size_px + margin
            ):
                continue
            if j > coast_row:
                kind = "sea"
            elif j == coast_row:
                kind = "harbour"
            else:
                near = min(town, key=lambda t: (t[0] - u) ** 2 + (t[1] - v) ** 2)[2]
                kind = near if rng.random() < 0.7 else rng.choice(INLAND)
                if theme != "harbour" and rng.random() < 0.55:
                    kind = theme
            grid[i, j] = kind
            if 0 <= x < builder.frame.size_px and 0 <= y < builder.frame.size_px:
                kinds["harbour" if kind == "sea" else kind] += 1
    for (i, j), kind in grid.items():
        builder.rng = random.Random(f"{seed}:{i}:{j}")
        cell = Cell(us[i] + 7, vs[j] + 7, us[i + 1] - 7, vs[j + 1] - 7, builder.rng)
        if kind == "sea":
            countryside.sea(builder, cell)
        elif kind == "harbour":
            wide = Cell(us[i], vs[j] + 7, us[i + 1], vs[j + 1], builder.rng)
            countryside.harbour(builder, wide, coast)
        else:
            FILL[kind](builder, cell)
    builder.rng = rng
    _grid_roads(builder, us, vs, grid)
    most = kinds.most_common(1)
    return (most[0][0], most[0][1] / sum(kinds.values())) if most else (theme, 1.0)


def _make_sea(builder: Builder, u0: float, v0: float, u1: float, v1: float) -> None:
    corners = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
    builder.sea = builder.area_thing(
        "water", corners, WATER, "blue", "large", builder.water_rgb, catalog.WATER
    )


def _grid_roads(
    builder: Builder, us: list[float], vs: list[float], grid: dict[tuple[int, int], str]
) -> None:
    """Main roads along the borders of districts, one object for each straight run on land."""
    dry = {key for key, kind in grid.items() if kind not in ("sea", "harbour")}
    for axis in (0, 1):
        lines, steps = (us, vs) if axis == 0 else (vs, us)
        for a in range(1, len(lines) - 1):
            start = None
            for k in range(len(steps)):
                one = (a - 1, k) if axis == 0 else (k, a - 1)
                two = (a, k) if axis == 0 else (k, a)
                on = k < len(steps) - 1 and (one in dry and two in dry)
                if on and start is None:
                    start = k
                if not on and start is not None:
                    _main_road(builder, axis, lines[a], steps[start], steps[k])
                    start = None


def _main_road(builder: Builder, axis: int, at: float, begin: float, end: float) -> None:
    width = builder.rng.choice((8.0, 10.0, 12.0))
    ends = (at, begin, at, end) if axis == 0 else (begin, at, end, at)
    builder.road(*ends, width)
    builder.traffic(*ends, width, builder.rng.uniform(40, 120))
