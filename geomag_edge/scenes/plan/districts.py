"""Built-up districts: each function fills one cell."""

from __future__ import annotations

import math

from geomag_edge.scenes import catalog
from geomag_edge.scenes.shapes import shade

from .builder import LOW, MARK, MIDDLE, PAD, Builder, Cell

PAINT_RGB = (206, 206, 200)


def tank_rows(b: Builder, cell: Cell, u: float, v: float, rows: int, cols: int, size: str) -> None:
    """Storage tanks in rows inside a gravel bund centred on a point."""
    rng = b.rng
    d = rng.uniform(*catalog.TANK_DIAMETER_M[size])
    pitch = d * rng.uniform(1.3, 1.55)
    du, dv = cols * pitch + 6, rows * pitch + 6
    if not cell.take(u, v, du, dv, 3.0):
        return
    corners = [
        (u - du / 2, v - dv / 2), (u + du / 2, v - dv / 2),
        (u + du / 2, v + dv / 2), (u - du / 2, v + dv / 2),
    ]  # fmt: skip
    b.area(corners, PAD, shade((168, 158, 140), rng.uniform(0.85, 1.05)), catalog.GRAVEL)
    palette = rng.choice(
        (
            ("white",),
            ("white", "grey"),
            ("white", "green"),
            ("white", "orange"),
            ("grey", "green", "white"),
        )
    )
    for row in range(rows):
        for col in range(cols):
            if rng.random() < 0.12:
                continue
            b.stamp("storage tank", "tank", MIDDLE, u + (col - (cols - 1) / 2) * pitch,
                    v + (row - (rows - 1) / 2) * pitch, rng.uniform(0, 6.28), (d, d, 0.45 * d + 2),
                    rng.choice(palette), size)  # fmt: skip


def industrial(b: Builder, c: Cell) -> None:
    """Tanks, warehouses and lorry parks along a service road."""
    rng = b.rng
    yard = shade(catalog.CONCRETE_RGB, rng.uniform(0.7, 0.9))
    b.area(
        [(c.u0, c.v0), (c.u1, c.v0), (c.u1, c.v1), (c.u0, c.v1)],
        0,
        rng.choice((yard, b.ground["grass"], (150, 142, 124))),
        rng.choice((catalog.CONCRETE, catalog.GRAVEL)),
    )
    v_road = c.v + rng.uniform(-0.06, 0.06) * c.h
    b.road(c.u0, v_road, c.u1, v_road, 9.5)
    c.block(c.u0, v_road - 6, c.u1, v_road + 6)
    b.traffic(c.u0, v_road, c.u1, v_road, 9.5, rng.uniform(35, 120))
    side = rng.choice((-1, 1))
    for _ in range(rng.randrange(1, 4)):
        size = rng.choice(catalog.SIZES)
        top = catalog.TANK_DIAMETER_M[size][1] * 1.5
        room = max(1, int(0.3 * c.h / top))
        rows, cols = rng.randrange(1, min(3, room) + 1), rng.randrange(1, 5)
        for _ in range(6):
            before = len(c.taken)
            v = v_road + side * rng.uniform(0.5 * rows * top + 8, 0.36 * c.h)
            tank_rows(b, c, c.u + rng.uniform(-0.3, 0.3) * c.w, v, rows, cols, size)
            if len(c.taken) > before:
                break
        if rng.random() < 0.4:
            side = -side
    if rng.random() < 0.6:
        u, v = c.u + rng.uniform(-0.3, 0.3) * c.w, v_road - side * (14 + rng.uniform(0, 10))
        half = rng.uniform(16, 30)
        b.parking(c, u - half, v - 10, u + half, v + 10, rng.uniform(0.15, 0.6), 0.4)
    for _ in range(int(c.w * c.h / 2600)):
        du, dv = rng.uniform(18, 70), rng.uniform(15, 36)
        if rng.random() < 0.5:
            du, dv = dv, du
        u, v = rng.uniform(c.u0, c.u1), rng.uniform(c.v0, c.v1)
        roof = b.building(
            c, u, v, du, dv, "flat", height_m=rng.uniform(6, 13), yard_m=rng.choice((0, 5, 9, 14))
        )
        if roof and rng.random() < 0.15:
            roof_panels(b, u, v, du, dv)
    b.trees(c, int(c.w * c.h / 3500))


def roof_panels(b: Builder, u: float, v: float, du: float, dv: float) -> None:
    """A few solar arrays on a flat roof of du x dv metres."""
    rows = max(1, min(4, int(min(du, dv) / 9)))
    colour = b.rng.choice(catalog.CLASS_COLOURS["solar panel"])
    length = min(0.6 * max(du, dv), 22.0)
    for k in range(rows):
        off = (k - (rows - 1) / 2) * 5.5
        at = (u, v + off) if du >= dv else (u + off, v)
        b.roof_panel(*at, 0.0 if du >= dv else math.pi / 2, length, 3.2, colour)


def residential(b: Builder, c: Cell) -> None:
    """Streets with houses on both sides, gardens and trees."""
    rng = b.rng
    pitch = rng.uniform(64, 86)
    width = rng.choice((6.0, 7.0, 8.0))
    roofs = rng.choice(
        (
            ("brown", "red", "grey"),
            ("grey", "white"),
            ("red", "brown"),
            ("brown", "grey", "white", "blue"),
        )
    )
    cross = c.u + rng.uniform(-0.25, 0.25) * c.w
    b.road(cross, c.v0, cross, c.v1, width)
    c.block(cross - width, c.v0, cross + width, c.v1)
    v = c.v0 + pitch * rng.uniform(0.3, 0.7)
    streets = []
    while v < c.v1 - 15:
        b.road(c.u0, v, c.u1, v, width)
        c.block(c.u0, v - width / 2 - 1, c.u1, v + width / 2 + 1)
        b.traffic(c.u0, v, c.u1, v, width, rng.uniform(50, 160))
        streets.append(v)
        v += pitch
    shape = rng.choice(("house", "hip", "house"))
    for street in streets:
        for side in (-1, 1):
            u = c.u0 + rng.uniform(8, 16)
            while u < c.u1 - 8:
                du, dv = rng.uniform(10, 16), rng.uniform(8, 12)
                setback = width / 2 + rng.uniform(5, 9) + dv / 2
                if rng.random() < 0.86:
                    at = street + side * setback
                    made = b.building(c, u, at, du, dv, shape, rng.choice(roofs), 5.5)
                    if made and rng.random() < 0.07:
                        b.roof_panel(u, at + 0.22 * dv, 0.0, 0.55 * du, 2.8, "blue")
                    if made and rng.random() < 0.35:
                        drive = street + side * (width / 2 + 3.2)
                        if c.take(u + du / 2 + 1.8, drive, 2.4, 5.4):
                            b.vehicle(u + du / 2 + 1.8, drive, math.pi / 2)
                u += du + rng.uniform(5, 12)
    b.trees(c, int(c.w * c.h / 420), 0.22)


def commercial(b: Builder, c: Cell) -> None:
    """Large flat roofs, each with its parking lot."""
    rng = b.rng
    v_road = c.v + rng.uniform(-0.1, 0.1) * c.h
    b.road(c.u0, v_road, c.u1, v_road, 12.0)
    c.block(c.u0, v_road - 8, c.u1, v_road + 8)
    b.traffic(c.u0, v_road, c.u1, v_road, 12.0, rng.uniform(28, 90))
    for side in (-1, 1):
        u = c.u0 + rng.uniform(4, 20)
        while u < c.u1 - 50:
            span = rng.uniform(60, 110)
            depth = rng.uniform(24, 44)
            lot_v = v_road + side * (10 + depth / 2)
            b.parking(
                c,
                u,
                lot_v - depth / 2,
                u + span - 8,
                lot_v + depth / 2,
                rng.choice((0.05, 0.15, 0.3, 0.55)),
            )
            tall = rng.uniform(28, 52)
            at = v_road + side * (14 + depth + tall / 2)
            long = span * rng.uniform(0.7, 0.9)
            colour = rng.choice(("white", "grey", "white", "blue", "red", "brown"))
            made = b.building(c, u + span / 2 - 4, at, long, tall, "flat", colour, 9.0, 4.0)
            if made and rng.random() < 0.3:
                roof_panels(b, u + span / 2 - 4, at, long, tall)
            u += span + rng.uniform(2, 14)
    b.trees(c, int(c.w * c.h / 700), 0.2)


def solar_farm(b: Builder, c: Cell) -> None:
    """Rows of ground arrays around a track, with a hut."""
    rng = b.rng
    u_track = c.u + rng.uniform(-0.15, 0.15) * c.w
    b.road(u_track, c.v0, u_track, c.v1, 5.0, dirt=True)
    c.block(u_track - 5, c.v0, u_track + 5, c.v1)
    b.building(
        c,
        u_track + rng.choice((-1, 1)) * 14,
        c.v + rng.uniform(-0.3, 0.3) * c.h,
        rng.uniform(9, 15),
        7.0,
        "flat",
        height_m=3.5,
    )
    colour = rng.choice(catalog.CLASS_COLOURS["solar panel"])
    length, width = rng.uniform(18, 42), rng.uniform(3.6, 6.5)
    pitch = width + rng.uniform(4.0, 8.0)
    margin_u, margin_v = rng.uniform(0.08, 0.3) * c.w, rng.uniform(0.08, 0.34) * c.h
    v = c.v0 + margin_v
    while v < c.v1 - margin_v:
        u = c.u0 + margin_u
        while u + length < c.u1 - margin_u:
            if rng.random() < 0.95 and c.take(u + length / 2, v, length, width):
                b.stamp("solar panel", "panel", LOW, u + length / 2, v, 0.0, (length, width, 1.8),
                        colour, "large")  # fmt: skip
            u += length + 4.0
        v += pitch
    b.trees(c, int(c.w * c.h / 2500))


def airport(b: Builder, c: Cell) -> None:
    """A runway, a taxiway, an apron with parked aircraft, a terminal and hangars."""
    rng = b.rng
    narrow = c.h < 480
    width = rng.uniform(24, 32) if narrow else rng.uniform(40, 50)
    v_run = c.v + (0.22 if narrow else 0.2) * c.h
    _runway(b, c, v_run, width)
    v_taxi = v_run - width / 2 - 0.1 * c.h
    concrete = shade(catalog.CONCRETE_RGB, rng.uniform(0.86, 1.0))

    def pad(u0: float, v0: float, u1: float, v1: float) -> None:
        b.area([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], PAD, concrete, catalog.CONCRETE)

    pad(c.u0, v_taxi - 9, c.u1, v_taxi + 9)
    for k in range(int(c.w / 40)):
        b.decor("slab", MARK, c.u0 + 40 * k + 20, v_taxi, 0.0, (40.5, 0.5, 0), (206, 176, 70))
    for u in (c.u - 0.3 * c.w, c.u + 0.32 * c.w):
        pad(u - 9, v_taxi, u + 9, v_run)
    c.block(c.u0, v_taxi - 12, c.u1, v_taxi + 12)
    size = "small" if narrow and rng.random() < 0.5 else "large"
    depth = catalog.AIRCRAFT_LENGTH_M[size][1] * (1.5 if size == "large" else 3.4)
    v_top = v_taxi - 9 - depth
    u_a, u_b = c.u0 + 0.14 * c.w, c.u1 - 0.14 * c.w
    pad(u_a, v_top, u_b, v_taxi)
    c.block(u_a, v_top, u_b, v_taxi)
    _stands(b, u_a, u_b, v_top, depth, size)
    if rng.random() < 0.35:
        length = rng.uniform(*catalog.AIRCRAFT_LENGTH_M[size])
        _aircraft(b, c.u + rng.uniform(-0.3, 0.3) * c.w, rng.choice((v_run, v_taxi)),
                  rng.choice((0.0, math.pi)), length, size)  # fmt: skip
    _airside_buildings(b, c, v_top)


def _runway(b: Builder, c: Cell, v_run: float, width: float) -> None:
    corners = [(c.u0, v_run - width / 2), (c.u1, v_run - width / 2),
               (c.u1, v_run + width / 2), (c.u0, v_run + width / 2)]  # fmt: skip
    rgb = shade(catalog.ASPHALT_RGB, b.rng.uniform(0.75, 1.0))
    runway = b.area_thing("runway", corners, PAD, "grey", "large", rgb, catalog.ASPHALT)
    c.block(c.u0, v_run - width / 2 - 8, c.u1, v_run + width / 2 + 8)
    if runway is None:
        return
    runway.orientation = math.degrees(b.frame.heading(c.u, v_run, 0.0)) % 180
    u = c.u0 + 25
    while u < c.u1 - 20:
        b.decor("slab", MARK, u, v_run, 0.0, (30, 0.9, 0), PAINT_RGB, owner=runway)
        for off in (1.5 - width / 2, width / 2 - 1.5):
            b.decor("slab", MARK, u, v_run + off, 0.0, (50.5, 0.9, 0), PAINT_RGB, owner=runway)
        u += 50


def _stands(b: Builder, u_a: float, u_b: float, v_top: float, depth: float, size: str) -> None:
    """Aircraft side by side on the apron, some places empty."""
    rng = b.rng
    longest = catalog.AIRCRAFT_LENGTH_M[size][1]
    chance = rng.choice((0.0, 0.2, 0.45, 0.7, 0.9))
    for row in range(1 if size == "large" else 2):
        u = u_a + 0.6 * longest
        while u < u_b - 0.55 * longest:
            if rng.random() < chance:
                length = rng.uniform(*catalog.AIRCRAFT_LENGTH_M[size])
                at = v_top + (0.52 + 1.1 * row) * longest + 4
                _aircraft(b, u, at, -math.pi / 2 + rng.uniform(-0.06, 0.06), length, size)
            elif rng.random() < 0.4:
                b.vehicle(u, v_top + 6, 0.0, rng.random() < 0.3)
            b.decor(
                "slab", MARK, u, v_top + depth / 2, math.pi / 2, (depth - 4, 0.4, 0), (200, 172, 78)
            )
            u += longest * rng.uniform(1.12, 1.3)


def _airside_buildings(b: Builder, c: Cell, v_top: float) -> None:
    """Terminal, hangars, parking and the road behind the apron's edge at `v_top`."""
    rng = b.rng
    hall = rng.uniform(18, 30)
    b.building(c, c.u - 0.1 * c.w, v_top - hall / 2 - 4, rng.uniform(60, 100), hall, "flat",
               rng.choice(("white", "grey", "blue")), 12.0)  # fmt: skip
    for _ in range(8):
        hangar = rng.uniform(24, 42)
        b.building(c, rng.uniform(c.u0, c.u1), v_top - hangar / 2 - rng.uniform(3, 30), hangar,
                   hangar * 0.8, "flat", "", 10.0)  # fmt: skip
    b.parking(c, c.u + 0.02 * c.w, v_top - 60, c.u + 0.02 * c.w + 60, v_top - 36, 0.35)
    v_road = v_top - 70
    b.road(c.u0, v_road, c.u1, v_road, 9.5)
    c.block(c.u0, v_road - 6, c.u1, v_road + 6)
    b.traffic(c.u0, v_road, c.u1, v_road, 9.5, rng.uniform(40, 120))
    b.trees(Cell(c.u0, c.v0, c.u1, max(c.v0 + 10, v_road - 8), rng, c.taken), int(c.w * c.h / 2500))


def _aircraft(b: Builder, u: float, v: float, heading: float, length: float, size: str) -> None:
    colour = b.rng.choice(("white", "white", "grey", "blue", "red"))
    b.stamp(
        "aircraft", "aircraft", MIDDLE, u, v, heading, (length, length, 0.1 * length), colour, size
    )
