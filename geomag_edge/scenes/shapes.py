"""How each kind of item looks: a function from an item to coloured polygons.

Rigid items are described in a unit frame, length along x and width along y, both in [-0.5, 0.5],
and carried to the image by `_place`. A part is (points in px, rgb, material).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from .catalog import CANOPY, CONCRETE, PAINT, ROOF, SOIL
from .spec import Item, Look

Point = tuple[float, float]
Rgb = tuple[int, int, int]
Part = tuple[list[Point], Rgb, int]

SQUARE: tuple[Point, ...] = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
_CIRCLE: tuple[Point, ...] = tuple(
    (0.5 * math.cos(k * math.tau / 20), 0.5 * math.sin(k * math.tau / 20)) for k in range(20)
)
_HULL_LARGE: tuple[Point, ...] = (
    (-0.5, -0.38), (-0.46, -0.48), (0.3, -0.5), (0.4, -0.36), (0.47, -0.16), (0.5, 0.0),
    (0.47, 0.16), (0.4, 0.36), (0.3, 0.5), (-0.46, 0.48), (-0.5, 0.38),
)  # fmt: skip
_HULL_SMALL: tuple[Point, ...] = (
    (-0.5, -0.4), (-0.1, -0.5), (0.2, -0.38), (0.5, 0.0), (0.2, 0.38), (-0.1, 0.5), (-0.5, 0.4),
)  # fmt: skip
_PLANE_BODY: tuple[Point, ...] = (
    (-0.5, -0.012), (-0.42, -0.035), (-0.1, -0.05), (0.36, -0.05), (0.46, -0.03), (0.5, 0.0),
    (0.46, 0.03), (0.36, 0.05), (-0.1, 0.05), (-0.42, 0.035), (-0.5, 0.012),
)  # fmt: skip
_PLANE_WINGS: tuple[Point, ...] = (
    (0.16, 0.0), (0.1, 0.06), (-0.14, 0.48), (-0.2, 0.48), (-0.06, 0.05), (-0.06, -0.05),
    (-0.2, -0.48), (-0.14, -0.48), (0.1, -0.06),
)  # fmt: skip
_PLANE_TAIL: tuple[Point, ...] = (
    (-0.36, 0.0), (-0.45, 0.18), (-0.5, 0.18), (-0.48, 0.0), (-0.5, -0.18), (-0.45, -0.18),
)  # fmt: skip


def shade(rgb: Rgb, gain: float) -> Rgb:
    """The colour, lighter or darker."""
    r, g, b = rgb
    return (
        min(255, max(0, int(r * gain))),
        min(255, max(0, int(g * gain))),
        min(255, max(0, int(b * gain))),
    )


def _place(item: Item, points: Sequence[Point]) -> list[Point]:
    ca, sa = math.cos(item.angle), math.sin(item.angle)
    ax, ay, bx, by = item.length * ca, item.length * sa, -item.width * sa, item.width * ca
    x, y = item.x, item.y
    return [(x + p * ax + q * bx, y + p * ay + q * by) for p, q in points]


def _rect(item: Item, p0: float, p1: float, q0: float, q1: float) -> list[Point]:
    return _place(item, ((p0, q0), (p1, q0), (p1, q1), (p0, q1)))


def _sun_on(item: Item, look: Look, turn: float) -> float:
    """Brightness of a roof face whose outward normal is the item's length axis plus `turn`."""
    return 1.0 - 0.14 * math.cos(item.angle + turn - look.sun_azimuth)


def area(item: Item, look: Look) -> list[Part]:
    """A polygon in one material."""
    return [(item.outline or [], item.rgb, item.material)]


def slab(item: Item, look: Look) -> list[Part]:
    """A flat rectangle: pads, markings, containers."""
    return [(_place(item, SQUARE), item.rgb, item.material)]


def vehicle(item: Item, look: Look) -> list[Part]:
    """A car, or a lorry when it is long."""
    parts: list[Part] = []
    if item.length > 3.2 * item.width:
        parts.append((_rect(item, -0.5, 0.24, -0.5, 0.5), item.rgb, PAINT))
        parts.append((_rect(item, 0.24, 0.3, -0.3, 0.3), (60, 60, 62), PAINT))
        parts.append((_rect(item, 0.3, 0.5, -0.46, 0.46), shade(item.rgb, 0.86), PAINT))
        return parts
    parts.append((_place(item, SQUARE), item.rgb, PAINT))
    if item.width > 2.5:
        glass = (52, 58, 66) if sum(item.rgb) > 240 else (92, 98, 106)
        parts.append((_rect(item, 0.12, 0.24, -0.42, 0.42), glass, PAINT))
        parts.append((_rect(item, -0.4, -0.3, -0.4, 0.4), glass, PAINT))
    return parts


def tank(item: Item, look: Look) -> list[Part]:
    """A cylinder seen from above: lit rim, roof, the inner shadow of a floating roof."""
    parts: list[Part] = [(_place(item, _CIRCLE), shade(item.rgb, 1.08), PAINT)]
    if item.length < 6:
        return parts
    inner = [(0.9 * p, 0.9 * q) for p, q in _CIRCLE]
    if item.seed % 2:
        parts.append((_place(item, inner), shade(item.rgb, 0.62), PAINT))
        shift = 0.07 * item.length
        dx, dy = shift * math.cos(look.sun_azimuth), shift * math.sin(look.sun_azimuth)
        moved = [(0.82 * p, 0.82 * q) for p, q in _CIRCLE]
        parts.append(
            ([(x + dx, y + dy) for x, y in _place(item, moved)], shade(item.rgb, 0.94), PAINT)
        )
    else:
        parts.append((_place(item, inner), shade(item.rgb, 0.93), PAINT))
        parts.append((_rect(item, -0.06, 0.06, -0.06, 0.06), shade(item.rgb, 0.7), PAINT))
    parts.append((_rect(item, 0.1, 0.46, -0.02, 0.02), shade(item.rgb, 0.72), PAINT))
    return parts


def aircraft(item: Item, look: Look) -> list[Part]:
    """Wings, tail and fuselage; engines or a propeller by size. `rgb` is the whole livery."""
    wing = shade(item.rgb, 0.88)
    parts: list[Part] = [
        (_place(item, _PLANE_WINGS), wing, PAINT),
        (_place(item, _PLANE_TAIL), wing, PAINT),
    ]
    if item.length > 30:
        for side in (-1, 1):
            for p, q in ((0.04, 0.17), (-0.03, 0.3))[: 1 + item.seed % 2]:
                parts.append(
                    (_rect(item, p, p + 0.1, side * q - 0.02, side * q + 0.02), (120, 122, 126), 0)
                )
    parts.append((_place(item, _PLANE_BODY), item.rgb, PAINT))
    if item.length > 16:
        parts.append((_rect(item, 0.41, 0.445, -0.025, 0.025), (48, 52, 60), PAINT))
        parts.append((_rect(item, -0.5, -0.36, -0.009, 0.009), shade(item.rgb, 0.7), PAINT))
    return parts


def ship(item: Item, look: Look) -> list[Part]:
    """A vessel with its bow at +x: boat, bulk carrier, container ship or tanker."""
    rng = random.Random(item.seed)
    slim = item.length > 5.2 * item.width
    parts: list[Part] = [(_place(item, _HULL_LARGE if slim else _HULL_SMALL), item.rgb, PAINT)]
    if not slim:
        if item.width > 3:
            deck = [(0.84 * p - 0.02, 0.7 * q) for p, q in _HULL_SMALL]
            parts.append((_place(item, deck), shade(item.rgb, 1.12), PAINT))
            parts.append((_rect(item, -0.22, 0.12, -0.24, 0.24), (66, 72, 80), PAINT))
            parts.append((_rect(item, -0.16, 0.02, -0.18, 0.18), shade(item.rgb, 0.95), PAINT))
        return parts
    deck = [(0.975 * p, 0.86 * q) for p, q in _HULL_LARGE]
    parts.append((_place(item, deck), shade(item.rgb, 0.84), PAINT))
    if item.width < 5:
        parts.append((_rect(item, -0.44, -0.3, -0.34, 0.34), (214, 214, 210), PAINT))
        return parts
    kind = rng.randrange(3)
    holds = 5 + rng.randrange(3)
    step = 0.7 / holds
    for k in range(holds):
        p0 = -0.28 + k * step
        if kind == 0:  # hatch covers
            parts.append(
                (_rect(item, p0, p0 + 0.72 * step, -0.3, 0.3), shade(item.rgb, 1.14), PAINT)
            )
        elif kind == 1:  # stacked containers keep the hull's hue, or its colour word would lie
            for q0 in (-0.4, -0.2, 0.0, 0.2):
                gain = rng.uniform(0.6, 1.3)
                parts.append(
                    (_rect(item, p0, p0 + 0.86 * step, q0, q0 + 0.19), shade(item.rgb, gain), PAINT)
                )
    if kind == 2:  # a tanker's pipes
        parts.append((_rect(item, -0.28, 0.38, -0.03, 0.03), shade(item.rgb, 0.6), PAINT))
        for p0 in (-0.1, 0.06, 0.2):
            parts.append((_rect(item, p0, p0 + 0.01, -0.36, 0.36), shade(item.rgb, 0.65), PAINT))
    parts.append((_rect(item, -0.45, -0.33, -0.4, 0.4), (220, 220, 216), PAINT))
    parts.append((_rect(item, -0.42, -0.385, -0.46, 0.46), (188, 190, 190), PAINT))
    parts.append((_rect(item, -0.475, -0.45, -0.12, 0.12), (70, 70, 74), PAINT))
    return parts


def house(item: Item, look: Look) -> list[Part]:
    """A gabled roof: two faces, one in the sun, and a chimney."""
    parts: list[Part] = [
        (_rect(item, -0.5, 0.5, -0.5, 0.02), shade(item.rgb, _sun_on(item, look, -1.571)), ROOF),
        (_rect(item, -0.5, 0.5, 0.02, 0.5), shade(item.rgb, _sun_on(item, look, 1.571)), ROOF),
    ]
    if item.width > 8:
        p = ((item.seed % 7) - 3) * 0.1
        parts.append((_rect(item, p, p + 0.06, 0.08, 0.18), shade(item.rgb, 0.6), PAINT))
    return parts


def hip(item: Item, look: Look) -> list[Part]:
    """A hipped roof: four faces that meet in a short ridge."""
    ridge = max(0.0, 0.5 - 0.5 * item.width / max(item.length, 1e-6))
    faces = (
        (((-0.5, -0.5), (0.5, -0.5), (ridge, 0.0), (-ridge, 0.0)), -1.571),
        (((0.5, -0.5), (0.5, 0.5), (ridge, 0.0)), 0.0),
        (((0.5, 0.5), (-0.5, 0.5), (-ridge, 0.0), (ridge, 0.0)), 1.571),
        (((-0.5, 0.5), (-0.5, -0.5), (-ridge, 0.0)), 3.142),
    )
    return [(_place(item, SQUARE), item.rgb, ROOF)] + [
        (_place(item, face), shade(item.rgb, _sun_on(item, look, turn)), ROOF)
        for face, turn in faces
    ]


def flat(item: Item, look: Look) -> list[Part]:
    """A flat roof with a parapet, and plant on it when there is room."""
    rng = random.Random(item.seed)
    parts: list[Part] = [(_place(item, SQUARE), shade(item.rgb, 1.1), ROOF)]
    if min(item.length, item.width) < 8:
        return parts
    edge_p, edge_q = 1.6 / item.length, 1.6 / item.width
    parts.append(
        (_rect(item, -0.5 + edge_p, 0.5 - edge_p, -0.5 + edge_q, 0.5 - edge_q), item.rgb, ROOF)
    )
    if rng.random() < 0.4 and item.width > 16:  # bays of a long roof
        bays = 3 + rng.randrange(4)
        for k in range(1, bays):
            p = -0.5 + k / bays
            parts.append((_rect(item, p, p + 1.4 / item.length, -0.48, 0.48), shade(item.rgb, 0.9),
                          ROOF))  # fmt: skip
    for _ in range(rng.randrange(2, 8) if item.width > 14 else rng.randrange(2)):
        p, q = rng.uniform(-0.42, 0.36), rng.uniform(-0.4, 0.32)
        dp, dq = rng.uniform(2.0, 5.0) / item.length, rng.uniform(2.0, 5.0) / item.width
        parts.append((_rect(item, p, p + dp, q, q + dq), shade(item.rgb, rng.choice((0.72, 1.16))),
                      PAINT))  # fmt: skip
    return parts


def tree(item: Item, look: Look) -> list[Part]:
    """A ragged crown, lighter on the side of the sun."""
    rng = random.Random(item.seed)
    count = 9 if item.length > 5 else 6
    crown = []
    for k in range(count):
        r = 0.5 * rng.uniform(0.78, 1.0)
        crown.append((r * math.cos(k * math.tau / count), r * math.sin(k * math.tau / count)))
    parts: list[Part] = [(_place(item, crown), shade(item.rgb, 0.82), CANOPY)]
    if item.length > 4:
        shift = 0.12 * item.length
        dx, dy = shift * math.cos(look.sun_azimuth), shift * math.sin(look.sun_azimuth)
        lit = _place(item, [(0.62 * p, 0.62 * q) for p, q in crown])
        parts.append(([(x - dx, y - dy) for x, y in lit], shade(item.rgb, 1.24), CANOPY))
    return parts


def panel(item: Item, look: Look) -> list[Part]:
    """A solar array: dark glass with a light frame between the modules."""
    parts: list[Part] = [(_place(item, SQUARE), item.rgb, PAINT)]
    if item.width > 5:
        parts.append((_rect(item, -0.5, 0.5, -0.02, 0.02), shade(item.rgb, 1.7), PAINT))
    modules = int(item.length / 9)
    for k in range(1, modules):
        p = -0.5 + k / modules
        parts.append((_rect(item, p - 0.3 / item.length, p + 0.3 / item.length, -0.5, 0.5),
                      shade(item.rgb, 1.45), PAINT))  # fmt: skip
    return parts


def field(item: Item, look: Look) -> list[Part]:
    """A field with the tractor lines of its rows."""
    outline = item.outline or []
    parts: list[Part] = [(outline, item.rgb, SOIL)]
    if len(outline) != 4 or item.width <= 0:
        return parts
    a, b, c, d = outline
    count = min(160, int(math.dist(a, b) / item.width))
    line = shade(item.rgb, 0.93 if item.seed % 2 else 1.06)
    for k in range(1, count):
        t0, t1 = k / count, k / count + 0.16 / count
        parts.append((
            [_mix(a, b, t0), _mix(a, b, t1), _mix(d, c, t1), _mix(d, c, t0)], line, SOIL
        ))  # fmt: skip
    return parts


def _mix(a: Point, b: Point, t: float) -> Point:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t


def crane(item: Item, look: Look) -> list[Part]:
    """A gantry crane: two legs and a boom over the water."""
    return [
        (_rect(item, -0.5, 0.5, -0.08, 0.08), item.rgb, PAINT),
        (_rect(item, -0.3, -0.24, -0.5, 0.5), shade(item.rgb, 0.85), PAINT),
        (_rect(item, 0.0, 0.06, -0.5, 0.5), shade(item.rgb, 0.85), PAINT),
        (_rect(item, -0.3, -0.16, -0.2, 0.2), (210, 210, 206), PAINT),
    ]


def pier(item: Item, look: Look) -> list[Part]:
    """A concrete finger with a kerb."""
    kerb_p, kerb_q = 1.5 / max(item.length, 4), 1.5 / max(item.width, 4)
    return [
        (_place(item, SQUARE), shade(item.rgb, 0.8), CONCRETE),
        (
            _rect(item, -0.5 + kerb_p, 0.5 - kerb_p, -0.5 + kerb_q, 0.5 - kerb_q),
            item.rgb,
            CONCRETE,
        ),
    ]


DRAW: dict[str, Callable[[Item, Look], list[Part]]] = {
    "area": area,
    "slab": slab,
    "vehicle": vehicle,
    "tank": tank,
    "aircraft": aircraft,
    "ship": ship,
    "house": house,
    "hip": hip,
    "flat": flat,
    "tree": tree,
    "panel": panel,
    "field": field,
    "crane": crane,
    "pier": pier,
}


def footprint(item: Item) -> list[Point]:
    """The outline in px that stands for the item in `SceneObject.polygons`."""
    if item.outline is not None:
        return list(item.outline)
    if item.shape == "tank":
        return _place(item, _CIRCLE)
    if item.shape == "ship":
        slim = item.length > 5.2 * item.width
        return _place(item, _HULL_LARGE if slim else _HULL_SMALL)
    return _place(item, SQUARE)


def shadows(item: Item, parts: list[Part], look: Look) -> list[list[Point]]:
    """The outlines of the item's shadow on flat ground, px; none for flat things."""
    reach = item.height * look.shadow_slope
    if reach < 0.3:
        return []
    dx, dy = reach * math.cos(look.sun_azimuth), reach * math.sin(look.sun_azimuth)
    if item.shape in ("aircraft", "crane"):  # they stand clear of the ground
        return [[(x + dx, y + dy) for x, y in points] for points, _, _ in parts[:4]]
    if item.shape == "tree":
        return [[(x + dx, y + dy) for x, y in parts[0][0]]]
    outline = footprint(item)
    moved = [(x + dx, y + dy) for x, y in outline]
    return [moved] if reach < 0.3 * item.width else [_hull(outline + moved)]


def _hull(points: list[Point]) -> list[Point]:
    """Convex hull, monotone chain."""
    points = sorted(points)
    chain: list[Point] = []
    for sweep in (points, points[::-1]):
        start = len(chain)
        for p in sweep:
            while len(chain) >= start + 2:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                chain.pop()
            chain.append(p)
        chain.pop()
    return chain
