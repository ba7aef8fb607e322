"""What is true of a scene: which objects can be asked about, and which phrase means which of them.

Every statement keeps a margin: an object cut off by the border is not counted, the largest is
clearly larger than the next, and what is near is clearly nearer than the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import phrases
from .catalog import ALL_CLASSES, LANDMARKS
from .scene import RenderedScene, SceneObject

AREAS = ("road", "field", "water", "runway", "forest")
"""Classes that reach out of the picture as a rule."""
PLACED = ("road", "parking lot", "pier", "building")
MIN_AREA_PX = 4
CROWD = 60
"""Relations are stated among at most this many objects of a class."""


@dataclass(frozen=True)
class Referent:
    """A phrase without its article, its canonical form, and the objects that it means."""

    phrase: str
    answer: str
    ids: tuple[int, ...]


class Inventory:
    """The objects of a scene by class, with doubts marked."""

    def __init__(self, scene: RenderedScene) -> None:
        self.size_px, self.gsd_m = scene.size_px, scene.gsd_m
        self.by_class: dict[str, list[SceneObject]] = {name: [] for name in ALL_CLASSES}
        for o in scene.objects:
            self.by_class[o.cls].append(o)
        self.by_id = {o.id: o for o in scene.objects}
        self.clear = {o.id for o in scene.objects if self._is_clear(o)}
        self.present = [name for name, found in self.by_class.items() if found]

    def _is_clear(self, o: SceneObject) -> bool:
        """Whether enough of an object shows for anyone to agree that it is there."""
        if o.area_px < MIN_AREA_PX:
            return False
        if o.cls in AREAS:
            return o.area_px > 0.004 * min(self.size_px, 1024) ** 2
        points = np.concatenate([np.asarray(p) for p in o.polygons])
        low, high = points.min(0), points.max(0)
        whole = float(np.prod(np.maximum(high - low, 1.0)))
        x0, y0, x1, y1 = o.box
        if (x1 - x0) * (y1 - y0) < 0.45 * whole:
            return False
        if o.cls in ("aircraft", "tree"):  # their outlines are squares around them
            return True
        return o.area_px > 0.45 * sum(_area(np.asarray(p)) for p in o.polygons)

    def all_clear(self, cls: str) -> bool:
        """Whether every visible object of a class is beyond doubt."""
        return all(o.id in self.clear for o in self.by_class[cls])

    def select(self, cls: str, size: str = "", colour: str = "") -> list[SceneObject]:
        """Objects of a class with these attributes, clear or not."""
        return [
            o
            for o in self.by_class[cls]
            if (not size or o.size == size) and (not colour or o.colour == colour)
        ]

    def can_deny(self, cls: str) -> bool:
        """Whether "there is no such thing" is safe: nothing in the scene could pass for it."""
        lookalikes = {
            "tree": ("forest",),
            "forest": ("tree",),
            "road": ("runway", "parking lot", "pier"),
            "runway": ("road",),
            "parking lot": ("road", "runway"),
            "pier": ("road",),
        }
        return not any(self.by_class[other] for other in lookalikes.get(cls, ()))

    def attributed(self, rng: random.Random, cls: str) -> Referent | None:
        """One clear object named by its class and, where it has neighbours, its attributes."""
        pool = [o for o in self.by_class[cls] if o.id in self.clear]
        if not pool or cls in phrases.MASS:
            return None
        for _ in range(8):
            o = rng.choice(pool)
            tries = [("", "")]
            if cls in phrases.COLOURED:
                tries.append(("", o.colour))
            if cls in phrases.SIZED:
                tries.append((o.size, ""))
            if cls in phrases.COLOURED and cls in phrases.SIZED:
                tries.append((o.size, o.colour))
            rng.shuffle(tries)
            for size, colour in tries:
                if len(self.select(cls, size, colour)) == 1:
                    return self._referent(rng, cls, "{x}", (o.id,), size, colour)
        return None

    def placed(self, rng: random.Random, cls: str) -> Referent | None:
        """One object by where in the image it lies, or by being the largest or smallest."""
        found = self.by_class[cls]
        if not 2 <= len(found) <= CROWD or cls in phrases.MASS or cls == "road":
            return None
        options: list[tuple[str, int]] = []
        margin = 0.05 * self.size_px
        for axis, (low_word, high_word) in ((0, ("left", "right")), (1, ("top", "bottom"))):
            order = sorted(found, key=lambda o: o.centre[axis])
            if order[1].centre[axis] - order[0].centre[axis] > margin:
                options.append((rng.choice(phrases.WHERE[low_word]), order[0].id))
            if order[-1].centre[axis] - order[-2].centre[axis] > margin:
                options.append((rng.choice(phrases.WHERE[high_word]), order[-1].id))
        for corner, forms in phrases.CORNERS.items():
            inside = [o for o in found if self._in_corner(o, corner, 0.47)]
            maybe = [o for o in found if self._in_corner(o, corner, 0.55)]
            if len(inside) == len(maybe) == 1:
                options.append((rng.choice(forms), inside[0].id))
        if cls not in AREAS and self.all_clear(cls):
            order = sorted(found, key=lambda o: o.area_px)
            if order[1].area_px > 1.3 * order[0].area_px + 6:
                options.append((rng.choice(phrases.EXTREME["small"]), order[0].id))
            if order[-1].area_px > 1.3 * order[-2].area_px + 6:
                options.append((rng.choice(phrases.EXTREME["large"]), order[-1].id))
        options = [option for option in options if option[1] in self.clear]
        if not options:
            return None
        form, chosen = rng.choice(options)
        return self._referent(rng, cls, form, (chosen,), "", "")

    def _in_corner(self, o: SceneObject, corner: str, share: float) -> bool:
        x, y = (c / self.size_px for c in o.centre)
        down, across = corner.split()
        return (x if across == "left" else 1 - x) < share and (
            y if down == "top" else 1 - y
        ) < share

    def group(self, rng: random.Random, cls: str) -> Referent | None:
        """All objects of a class, or all of them with an attribute; two or more."""
        found = self.by_class[cls]
        if not any(o.id in self.clear for o in found):
            return None
        tries = [("", "")]
        o = rng.choice(found)
        if cls in phrases.COLOURED:
            tries.append(("", o.colour))
        if cls in phrases.SIZED:
            tries += [(o.size, ""), (o.size, o.colour)]
        size, colour = rng.choice(tries)
        chosen = self.select(cls, size, colour)
        if len(chosen) < 2 and cls not in phrases.MASS:
            return None
        ids = tuple(o.id for o in chosen)
        if not self.clear & set(ids):
            return None
        return self._referent(rng, cls, "{x}", ids, size, colour, plural=True)

    def related(self, rng: random.Random, cls: str) -> tuple[Referent, bool] | None:
        """Objects by their relation to another one, and whether the phrase is plural."""
        tries: list[Callable[[random.Random, str], tuple[Referent, bool] | None]] = [
            self._on, self._near, self._near, self._nearest, self._beside,
        ]  # fmt: skip
        rng.shuffle(tries)
        for attempt in tries:
            made = attempt(rng, cls)
            if made is not None:
                return made
        return None

    def _on(self, rng: random.Random, cls: str) -> tuple[Referent, bool] | None:
        """What stands on roads, in parking lots, on piers or on roofs."""
        found = self.by_class[cls]
        places = [p for p in PLACED if any(o.place == p for o in found)]
        if not places:
            return None
        place = rng.choice(places)
        if not any(o.id in self.clear for o in self.by_class[place]):
            return None
        ids = tuple(o.id for o in found if o.place == place)
        if place == "pier" and len(self.by_class["pier"]) != 1:
            return None
        if len(ids) < 2 or not self.clear & set(ids):
            return None
        form = rng.choice(phrases.ON[place])
        return self._referent(rng, cls, form, ids, "", "", plural=True), True

    def _anchor(self, rng: random.Random, cls: str) -> tuple[SceneObject, str] | None:
        """Another object that a phrase can name: alone of its class, or alone with its colour."""
        names = [name for name in self.present if name != cls and name not in ("field", "road")]
        names += [name for name in names if name in LANDMARKS] * 4
        for _ in range(6):
            if not names:
                return None
            name = rng.choice(names)
            found = self.by_class[name]
            if name in phrases.MASS and len(found) != 1:
                continue
            o = rng.choice(found)
            if o.id not in self.clear:
                continue
            noun = rng.choice(phrases.NAMES[name])[0]
            if len(found) == 1:
                return o, f"the {noun}"
            if name in phrases.COLOURED and len(self.select(name, "", o.colour)) == 1:
                return o, f"the {o.colour} {noun}"
        return None

    def _distances(self, found: list[SceneObject], anchor: SceneObject) -> NDArray[np.float64]:
        return np.array([gap_px(o, anchor) for o in found])

    def _nearest(self, rng: random.Random, cls: str) -> tuple[Referent, bool] | None:
        found = self.by_class[cls]
        if not 2 <= len(found) <= CROWD:
            return None
        anchor = self._anchor(rng, cls)
        if anchor is None:
            return None
        distances = self._distances(found, anchor[0])
        order = np.argsort(distances, kind="stable")
        first, second = distances[order[0]], distances[order[1]]
        if found[order[0]].id not in self.clear:
            return None
        if second < 1.4 * first + max(4.0, 0.02 * self.size_px):
            return None
        form = rng.choice(phrases.NEAREST).replace("{y}", anchor[1])
        ids = (found[order[0]].id,)
        return self._referent(rng, cls, form, ids, "", ""), False

    def _near(self, rng: random.Random, cls: str) -> tuple[Referent, bool] | None:
        """The objects that lie around an anchor, if a wide gap parts them from the others."""
        found = self.by_class[cls]
        if not 3 <= len(found) <= CROWD:
            return None
        anchor = self._anchor(rng, cls)
        if anchor is None:
            return None
        distances = self._distances(found, anchor[0])
        order = np.argsort(distances, kind="stable")
        reach = min(45.0 / self.gsd_m, 0.2 * self.size_px)
        for k in range(len(found) - 1, 1, -1):
            inner, outer = distances[order[k - 1]], distances[order[k]]
            if inner < reach and outer > 2.0 * inner + 12.0 / self.gsd_m:
                ids = tuple(found[i].id for i in sorted(order[:k]))
                if not self.clear.issuperset(ids):
                    return None
                form = rng.choice(phrases.NEAR).replace("{y}", anchor[1])
                return self._referent(rng, cls, form, ids, "", "", True), True
        return None

    def _beside(self, rng: random.Random, cls: str) -> tuple[Referent, bool] | None:
        """One object, or several, on one side of an anchor."""
        found = self.by_class[cls]
        if not 2 <= len(found) <= CROWD:
            return None
        anchor = self._anchor(rng, cls)
        if anchor is None or anchor[0].area_px > 0.15 * self.size_px**2:
            return None
        x0, y0, x1, y1 = anchor[0].box
        side = rng.choice(list(phrases.SIDES))
        inside, maybe = [], []
        for o in found:
            a0, b0, a1, b1 = o.box
            x, y = o.centre
            beyond = {"left": a1 <= x0, "right": a0 >= x1, "above": b1 <= y0, "below": b0 >= y1}
            past = {
                "left": x < (x0 + x1) / 2, "right": x > (x0 + x1) / 2,
                "above": y < (y0 + y1) / 2, "below": y > (y0 + y1) / 2,
            }  # fmt: skip
            if beyond[side]:
                inside.append(o.id)
            elif past[side]:
                maybe.append(o.id)
        if not self.clear.issuperset(inside) or not inside or maybe or len(inside) == len(found):
            return None
        form = rng.choice(phrases.SIDES[side]).replace("{y}", anchor[1])
        plural = len(inside) > 1
        made = self._referent(rng, cls, form, tuple(inside), "", "", plural)
        return made, plural

    def _referent(
        self,
        rng: random.Random,
        cls: str,
        form: str,
        ids: tuple[int, ...],
        size: str,
        colour: str,
        plural: bool = False,
    ) -> Referent:
        names = phrases.NAMES[cls]
        # "house" is a small building, so only those are called so.
        if cls == "building" and any(self.by_id[i].size == "large" for i in ids):
            names = names[:1]
        if cls == "building" and len(self.by_class["building"]) != len(
            self.select("building", "small")
        ):
            names = names[:1]
        name = rng.choice(names)[plural]
        canonical = phrases.NAMES[cls][0][plural]
        return Referent(
            form.format(x=phrases.with_attributes(name, size, colour)),
            phrases.with_attributes(canonical, size, colour),
            ids,
        )


def _area(points: NDArray[np.float64]) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def gap_px(one: SceneObject, two: SceneObject) -> float:
    """Distance in px between the outlines of two objects; 0 where they overlap."""
    return min(_gap(np.asarray(p), np.asarray(q)) for p in one.polygons for q in two.polygons)


def _gap(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    if _inside(p[:1], q) or _inside(q[:1], p):
        return 0.0
    return min(_to_edges(p, q), _to_edges(q, p))


def _to_edges(points: NDArray[np.float64], ring: NDArray[np.float64]) -> float:
    """Smallest distance from points [n,2] to the edges of a ring [m,2]."""
    start, along = ring[None], (np.roll(ring, -1, 0) - ring)[None]
    offset = points[:, None] - start
    t = np.clip((offset * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12), 0, 1)
    return float(np.sqrt(((offset - t[..., None] * along) ** 2).sum(-1)).min())


def _inside(point: NDArray[np.float64], ring: NDArray[np.float64]) -> bool:
    """Whether a point [1,2] lies in a ring [m,2], by ray casting."""
    x, y = point[0]
    a, b = ring, np.roll(ring, -1, 0)
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    rise = np.where(crosses, b[:, 1] - a[:, 1], 1.0)
    at = a[:, 0] + (y - a[:, 1]) / rise * (b[:, 0] - a[:, 0])
    return bool((crosses & (x < at)).sum() % 2)
