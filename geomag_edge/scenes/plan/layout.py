"""From a seed to a scene as vectors: sky, frame, districts, and an index of what lies where."""

from __future__ import annotations

import random

import numpy as np

from geomag_edge.errors import InputError
from geomag_edge.scenes import catalog
from geomag_edge.scenes.raster import index_tiles
from geomag_edge.scenes.shapes import shade
from geomag_edge.scenes.spec import Frame, SceneSpec, make_look

from .builder import Builder, Cell
from .mosaic import FILL, fill_mosaic

SIZE_RANGE_PX = (64, 32768)
GSD_RANGE_M = (0.1, 5.0)
SINGLE_M = 620.0
"""Scenes up to this extent are one district."""


def lay_out(seed: int, size_px: int, gsd_m: float | None = None) -> SceneSpec:
    """The vector description of the scene of a seed.

    Args:
        seed: any non-negative integer; the same arguments always give the same scene.
        size_px: the side of the square image.
        gsd_m: metres per pixel; drawn from 0.3 to 1.0 if None.
    """
    if not _is_whole(seed) or seed < 0:
        raise InputError(f"a scene's seed is {seed!r}; give a non-negative integer")
    low, high = SIZE_RANGE_PX
    if not _is_whole(size_px) or not low <= size_px <= high:
        raise InputError(f"a scene of {size_px!r} px was asked for; give {low} to {high} px")
    seed, size_px = int(seed), int(size_px)
    rng = random.Random(f"{seed}:{size_px}")
    if gsd_m is None:
        gsd_m = rng.choice((0.3, 0.4, 0.5, 0.6, 0.8, 1.0))
    if not GSD_RANGE_M[0] <= gsd_m <= GSD_RANGE_M[1]:
        raise InputError(
            f"a ground sample distance of {gsd_m!r} m was asked for; give "
            f"{GSD_RANGE_M[0]} to {GSD_RANGE_M[1]} metres per pixel"
        )
    return _assemble(seed, size_px, float(gsd_m), rng, rng.choice(catalog.SCENE_CLASSES))


def _is_whole(value: object) -> bool:
    """Whether a value is an integer, Python's or numpy's."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


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
        theme, share = fill_mosaic(builder, size_m, theme, seed)
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
