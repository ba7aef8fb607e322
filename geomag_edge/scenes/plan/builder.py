"""Puts objects into a scene: from layout metres, class, colour and size to items in pixels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from geomag_edge.scenes import catalog, shapes
from geomag_edge.scenes.spec import Frame, Item, Look, Thing

# Painter's order.
GROUND, WATER, FIELD, PAD, ROAD, MARK, PIER, LOW, MIDDLE, HIGH, ROOFTOP, TREE = range(12)


@dataclass
class Cell:
    """A rectangle of the layout frame, in metres, that one district fills."""

    u0: float
    v0: float
    u1: float
    v1: float
    rng: random.Random
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def u(self) -> float:
        """Centre, u."""
        return 0.5 * (self.u0 + self.u1)

    @property
    def v(self) -> float:
        """Centre, v."""
        return 0.5 * (self.v0 + self.v1)

    @property
    def w(self) -> float:
        """Extent along u."""
        return self.u1 - self.u0

    @property
    def h(self) -> float:
        """Extent along v."""
        return self.v1 - self.v0

    def take(self, u: float, v: float, du: float, dv: float, gap: float = 0.0) -> bool:
        """Claims the rectangle of size du x dv around a point unless something is there."""
        a0, b0, a1, b1 = u - du / 2 - gap, v - dv / 2 - gap, u + du / 2 + gap, v + dv / 2 + gap
        if a0 < self.u0 or b0 < self.v0 or a1 > self.u1 or b1 > self.v1:
            return False
        for c0, d0, c1, d1 in self.taken:
            if a0 < c1 and c0 < a1 and b0 < d1 and d0 < b1:
                return False
        self.taken.append((a0 + gap, b0 + gap, a1 - gap, b1 - gap))
        return True

    def block(self, u0: float, v0: float, u1: float, v1: float) -> None:
        """Claims a rectangle whatever is there."""
        self.taken.append((u0, v0, u1, v1))


class Builder:
    """Collects items and things; drops what falls outside the picture."""

    def __init__(self, frame: Frame, look: Look, rng: random.Random) -> None:
        self.frame, self.look, self.rng = frame, look, rng
        self.items: list[Item] = []
        self.things: list[Thing] = []
        self.ground = catalog.GROUND[look.season]
        self.water_rgb = rng.choice(catalog.WATER_RGB)
        self.sea: Thing | None = None
        self._driven: set[tuple[int, int]] = set()

    def rgb(self, cls: str, colour: str) -> tuple[int, int, int]:
        """The colour word as this class wears it, a little different each time."""
        tables: dict[str, dict[str, tuple[int, int, int]]] = {
            "field": catalog.FIELD_RGB, "tree": catalog.TREE_RGB, "solar panel": catalog.PANEL_RGB
        }  # fmt: skip
        base = tables.get(cls, catalog.COLOURS)[colour]
        if cls == "tree" and colour == "green":
            base = self.ground["tree"] if self.look.season == "summer" else base
        if cls == "building":
            # Roofs are duller than paint.
            mean = sum(base) / 3
            red, green, blue = (int(0.68 * x + 0.32 * mean) for x in base)
            base = red, green, blue
        return shapes.shade(base, self.rng.uniform(0.92, 1.08))

    def thing(self, cls: str, colour: str, size: str, angle: float) -> Thing:
        """A new object of the ground truth; `angle` in radians of the image frame."""
        thing = Thing(len(self.things) + 1, cls, colour, size, math.degrees(angle) % 180.0)
        self.things.append(thing)
        return thing

    def _outside(self, x: float, y: float, reach: float) -> bool:
        size = self.frame.size_px
        return x < -reach or y < -reach or x > size + reach or y > size + reach

    def _item(
        self,
        shape: str,
        layer: int,
        u: float,
        v: float,
        heading: float,
        dims_m: tuple[float, float, float],
        rgb: tuple[int, int, int],
        material: int,
    ) -> Item | None:
        x, y = self.frame.point(u, v)
        gsd = self.frame.gsd_m
        length, width, height = (d / gsd for d in dims_m)
        if self._outside(x, y, 0.5 * math.hypot(length, width) + height * 1.2):
            return None
        item = Item(
            0,
            shape,
            layer,
            x,
            y,
            self.frame.heading(u, v, heading),
            max(length, 0.5),
            max(width, 0.5),
            height,
            rgb,
            self.rng.getrandbits(24),
            material,
        )
        self.items.append(item)
        return item

    def stamp(
        self,
        cls: str,
        shape: str,
        layer: int,
        u: float,
        v: float,
        heading: float,
        dims_m: tuple[float, float, float],
        colour: str,
        size: str,
    ) -> Thing | None:
        """Adds a rigid object of length, width and height in metres; None if out of the picture."""
        rgb = self.rgb(cls, colour)
        item = self._item(shape, layer, u, v, heading, dims_m, rgb, catalog.CONCRETE)
        if item is None:
            return None
        thing = self.thing(cls, colour, size, item.angle)
        item.object_id = thing.id
        thing.polygons.append(shapes.footprint(item))
        return thing

    def decor(
        self,
        shape: str,
        layer: int,
        u: float,
        v: float,
        heading: float,
        dims_m: tuple[float, float, float],
        rgb: tuple[int, int, int],
        material: int = catalog.PAINT,
        owner: Thing | None = None,
    ) -> None:
        """Adds a rigid thing that is no object, or a detail of the object `owner`."""
        item = self._item(shape, layer, u, v, heading, dims_m, rgb, material)
        if item is not None and owner is not None:
            item.object_id = owner.id

    def outline(self, points: list[tuple[float, float]], step_m: float = 60.0) -> list:
        """A closed layout polygon in px, with extra vertices so that it bends with the frame."""
        out = []
        for (ua, va), (ub, vb) in zip(points, points[1:] + points[:1], strict=True):
            count = max(1, int(math.hypot(ub - ua, vb - va) / step_m))
            for k in range(count):
                t = k / count
                out.append(self.frame.point(ua + (ub - ua) * t, va + (vb - va) * t))
        return out

    def area(
        self,
        points: list[tuple[float, float]],
        layer: int,
        rgb: tuple[int, int, int],
        material: int,
        owner: Thing | None = None,
        step_m: float = 60.0,
    ) -> bool:
        """Adds a polygon; says whether it may be in the picture."""
        outline = self.outline(points, step_m)
        xs, ys = zip(*outline, strict=True)
        size = self.frame.size_px
        if max(xs) < 0 or max(ys) < 0 or min(xs) > size or min(ys) > size:
            return False
        item = Item(owner.id if owner else 0, "area", layer, 0, 0, 0, 0, 0, 0, rgb, 0, material)
        item.outline = outline
        self.items.append(item)
        if owner is not None:
            owner.polygons.append(outline)
        return True

    def area_thing(
        self,
        cls: str,
        points: list[tuple[float, float]],
        layer: int,
        colour: str,
        size: str,
        rgb: tuple[int, int, int],
        material: int,
    ) -> Thing | None:
        """Adds a polygon that is an object."""
        thing = self.thing(cls, colour, size, 0.0)
        if not self.area(points, layer, rgb, material, thing):
            self.things.pop()
            return None
        return thing

    def field(self, u0: float, v0: float, u1: float, v1: float, colour: str) -> Thing | None:
        """A field with rows, an exact quadrilateral."""
        corners = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
        if self.rng.random() < 0.5:
            corners = corners[1:] + corners[:1]
        size = "large" if (u1 - u0) * (v1 - v0) > catalog.FIELD_AREA_M2 else "small"
        thing = self.area_thing(
            "field", corners, FIELD, colour, size, self.rgb("field", colour), catalog.SOIL
        )
        if thing is not None:
            item = self.items[-1]
            item.shape = "field"
            item.outline = [self.frame.point(*corner) for corner in corners]
            item.width = self.rng.choice((4.0, 8.0, 12.0)) / self.frame.gsd_m
            item.seed = self.rng.getrandbits(8)
            thing.polygons[:] = [item.outline]
        return thing

    def road(
        self, u0: float, v0: float, u1: float, v1: float, width_m: float, dirt: bool = False
    ) -> Thing | None:
        """A straight road in the layout frame, with lane marks when it is paved."""
        length = math.hypot(u1 - u0, v1 - v0)
        if length < 2 * width_m:
            return None
        heading = math.atan2(v1 - v0, u1 - u0)
        nu, nv = -math.sin(heading) * width_m / 2, math.cos(heading) * width_m / 2
        colour = "brown" if dirt else "grey"
        rgb = shapes.shade(
            catalog.DIRT_RGB if dirt else catalog.ASPHALT_RGB, self.rng.uniform(0.85, 1.1)
        )
        material = catalog.GRAVEL if dirt else catalog.ASPHALT
        middle = self.frame.heading((u0 + u1) / 2, (v0 + v1) / 2, heading)
        thing = self.thing("road", colour, "large" if width_m > 9 else "small", middle)
        count = max(1, int(length / 60.0))
        kept = 0
        for k in range(count):
            ta, tb = k / count, (k + 1) / count
            # A little overlap hides the joints where the frame bends.
            tb = min(1.0, tb + 0.5 / length)
            ua, va = u0 + (u1 - u0) * ta, v0 + (v1 - v0) * ta
            ub, vb = u0 + (u1 - u0) * tb, v0 + (v1 - v0) * tb
            quad = [(ua + nu, va + nv), (ub + nu, vb + nv), (ub - nu, vb - nv), (ua - nu, va - nv)]
            if not self.area(quad, ROAD, rgb, material, thing, 1e9):
                continue
            kept += 1
            if not dirt and 0.15 / self.frame.gsd_m > 0.1:
                self._lane_marks(thing, ua, va, ub, vb, heading, width_m)
        if not kept:
            self.things.pop()
            return None
        return thing

    def _lane_marks(
        self,
        thing: Thing,
        ua: float,
        va: float,
        ub: float,
        vb: float,
        heading: float,
        width_m: float,
    ) -> None:
        span = math.hypot(ub - ua, vb - va)
        paint = (196, 196, 188)
        for k in range(int(span / 12.0)):
            t = (k + 0.5) * 12.0 / span
            u, v = ua + (ub - ua) * t, va + (vb - va) * t
            self.decor("slab", MARK, u, v, heading, (4.0, 0.3, 0), paint, owner=thing)
        if width_m > 9:
            for side in (-1, 1):
                off = side * (width_m / 2 - 0.7)
                u, v = (
                    (ua + ub) / 2 - math.sin(heading) * off,
                    (va + vb) / 2 + math.cos(heading) * off,
                )
                self.decor("slab", MARK, u, v, heading, (span, 0.25, 0), paint, owner=thing)

    def vehicle(
        self, u: float, v: float, heading: float, large: bool = False, place: str = ""
    ) -> Thing | None:
        """A car or a lorry of a random colour."""
        size = "large" if large else "small"
        length = self.rng.uniform(*catalog.VEHICLE_LENGTH_M[size])
        if length < 2.4 * self.frame.gsd_m:
            return None
        dims = (length, 2.6 if large else self.rng.uniform(1.8, 2.1), 3.2 if large else 1.5)
        colour = self.rng.choice(catalog.CLASS_COLOURS["vehicle"])
        made = self.stamp("vehicle", "vehicle", LOW, u, v, heading, dims, colour, size)
        if made is not None:
            made.place = place
        return made

    def traffic(
        self,
        u0: float,
        v0: float,
        u1: float,
        v1: float,
        width_m: float,
        spacing_m: float,
        place: str = "road",
    ) -> None:
        """Vehicles on a road, in both lanes, on average one every `spacing_m`."""
        length = math.hypot(u1 - u0, v1 - v0)
        heading = math.atan2(v1 - v0, u1 - u0)
        at = self.rng.uniform(5.0, spacing_m)
        while at < length - 12:
            side = self.rng.choice((-1, 1))
            off = side * width_m / 4
            t = at / length
            u = u0 + (u1 - u0) * t - math.sin(heading) * off
            v = v0 + (v1 - v0) * t + math.cos(heading) * off
            if self._way_is_free(u, v):
                turn = heading + (math.pi if side < 0 else 0.0)
                self.vehicle(u, v, turn, self.rng.random() < 0.18, place)
            at += 19.0 + self.rng.uniform(0.0, 2 * max(spacing_m - 19.0, 1.0))

    def _way_is_free(self, u: float, v: float) -> bool:
        """Keeps vehicles of crossing roads out of one another."""
        i, j = int(u // 9), int(v // 9)
        if any((i + a, j + b) in self._driven for a in (-1, 0, 1) for b in (-1, 0, 1)):
            return False
        self._driven.add((i, j))
        return True

    def building(
        self,
        cell: Cell,
        u: float,
        v: float,
        du: float,
        dv: float,
        shape: str = "flat",
        colour: str = "",
        height_m: float = 7.0,
        yard_m: float = 0.0,
    ) -> Thing | None:
        """A building of du x dv metres if the place is free, on a paved yard if it has one."""
        area_m2 = du * dv
        if 260 < area_m2 < 560:  # the gap between small and large
            grow = math.sqrt((250.0 if area_m2 < catalog.BUILDING_AREA_M2 else 575.0) / area_m2)
            du, dv = du * grow, dv * grow
        if not cell.take(u, v, du, dv, 2.0):
            return None
        size = "large" if du * dv > catalog.BUILDING_AREA_M2 else "small"
        colour = colour or self.rng.choice(catalog.CLASS_COLOURS["building"])
        if yard_m:
            rgb = shapes.shade(catalog.CONCRETE_RGB, self.rng.uniform(0.68, 0.95))
            self.decor("slab", GROUND, u, v, 0.0, (du + 2 * yard_m, dv + 2 * yard_m, 0), rgb,
                       catalog.CONCRETE)  # fmt: skip
        turned = dv > du
        dims = (dv, du, height_m) if turned else (du, dv, height_m)
        return self.stamp(
            "building", shape, HIGH, u, v, math.pi / 2 if turned else 0.0, dims, colour, size
        )

    def roof_panel(
        self, u: float, v: float, heading: float, length_m: float, width_m: float, colour: str
    ) -> None:
        """A solar array on a roof."""
        size = "large" if length_m > 12 else "small"
        dims = (length_m, width_m, 0.3)
        made = self.stamp("solar panel", "panel", ROOFTOP, u, v, heading, dims, colour, size)
        if made is not None:
            made.place = "building"

    def trees(self, cell: Cell, count: int, large: float = 0.3, colour: str = "") -> None:
        """Scatters trees over what is free in a cell; `large` is the share of large ones."""
        palette = ("green", "green", "green", "brown")
        if self.look.season == "autumn":
            palette = ("green", "orange", "orange", "brown")
        for _ in range(count):
            size = "large" if self.rng.random() < large else "small"
            d = self.rng.uniform(*catalog.TREE_DIAMETER_M[size])
            u = self.rng.uniform(cell.u0, cell.u1)
            v = self.rng.uniform(cell.v0, cell.v1)
            if cell.take(u, v, d, d, 1.0):
                self.stamp("tree", "tree", TREE, u, v, self.rng.uniform(0, 6.28),
                           (d, d, 0.9 * d), colour or self.rng.choice(palette), size)  # fmt: skip

    def parking(
        self,
        cell: Cell,
        u0: float,
        v0: float,
        u1: float,
        v1: float,
        fill: float,
        large: float = 0.0,
    ) -> Thing | None:
        """A parking lot: double rows of bays along u, a share `fill` of them with a vehicle."""
        if not cell.take((u0 + u1) / 2, (v0 + v1) / 2, u1 - u0, v1 - v0):
            return None
        rgb = shapes.shade(catalog.ASPHALT_RGB, self.rng.uniform(0.8, 1.05))
        size = "large" if (u1 - u0) * (v1 - v0) > 1800 else "small"
        corners = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
        lot = self.area_thing("parking lot", corners, PAD, "grey", size, rgb, catalog.ASPHALT)
        if lot is None:
            return None
        lorries = self.rng.random() < large
        bay, depth = (4.4, 18.0) if lorries else (2.9, 5.6)
        aisle = 12.0 if lorries else 7.0
        heading = math.pi / 2
        v, row = v0 + 1.5, 0
        while v + depth < v1:
            for k in range(int((u1 - u0 - 3.0) / bay)):
                u = u0 + 1.5 + k * bay
                self.decor(
                    "slab",
                    MARK,
                    u,
                    v + depth / 2,
                    heading,
                    (depth, 0.18, 0),
                    (190, 190, 184),
                    owner=lot,
                )
                if self.rng.random() < fill:
                    turn = heading + (math.pi if self.rng.random() < 0.5 else 0.0)
                    self.vehicle(u + bay / 2, v + depth / 2, turn, lorries, "parking lot")
            row += 1
            v += depth + (0.4 if row % 2 == 0 else aisle)
        return lot
