"""Water and open land: each function fills one cell."""

from __future__ import annotations

import math
import random

from geomag_edge.scenes import catalog
from geomag_edge.scenes.shapes import shade
from geomag_edge.scenes.spec import Thing

from .builder import FIELD, HIGH, LOW, MIDDLE, PAD, PIER, WATER, Builder, Cell
from .districts import tank_rows

QUAY_M = 34.0
QUAY_ROAD_M = 8.0


def blob(rng: random.Random, u: float, v: float, ru: float, rv: float) -> list:
    """A wobbly ellipse in layout metres."""
    waves = [(k, rng.uniform(0.02, 0.2 / k), rng.uniform(0, math.tau)) for k in (2, 3, 5, 7)]
    points = []
    for step in range(48):
        a = step * math.tau / 48
        r = 1.0 + sum(amp * math.sin(k * a + phase) for k, amp, phase in waves)
        points.append((u + ru * r * math.cos(a), v + rv * r * math.sin(a)))
    return points


def body_of_water(b: Builder, points: list, size: str) -> Thing | None:
    """Water with a pale rim where it is shallow."""
    rgb = shade(b.water_rgb, b.rng.uniform(0.92, 1.08))
    thing = b.area_thing("water", points, WATER, "blue", size, shade(rgb, 1.28), catalog.WATER)
    if thing is not None:
        u = sum(p[0] for p in points) / len(points)
        v = sum(p[1] for p in points) / len(points)
        for k, gain in ((0.97, 1.14), (0.93, 1.0)):
            inner = [(u + k * (p - u), v + k * (q - v)) for p, q in points]
            b.area(inner, WATER, shade(rgb, gain), catalog.WATER, thing)
        del thing.polygons[1:]
    return thing


def ship(
    b: Builder, cell: Cell, u: float, v: float, heading: float, length: float, upright: bool
) -> Thing | None:
    """A ship if the water is free; `upright` when it lies along v."""
    large = length > 40
    width = length / (b.rng.uniform(5.8, 7.2) if large else b.rng.uniform(2.6, 4.2))
    du, dv = (width, length) if upright else (length, width)
    if abs(math.sin(2 * heading)) > 0.05:
        du = dv = length
    if not cell.take(u, v, du, dv, 0.6):
        return None
    colour = b.rng.choice(catalog.CLASS_COLOURS["ship"])
    made = b.stamp(
        "ship",
        "ship",
        MIDDLE,
        u,
        v,
        heading,
        (length, width, 0.09 * length + 1),
        colour,
        "large" if large else "small",
    )
    if made and not large and b.rng.random() < 0.2:  # a wake
        b.decor("slab", PIER, u - 0.9 * length * math.cos(heading),
                v - 0.9 * length * math.sin(heading), heading, (0.8 * length, 0.35 * width, 0),
                (150, 165, 170), catalog.WATER)  # fmt: skip
    return made


def open_water(b: Builder, c: Cell, count: int, large: float) -> None:
    """Ships under way or at anchor."""
    rng = b.rng
    drift = rng.uniform(0, math.tau)
    for _ in range(count):
        size = "large" if rng.random() < large else "small"
        top = min(catalog.SHIP_LENGTH_M[size][1], 0.4 * min(c.w, c.h))
        length = rng.uniform(catalog.SHIP_LENGTH_M[size][0], max(top, 56.0 if large else 10.0))
        for _ in range(4):
            heading = drift + rng.uniform(-0.4, 0.4) if rng.random() < 0.6 else rng.uniform(0, 6.28)
            u, v = rng.uniform(c.u0, c.u1), rng.uniform(c.v0, c.v1)
            if ship(b, c, u, v, heading, length, False):
                break


def sea(b: Builder, c: Cell) -> None:
    """Open water; the water itself is the scene's sea."""
    open_water(b, c, b.rng.choice((0, 0, 1, 1, 2, 3)), 0.5)


def harbour(b: Builder, c: Cell, coast: float | None = None) -> None:
    """Quay, piers with moored ships, cranes, containers and sheds; water on the side of +v."""
    rng = b.rng
    v_sea = coast if coast is not None else c.v + rng.uniform(-0.1, 0.06) * c.h
    if b.sea is None:
        ends = [(c.u0, v_sea), (c.u1, v_sea), (c.u1, c.v1 + 5), (c.u0, c.v1 + 5)]
        body_of_water_rgb = shade(b.water_rgb, rng.uniform(0.95, 1.05))
        b.area_thing("water", ends, WATER, "blue", "large", body_of_water_rgb, catalog.WATER)
    # In a mosaic the quays of neighbours line up.
    quay = QUAY_M if coast is not None else rng.uniform(26, 40)
    concrete = shade(catalog.CONCRETE_RGB, rng.uniform(0.84, 1.0))
    b.area(
        [(c.u0, v_sea - quay), (c.u1, v_sea - quay), (c.u1, v_sea), (c.u0, v_sea)],
        PAD,
        concrete,
        catalog.CONCRETE,
    )
    b.area(
        [(c.u0, v_sea - 1.6), (c.u1, v_sea - 1.6), (c.u1, v_sea), (c.u0, v_sea)],
        PIER,
        shade(concrete, 0.7),
        catalog.CONCRETE,
    )
    water = Cell(c.u0, v_sea, c.u1, c.v1, rng, c.taken)
    busy = rng.choice((0.15, 0.4, 0.65, 0.9))
    count = rng.choice((0, 1, 1, 2, 2, 3))
    room = 0.66 * c.w / max(count, 1)
    for k in range(count):
        u = c.u + (k - (count - 1) / 2) * room + rng.uniform(-0.1, 0.1) * room
        width = rng.uniform(9, 22)
        _pier_with_ships(b, water, u, v_sea, width, 0.4 * c.h, room, busy)
    u = c.u0 + rng.uniform(0.02, 0.2) * c.w
    while u < c.u1 - 30:
        length = rng.uniform(9, 22) if rng.random() < 0.4 else rng.uniform(56, 0.36 * c.w + 57)
        beam = length / 6.5 if length > 40 else length / 3.2
        if rng.random() < busy:
            ship(b, water, u + length / 2, v_sea + beam / 2 + 2.2, rng.choice((0.0, math.pi)),
                 length, False)  # fmt: skip
        u += length + rng.uniform(8, 0.3 * c.w)
    low = Cell(c.u0, min(v_sea + 0.2 * c.h, c.v1 - 20), c.u1, c.v1, rng, c.taken)
    open_water(b, low, rng.choice((0, 0, 1, 2, 3)), 0.3)
    _quay_side(b, c, v_sea, quay)


def _pier_with_ships(
    b: Builder,
    water: Cell,
    u: float,
    v_sea: float,
    width: float,
    reach: float,
    room: float,
    busy: float,
) -> None:
    rng = b.rng
    length = reach * rng.uniform(0.6, 0.95)
    b.stamp(
        "pier",
        "pier",
        PIER,
        u,
        v_sea + length / 2 - 1,
        math.pi / 2,
        (length + 2, width, 2.5),
        "grey",
        "large" if length > 60 else "small",
    )
    water.block(u - width / 2, v_sea, u + width / 2, v_sea + length)
    if rng.random() < 0.4:
        b.traffic(u, v_sea + 4, u, v_sea + length - 4, width * 0.8, 40, "pier")
    marina = rng.random() < 0.3
    for side in (-1, 1):
        v = v_sea + 5
        while v < v_sea + length - 8:
            if marina:
                small = rng.uniform(9, 15)
                if rng.random() < busy:
                    at = u + side * (width / 2 + small / 2 + 0.8)
                    ship(b, water, at, v, 0.0 if side > 0 else math.pi, small, False)
                v += rng.uniform(6.5, 9)
                continue
            top = min(catalog.SHIP_LENGTH_M["large"][1], v_sea + length - v + 0.25 * length)
            big = top > 56 and rng.random() < 0.65
            size_m = rng.uniform(55.5, top) if big else rng.uniform(9, 24)
            beam = size_m / 5.8 if big else size_m / 2.6
            if beam < 0.45 * (room - width) and rng.random() < busy:
                at = u + side * (width / 2 + beam / 2 + 1.2)
                ship(b, water, at, v + size_m / 2, rng.choice((-1, 1)) * math.pi / 2, size_m, True)
            v += size_m + rng.uniform(3, 16)


def _quay_side(b: Builder, c: Cell, v_sea: float, quay: float) -> None:
    """What stands on land behind the quay."""
    rng = b.rng
    v_road = v_sea - quay - QUAY_ROAD_M
    if b.sea is not None:  # streets come down to the quay along the cell's sides
        c.block(c.u0, c.v0, c.u0 + 9, v_road)
        c.block(c.u1 - 9, c.v0, c.u1, v_road)
    b.road(c.u0, v_road, c.u1, v_road, 9.5)
    c.block(c.u0, v_road - 6, c.u1, v_road + 6)
    b.traffic(c.u0, v_road, c.u1, v_road, 9.5, rng.uniform(35, 110))
    _cranes_and_containers(b, c, v_sea, quay)
    depth = v_road - 10 - c.v0
    land = Cell(c.u0, c.v0, c.u1, v_road - 6, rng, c.taken)
    b.area(
        [
            (c.u0, v_road - min(depth, 95)),
            (c.u1, v_road - min(depth, 95)),
            (c.u1, v_road),
            (c.u0, v_road),
        ],
        0,
        shade(catalog.CONCRETE_RGB, rng.uniform(0.68, 0.85)),
        catalog.GRAVEL,
    )
    if rng.random() < 0.65:
        size = rng.choice(catalog.SIZES)
        d = catalog.TANK_DIAMETER_M[size][1] * 1.5
        rows = max(1, min(2, int((depth - 10) / d)))
        tank_rows(b, land, c.u + rng.uniform(-0.3, 0.3) * c.w, v_road - 12 - rows * d / 2, rows,
                  rng.randrange(2, 5), size)  # fmt: skip
    if rng.random() < 0.5:
        u = c.u + rng.uniform(-0.4, 0.2) * c.w
        b.parking(land, u, v_road - 30, u + rng.uniform(30, 60), v_road - 8, rng.uniform(0.1, 0.6),
                  0.3)  # fmt: skip
    for _ in range(int(c.w * max(depth, 0) / 1500)):
        b.building(land, rng.uniform(c.u0, c.u1), rng.uniform(c.v0, v_road - 10),
                   rng.uniform(20, 66), rng.uniform(14, 28), "flat",
                   height_m=rng.uniform(6, 11))  # fmt: skip
    b.trees(land, int(c.w * max(depth, 0) / 1800))


def _cranes_and_containers(b: Builder, c: Cell, v_sea: float, quay: float) -> None:
    rng = b.rng
    if rng.random() < 0.6:
        u = c.u0 + rng.uniform(0.1, 0.4) * c.w
        while u < c.u1 - 0.1 * c.w:
            b.decor(
                "crane",
                HIGH,
                u,
                v_sea + 2,
                math.pi / 2,
                (38, 12, 22),
                rng.choice(((196, 168, 60), (70, 100, 150), (170, 72, 56))),
            )
            u += rng.uniform(45, 110)
    hues = ((150, 66, 52), (62, 92, 138), (176, 150, 84), (96, 124, 92), (150, 150, 150))
    u = c.u0 + rng.uniform(0.05, 0.3) * c.w
    while u < c.u1 - 30:  # container stacks
        rows, cols = rng.randrange(2, 5), rng.randrange(2, 6)
        if c.take(u + cols * 3.2, v_sea - quay * 0.62, cols * 6.4, rows * 2.7):
            for i in range(rows * cols):
                if rng.random() < 0.8:
                    b.decor("slab", LOW, u + (i % cols) * 6.4 + 3.2,
                            v_sea - quay * 0.62 + (i // cols - (rows - 1) / 2) * 2.7, 0.0,
                            (6.0, 2.4, 3.5),
                            shade(rng.choice(hues), rng.uniform(0.8, 1.15)))  # fmt: skip
        u += cols * 6.4 + rng.uniform(8, 70)


def farmland(b: Builder, c: Cell) -> None:
    """Fields of several crops between tracks, hedges and a farm."""
    rng = b.rng
    b.area(
        [(c.u0, c.v0), (c.u1, c.v0), (c.u1, c.v1), (c.u0, c.v1)],
        0,
        shade(b.ground["grass"], rng.uniform(0.85, 1.0)),
        catalog.GRASS,
    )
    track = rng.random() < 0.7
    u_track = c.u + rng.uniform(-0.2, 0.2) * c.w
    if track:
        b.road(u_track, c.v0, u_track, c.v1, 5.0, dirt=rng.random() < 0.7)
        c.block(u_track - 4, c.v0, u_track + 4, c.v1)
        b.traffic(u_track, c.v0, u_track, c.v1, 5.0, 220)
    if rng.random() < 0.7:
        for _ in range(rng.randrange(1, 5)):
            b.building(c, u_track + rng.uniform(8, 50), c.v + rng.uniform(-40, 40),
                       rng.uniform(10, 34), rng.uniform(9, 17), rng.choice(("house", "hip")),
                       rng.choice(("brown", "red", "grey", "white")), 6.0)  # fmt: skip
    if rng.random() < 0.3:
        r = rng.uniform(12, 34)
        u, v = c.u + rng.uniform(-0.3, 0.3) * c.w, c.v + rng.uniform(-0.3, 0.3) * c.h
        if c.take(u, v, 2.8 * r, 2.8 * r):
            body_of_water(b, blob(rng, u, v, r, r * rng.uniform(0.6, 1.0)), "small")
    spread = rng.uniform(70, 170)
    sides = ((c.u0, u_track - 5), (u_track + 5, c.u1)) if track else ((c.u0, c.u1),)
    for left, right in sides:
        _split(b, c, left, c.v0, right, c.v1, spread)
    b.trees(c, int(c.w * c.h / 2600), 0.5)


def _split(b: Builder, c: Cell, u0: float, v0: float, u1: float, v1: float, target: float) -> None:
    """Halves a rectangle until its parts are field-sized."""
    rng = b.rng
    du, dv = u1 - u0, v1 - v0
    if max(du, dv) > target * 1.6:
        t = rng.uniform(0.35, 0.65)
        if du > dv:
            _split(b, c, u0, v0, u0 + t * du, v1, target)
            _split(b, c, u0 + t * du, v0, u1, v1, target)
        else:
            _split(b, c, u0, v0, u1, v0 + t * dv, target)
            _split(b, c, u0, v0 + t * dv, u1, v1, target)
        return
    gap = rng.uniform(1.5, 3.5)
    if min(du, dv) < 24 or rng.random() < 0.12:
        return
    if c.take((u0 + u1) / 2, (v0 + v1) / 2, du - 2 * gap - 0.2, dv - 2 * gap - 0.2, -1.0):
        colour = rng.choice(catalog.CLASS_COLOURS["field"])
        b.field(u0 + gap, v0 + gap, u1 - gap, v1 - gap, colour)


def forest(b: Builder, c: Cell) -> None:
    """Woods with a track and clearings."""
    rng = b.rng
    if rng.random() < 0.75:
        u = c.u + rng.uniform(-0.25, 0.25) * c.w
        b.road(u, c.v0, u, c.v1, rng.uniform(4.5, 7), dirt=True)
        c.block(u - 6, c.v0, u + 6, c.v1)
        b.traffic(u, c.v0, u, c.v1, 5.0, 180)
        _wood(b, c.u0, c.v0, u - rng.uniform(6, 10), c.v1)
        _wood(b, u + rng.uniform(6, 10), c.v0, c.u1, c.v1)
    else:
        _wood(b, c.u0, c.v0, c.u1, c.v1)
    if rng.random() < 0.4:
        r = rng.uniform(20, 45)
        u, v = c.u + rng.uniform(-0.3, 0.3) * c.w, c.v + rng.uniform(-0.3, 0.3) * c.h
        if c.take(u, v, 2.6 * r, 2.6 * r):
            b.area(blob(rng, u, v, r, 0.8 * r), FIELD, b.ground["grass"], catalog.GRASS)
            if rng.random() < 0.5:
                b.building(Cell(c.u0, c.v0, c.u1, c.v1, rng), u, v, rng.uniform(8, 15),
                           rng.uniform(7, 11), "house", height_m=5.0)  # fmt: skip
    if rng.random() < 0.3:
        r = rng.uniform(20, 50)
        u, v = c.u + rng.uniform(-0.3, 0.3) * c.w, c.v + rng.uniform(-0.3, 0.3) * c.h
        if c.take(u, v, 2.8 * r, 2.8 * r):
            points = blob(rng, u, v, r, 0.8 * r)
            b.area(
                [(u + 1.12 * (p - u), v + 1.12 * (q - v)) for p, q in points],
                FIELD,
                b.ground["grass"],
                catalog.GRASS,
            )
            pond = body_of_water(b, points, "small")
            if pond is not None:  # above the wood it lies in
                for item in b.items[-3:]:
                    item.layer = FIELD


def _wood(b: Builder, u0: float, v0: float, u1: float, v1: float) -> None:
    """A forest with a ragged edge."""
    if min(u1 - u0, v1 - v0) < 20:
        return
    rng = b.rng
    points = []
    for (ua, va), (ub, vb) in (
        ((u0, v0), (u1, v0)), ((u1, v0), (u1, v1)), ((u1, v1), (u0, v1)), ((u0, v1), (u0, v0))
    ):  # fmt: skip
        count = max(2, int(math.hypot(ub - ua, vb - va) / 7))
        for k in range(count):
            t = k / count
            points.append((ua + (ub - ua) * t + rng.uniform(-2.5, 2.5),
                           va + (vb - va) * t + rng.uniform(-2.5, 2.5)))  # fmt: skip
    brown = b.look.season in ("autumn", "winter")
    b.area_thing(
        "forest",
        points,
        FIELD,
        "brown" if brown else "green",
        "large",
        shade(b.ground["forest"], rng.uniform(0.9, 1.1)),
        catalog.FOREST,
    )


def lake(b: Builder, c: Cell) -> None:
    """A lake with boats and a jetty, woods and a few houses around it."""
    rng = b.rng
    ru, rv = rng.uniform(0.2, 0.32) * c.w, rng.uniform(0.17, 0.28) * c.h
    v_mid = c.v + 0.04 * c.h
    points = blob(rng, c.u, v_mid, ru, rv)
    area_m2 = math.pi * ru * rv
    body_of_water(b, points, "large" if area_m2 > catalog.WATER_AREA_M2 else "small")
    inside = Cell(c.u - 0.5 * ru, v_mid - 0.5 * rv, c.u + 0.5 * ru, v_mid + 0.5 * rv, rng)
    open_water(b, inside, rng.choice((0, 1, 2, 3, 5)), 0.0)
    top = v_mid - rv
    near = min(points, key=lambda p: abs(p[0] - c.u) + (100 if p[1] > v_mid else 0))
    if rng.random() < 0.6:
        length = rng.uniform(16, 30)
        b.stamp("pier", "pier", PIER, near[0], near[1] + length / 2 - 4, math.pi / 2,
                (length, rng.uniform(2.6, 4.0), 1.0), "grey", "small")  # fmt: skip
    c.block(c.u - 1.35 * ru, v_mid - 1.35 * rv, c.u + 1.35 * ru, v_mid + 1.35 * rv)
    v_road = max(c.v0 + 6, top - 0.5 * rv - rng.uniform(8, 30))
    b.road(c.u0, v_road, c.u1, v_road, 7.0, dirt=rng.random() < 0.3)
    c.block(c.u0, v_road - 5, c.u1, v_road + 5)
    b.traffic(c.u0, v_road, c.u1, v_road, 7.0, 110)
    for _ in range(rng.randrange(0, 7)):
        b.building(c, c.u + rng.uniform(-0.4, 0.4) * c.w,
                   v_road + rng.choice((-1, 1)) * rng.uniform(12, 22), rng.uniform(10, 16),
                   rng.uniform(8, 12), "hip", "", 5.0)  # fmt: skip
    if rng.random() < 0.4:
        _wood(b, c.u0, v_mid + 1.45 * rv, c.u1, c.v1)
        c.block(c.u0, v_mid + 1.4 * rv, c.u1, c.v1)
    b.trees(c, int(c.w * c.h / 700), 0.4)
