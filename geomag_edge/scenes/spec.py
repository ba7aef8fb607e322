"""A scene as vectors: what is where, in which colour, under which sky. No pixels yet.

Frames: the layout frame is metres, u right and v down, with the scene's centre at the origin;
the image frame is pixels, x right and y down, with the origin at the top left corner. `Frame`
maps one to the other with a rotation and a slow bend, so that towns are not graph paper.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Look:
    """Season, sun and sensor of one scene."""

    season: str
    sun_azimuth: float  # radians, image frame, direction in which shadows fall
    shadow_slope: float  # shadow length per metre of height
    shadow_strength: float  # 0 (none) .. 1 (black)
    haze: float  # 0 (clear) .. 1 (white)
    blur_px: float  # Gaussian sigma
    noise: float  # sigma in grey levels
    cast: tuple[float, float, float]  # gain by channel
    contrast: float


def make_look(rng: random.Random) -> Look:
    """Draws season, sun and sensor."""
    warmth = rng.uniform(-0.05, 0.05)
    gain = rng.uniform(0.92, 1.08)
    return Look(
        season=rng.choice(("spring", "summer", "summer", "autumn", "winter")),
        sun_azimuth=rng.uniform(0.0, math.tau),
        shadow_slope=rng.uniform(0.35, 1.1),
        shadow_strength=rng.uniform(0.45, 0.68),
        haze=max(0.0, rng.uniform(-0.12, 0.22)),
        blur_px=rng.uniform(0.35, 0.8),
        noise=rng.uniform(1.0, 4.5),
        cast=(gain * (1 + warmth), gain, gain * (1 - warmth)),
        contrast=rng.uniform(0.94, 1.1),
    )


class Frame:
    """Layout metres to image pixels: rotation about the centre after a slow bend.

    The bend shifts u by a sine of v and v by a sine of u; its wavelength is kilometres, so single
    objects stay rigid while roads curve.
    """

    def __init__(self, rng: random.Random, size_px: int, gsd_m: float) -> None:
        self.size_px, self.gsd_m = size_px, gsd_m
        self.theta = rng.uniform(0.0, math.tau)
        self._cos, self._sin = math.cos(self.theta), math.sin(self.theta)
        self._ku, self._kv = (math.tau / rng.uniform(2600.0, 4400.0) for _ in range(2))
        self._amp_u, self._amp_v = (rng.uniform(0.03, 0.08) / k for k in (self._ku, self._kv))
        self._phase_u, self._phase_v = rng.uniform(0, math.tau), rng.uniform(0, math.tau)
        # Keeps the origin at the image centre whatever the bend.
        self._u0 = self._amp_u * math.sin(self._phase_u)
        self._v0 = self._amp_v * math.sin(self._phase_v)

    def point(self, u: float, v: float) -> tuple[float, float]:
        """Layout metres to image pixels."""
        bent_u = u + self._amp_u * math.sin(self._ku * v + self._phase_u) - self._u0
        bent_v = v + self._amp_v * math.sin(self._kv * u + self._phase_v) - self._v0
        half = self.size_px / 2
        return (
            half + (self._cos * bent_u - self._sin * bent_v) / self.gsd_m,
            half + (self._sin * bent_u + self._cos * bent_v) / self.gsd_m,
        )

    def heading(self, u: float, v: float, angle: float) -> float:
        """The image direction of the layout direction `angle` at a point, both in radians."""
        du, dv = math.cos(angle), math.sin(angle)
        bent_u = du + self._amp_u * self._ku * math.cos(self._ku * v + self._phase_u) * dv
        bent_v = dv + self._amp_v * self._kv * math.cos(self._kv * u + self._phase_v) * du
        return math.atan2(bent_v, bent_u) + self.theta


@dataclass(slots=True)
class Item:
    """One thing to draw: a rigid stamp (`outline` is None) or an area with its own outline."""

    object_id: int  # 0 for decoration
    shape: str  # key of `shapes.DRAW`
    layer: int  # painter's order
    x: float  # centre, px
    y: float
    angle: float  # radians in the image frame, direction of the length
    length: float  # px
    width: float  # px
    height: float  # px, for shadows
    rgb: tuple[int, int, int]
    seed: int
    material: int = 0
    outline: list[tuple[float, float]] | None = None  # px

    def bounds(self, shadow_slope: float) -> tuple[float, float, float, float]:
        """Where the item and its shadow may put ink, px."""
        reach = self.height * shadow_slope + 2.0
        if self.outline is not None:
            xs, ys = zip(*self.outline, strict=True)
            return min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach
        reach += 0.5 * math.hypot(self.length, self.width)
        return self.x - reach, self.y - reach, self.x + reach, self.y + reach


@dataclass(slots=True)
class Thing:
    """One object of the ground truth; its items carry its id."""

    id: int  # 1, 2, ...
    cls: str
    colour: str
    size: str
    orientation: float  # degrees clockwise from the image's x axis, in [0, 180)
    polygons: list[list[tuple[float, float]]] = field(default_factory=list)  # px
    place: str = ""  # the class of what it stands on: road, parking lot, pier, building


@dataclass
class SceneSpec:
    """The vector description of a scene; `raster.rasterise` turns windows of it into pixels."""

    seed: int
    size_px: int
    gsd_m: float
    scene_class: str
    class_share: float  # part of the scene's districts that are of `scene_class`
    look: Look
    ground_rgb: tuple[int, int, int]
    items: list[Item]  # in painter's order
    things: list[Thing]  # things[i].id == i + 1
    tiles: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # tile -> item indices
