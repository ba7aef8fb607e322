"""Vectors to pixels, one fixed tile at a time.

Every window is put together from the same tiles of a global grid, so windows agree with the whole
by construction and memory stays bounded. A tile is drawn once into an index of parts at twice the
resolution; colours, materials and object labels are all looked up from that one index, so masks
are exactly what the image shows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import InputError
from . import effects, shapes
from .catalog import GRASS
from .drawing import Drawing
from .spec import SceneSpec

TILE = 512
HALO = 4
"""Pixels drawn around a tile so that the blur sees its neighbours."""
SUB = 2
"""Subpixels along each axis."""


def index_tiles(spec: SceneSpec) -> None:
    """Sorts the items into painter's order and notes which tiles each one touches."""
    spec.items.sort(key=lambda item: item.layer)
    last = (spec.size_px - 1) // TILE
    slope = spec.look.shadow_slope
    for i, item in enumerate(spec.items):
        x0, y0, x1, y1 = item.bounds(slope)
        tx0, tx1 = max(0, int(x0 - HALO) // TILE), min(last, int(x1 + HALO) // TILE)
        ty0, ty1 = max(0, int(y0 - HALO) // TILE), min(last, int(y1 + HALO) // TILE)
        for ty in range(ty0, ty1 + 1):
            for tx in range(tx0, tx1 + 1):
                spec.tiles.setdefault((tx, ty), []).append(i)


def draw(spec: SceneSpec, tx: int, ty: int, halo: int = HALO) -> Drawing:
    """Draws the items of one tile, with a halo of that many pixels around it."""
    x0, y0 = tx * TILE - halo, ty * TILE - halo
    width = min(TILE, spec.size_px - tx * TILE) + 2 * halo
    height = min(TILE, spec.size_px - ty * TILE) + 2 * halo
    index = Image.new("I", (SUB * width, SUB * height), 0)
    shadow = Image.new("L", index.size, 0)
    ink, dark = ImageDraw.Draw(index), ImageDraw.Draw(shadow)
    rgb, material, owner = [spec.ground_rgb], [GRASS], [0]
    # Pillow fills the pixels of a polygon's edge too; -0.5 centres that half pixel of growth.
    ox, oy = SUB * x0 + 0.5, SUB * y0 + 0.5
    floor, look = math.floor, spec.look

    def subpixels(points: list[tuple[float, float]]) -> list[int]:
        flat: list[int] = []
        for px, py in points:
            flat.append(floor(SUB * px - ox + 0.5))
            flat.append(floor(SUB * py - oy + 0.5))
        return flat

    for i in spec.tiles.get((tx, ty), ()):
        item = spec.items[i]
        parts = shapes.DRAW[item.shape](item, look)
        if item.height:
            for cast in shapes.shadows(item, parts, look):
                dark.polygon(subpixels(cast), fill=255)
        for points, colour, kind in parts:
            flat = subpixels(points)
            ink.polygon(flat, fill=len(owner))
            if item.height or item.layer > 1:
                dark.polygon(flat, fill=0)
            rgb.append(colour)
            material.append(kind)
            owner.append(item.object_id)
    return Drawing(x0, y0, np.asarray(index), shadow, rgb, material, owner)


def labels(drawing: Drawing, halo: int = HALO) -> NDArray[np.int32]:
    """Object ids i32[h,w] of the tile without its halo: the id of most of a pixel's subpixels.

    Where two objects hold half a pixel each, the one with the higher id gets it; bare ground
    never wins against half an object.
    """
    edge = SUB * halo
    rows, cols = drawing.index.shape
    inner = drawing.index[edge : rows - edge, edge : cols - edge]
    ids = np.asarray(drawing.owner, np.int32).take(inner)
    p, q, r, s = ids[::2, ::2], ids[::2, 1::2], ids[1::2, ::2], ids[1::2, 1::2]
    low0, high0 = np.minimum(p, q), np.maximum(p, q)
    low1, high1 = np.minimum(r, s), np.maximum(r, s)
    a, d = np.minimum(low0, low1), np.maximum(high0, high1)
    b, c = np.maximum(low0, low1), np.minimum(high0, high1)
    b, c = np.minimum(b, c), np.maximum(b, c)
    return np.where(b == c, b, np.where((a == b) & (c != d), a, d))


def render_tile(spec: SceneSpec, tx: int, ty: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """One tile as the sensor sees it u8[h,w,3], and its object ids i32[h,w]."""
    drawing = draw(spec, tx, ty)
    return effects.develop(spec, drawing, HALO, SUB), labels(drawing)


def tiles_in(spec: SceneSpec, window: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """Tiles (tx, ty) that a pixel window (x0, y0, x1, y1) touches, row by row."""
    x0, y0, x1, y1 = window
    if not (0 <= x0 < x1 <= spec.size_px and 0 <= y0 < y1 <= spec.size_px):
        raise InputError(
            f"the window {window} is empty or leaves the scene; give x0 < x1 and y0 < y1 "
            f"within 0 and {spec.size_px}"
        )
    return [
        (tx, ty)
        for ty in range(y0 // TILE, (y1 - 1) // TILE + 1)
        for tx in range(x0 // TILE, (x1 - 1) // TILE + 1)
    ]


def rasterise(
    spec: SceneSpec, window: tuple[int, int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Image u8[h,w,3] and object ids i32[h,w] of a window (x0, y0, x1, y1) in pixels."""
    tiles = tiles_in(spec, window)
    x0, y0, x1, y1 = window
    image = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    ids = np.empty((y1 - y0, x1 - x0), np.int32)
    for tx, ty in tiles:
        tile_image, tile_ids = render_tile(spec, tx, ty)
        paste(image, tile_image, window, tx, ty)
        paste(ids, tile_ids, window, tx, ty)
    return image, ids


def rasterise_ids(spec: SceneSpec, window: tuple[int, int, int, int]) -> NDArray[np.int32]:
    """Only the object ids of a window; three times cheaper than the image."""
    tiles = tiles_in(spec, window)
    x0, y0, x1, y1 = window
    ids = np.empty((y1 - y0, x1 - x0), np.int32)
    for tx, ty in tiles:
        paste(ids, labels(draw(spec, tx, ty)), window, tx, ty)
    return ids


def paste(
    target: NDArray, tile: NDArray, window: tuple[int, int, int, int], tx: int, ty: int
) -> None:
    """Copies the part of a tile that lies in the window."""
    x0, y0, x1, y1 = window
    left, top = tx * TILE, ty * TILE
    cx0, cy0 = max(x0, left), max(y0, top)
    cx1, cy1 = min(x1, left + tile.shape[1]), min(y1, top + tile.shape[0])
    target[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0] = tile[
        cy0 - top : cy1 - top, cx0 - left : cx1 - left
    ]
