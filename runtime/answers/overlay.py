"""The picture of an answer: where the model looked, and what it found there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from geomag_edge.runtime.images.scene import Scene

from .lettering import lettered
from .masks import Mask
from .wording import cut_short, words_shown

Colour = tuple[int, int, int]

PANEL_PX, SMALLEST_PANEL_PX = 1100, 720
"""Longer side of a panel: larger scenes are reduced to it, smaller ones enlarged to the second."""
MARGIN = 28
ROW = 30
LEGEND_ROWS = 8
BACKGROUND: Colour = (17, 22, 29)
INK: Colour = (236, 240, 244)
QUIET: Colour = (148, 160, 174)
WARNING: Colour = (255, 176, 59)

# Distinct for most colour-blind viewers and on vegetation, soil and water alike.
PALETTE: tuple[Colour, ...] = (
    (0, 194, 255),
    (255, 138, 0),
    (233, 64, 150),
    (120, 220, 60),
    (175, 120, 255),
    (255, 226, 64),
    (0, 214, 160),
    (255, 92, 80),
)
HEAT = ((0, 0, 20), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def mask_colour(number: int) -> Colour:
    """The colour of mask `number` (from 1), here and in the colour table of masks.tif."""
    return PALETTE[(number - 1) % len(PALETTE)]


class Looked(NamedTuple):
    """Where the model looked.

    Attributes:
        view_box: x0, y0, x1, y1 (px) of the square that `relevance` covers.
        crop_boxes: f32[K,4] px, the windows that were magnified.
        relevance: f32[G,G], or None.
    """

    view_box: ArrayLike
    crop_boxes: ArrayLike = ()
    relevance: NDArray[np.float32] | None = None


def draw_overlay(
    scene: Scene,
    answer: dict[str, Any],
    masks: Sequence[Mask],
    labels: Sequence[str],
    seen: Looked,
) -> Image.Image:
    """Two panels, side by side or (wide scenes) stacked, below the question and the answer."""
    picture, scale = _panel(scene)
    data = _data(scene, picture, scale)
    crops = np.asarray(seen.crop_boxes, np.float64).reshape(-1, 4) * scale
    in_text = answer.get("boxes")
    boxes = np.asarray([] if in_text is None else in_text, np.float64).reshape(-1, 4) * scale
    looked = picture.copy()
    if seen.relevance is not None:
        view_box = np.asarray(seen.view_box, np.float64) * scale
        looked = _with_heat(looked, seen.relevance, view_box, data)
    for i, box in enumerate(crops, start=1):
        _outline_box(looked, box, INK, str(i) if len(crops) > 1 else "")
    found = _with_masks(picture, masks, scale, labels, data)
    for box in boxes:
        _outline_box(found, box, INK, "")
    panels = [
        (looked, "Where it looked", _looked_legend(seen.relevance is not None, len(crops), answer)),
        (found, "What it found", _found_legend(masks, labels, len(boxes))),
    ]
    return _page(panels, _headline(answer))


def _panel(scene: Scene) -> tuple[Image.Image, float]:
    """The scene at panel size, and panel pixels per image pixel."""
    thumbnail, scale = scene.thumbnail(PANEL_PX)
    picture = Image.fromarray(thumbnail)
    longer = max(picture.size)
    if longer < SMALLEST_PANEL_PX:
        up = SMALLEST_PANEL_PX / longer
        size = (max(1, round(picture.width * up)), max(1, round(picture.height * up)))
        picture, scale = picture.resize(size, Image.Resampling.BICUBIC), scale * up
    return picture, scale


def _data(scene: Scene, picture: Image.Image, scale: float) -> NDArray[np.bool_]:
    """Where the picture shows pixels with data, bool[h,w]; the others stay as they are, grey."""
    if scene.validity is None:
        return np.ones((picture.height, picture.width), bool)
    y, x = ((np.arange(n) + 0.5) / scale for n in (picture.height, picture.width))
    return scene.validity.at(y, x)


def _heat_colours(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """0..1 -> colours [...,3]: dark violet, red, orange, light yellow."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(level, stops, [c[i] for c in HEAT]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _with_heat(
    picture: Image.Image,
    relevance: NDArray[np.float32],
    view_box: NDArray[np.float64],
    data: NDArray[np.bool_],
) -> Image.Image:
    """Blends the relevance map [G,G], which covers `view_box` (px of the picture), over what of it
    is `data` bool[h,w]."""
    rows, cols = relevance.shape
    x0, y0, x1, y1 = view_box
    per_x, per_y = cols / (x1 - x0), rows / (y1 - y0)
    extent = (
        -x0 * per_x,
        -y0 * per_y,
        (picture.width - x0) * per_x,
        (picture.height - y0) * per_y,
    )
    spread = Image.fromarray(np.ascontiguousarray(relevance, np.float32)).transform(
        picture.size, Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR
    )
    level = np.nan_to_num(np.asarray(spread))
    known = level[data] if data.any() else level
    low, high = float(known.min()), float(known.max())
    level = (level - low) / (high - low) if high > low else np.zeros_like(level)
    weight = (0.12 + 0.6 * level[..., None]) * data[..., None]
    pixels = np.asarray(picture, np.float32)
    mixed = pixels * (1 - weight) + _heat_colours(level) * weight
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _with_masks(
    picture: Image.Image,
    masks: Sequence[Mask],
    scale: float,
    labels: Sequence[str],
    data: NDArray[np.bool_],
) -> Image.Image:
    """Masks tinted and outlined; the first lies on top, as in masks.tif."""
    pixels = np.array(picture, np.float32)
    if masks:
        pixels[data] *= 0.82
    y = (np.arange(picture.height) + 0.5) / scale
    x = (np.arange(picture.width) + 0.5) / scale
    parts: dict[int, NDArray[np.bool_]] = {}
    for number in range(len(masks), 0, -1):
        inside = masks[number - 1].at(y, x)
        if not inside.any():
            continue
        parts[number] = inside
        colour = np.array(mask_colour(number), np.float32)
        plain = np.asarray(picture, np.float32)[inside]
        pixels[inside] = plain * 0.55 + colour * 0.45
        edge = inside & ~_shrunk(inside, 2)
        pixels[edge] = colour
    out = Image.fromarray(np.rint(pixels).astype(np.uint8))
    distinct = len(set(labels)) > 1
    for number, mask in enumerate(masks, start=1):
        if mask.bbox is None:
            continue
        box = np.array(mask.bbox, np.float64) * scale
        at = (box[0], box[1])
        if min(box[2] - box[0], box[3] - box[1]) < 14:  # too small to see: point at it
            _outline_box(out, box + np.array([-9, -9, 9, 9]), mask_colour(number), "")
        elif number in parts:
            at = _corner_within(parts[number])
        text = f"{number} {_cut(labels[number - 1], 24)}" if distinct else str(number)
        _chip(out, at, text, mask_colour(number))
    return out


def _corner_within(inside: NDArray[np.bool_]) -> tuple[float, float]:
    """x, y of the top left corner of the largest square that lies in bool[h,w], by powers of 2:
    where the largest part of a mask is."""
    sums = np.pad(inside, ((1, 0), (1, 0))).astype(np.int32).cumsum(0).cumsum(1)
    side = 1 << (min(inside.shape).bit_length() - 1)
    while side > 1:
        held = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        if (full := held == side * side).any():
            y, x = np.unravel_index(int(full.argmax()), full.shape)
            return float(x), float(y)
        side //= 2
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    return float(x), float(y)


def _shrunk(inside: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Erosion by `by` pixels; the picture's edge counts as inside."""
    for _ in range(by):
        padded = np.pad(inside, 1, constant_values=True)
        inside = (
            inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
    return inside


def _outline_box(picture: Image.Image, box: NDArray[np.float64], colour: Colour, text: str) -> None:
    """A box with a dark casing, clipped to the picture."""
    x0, x1 = np.clip(box[[0, 2]], 1, picture.width - 2)
    y0, y1 = np.clip(box[[1, 3]], 1, picture.height - 2)
    if x1 <= x0 or y1 <= y0:
        return
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=BACKGROUND, width=4)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=2)
    if text:
        _chip(picture, (x0, y0), text, colour)


def _chip(picture: Image.Image, at: tuple[float, float], text: str, colour: Colour) -> None:
    """A small label whose bottom left corner is `at`, moved inside the picture."""
    draw = ImageDraw.Draw(picture)
    text, font = lettered(text, 15)
    width, height = draw.textlength(text, font) + 10, 20
    x = min(max(at[0] - 1, 0), max(picture.width - width, 0))
    y = min(max(at[1] - height - 1, 0), max(picture.height - height, 0))
    draw.rounded_rectangle((x, y, x + width, y + height), 4, fill=colour)
    draw.text((x + 5, y + height / 2), text, BACKGROUND, font, anchor="lm")


LegendRow = tuple[str, Colour | None, str]
"""What to draw ("swatch", "box", "heat", "text"), its colour, and the words."""


def _looked_legend(heat: bool, crops: int, answer: dict[str, Any]) -> list[LegendRow]:
    rows: list[LegendRow] = []
    if heat:
        rows.append(("heat", None, "relevance to the prompt, low to high"))
    if crops:
        rows.append(("box", INK, f"{crops} magnified window{'s' if crops > 1 else ''}"))
    if sweep := answer.get("sweep"):
        swept = f"{sweep['views']} of {sweep['of']} views of {sweep['view_px']} px"
        rows.append(("text", None, f"and a sweep: {swept}"))
    return rows or [("text", None, "the whole scene at once")]


def _found_legend(masks: Sequence[Mask], labels: Sequence[str], boxes: int) -> list[LegendRow]:
    rows: list[LegendRow] = []
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True), start=1):
        facts = f"{mask.area_px:,} px, score {mask.score:.2f}" if mask.bbox else "empty"
        rows.append(("swatch", mask_colour(number), f"{number}  {_cut(label, 44)} ({facts})"))
    if len(rows) > LEGEND_ROWS:
        rows[LEGEND_ROWS:] = [("text", None, f"and {len(rows) - LEGEND_ROWS} more masks")]
    if boxes:
        rows.append(("box", INK, f"{boxes} box{'es' if boxes > 1 else ''} in the answer"))
    return rows or [("text", None, "no masks and no boxes in the answer")]


def _headline(answer: dict[str, Any]) -> list[tuple[str, int, Colour]]:
    """Lines of the header: text, font size, colour."""
    lines = []
    if prompt := answer.get("prompt"):
        lines.append((str(prompt), 26, INK))
    if text := answer.get("text"):
        lines.append((words_shown(str(text)), 18, QUIET))
    if short := cut_short(answer):
        lines.append((short, 18, WARNING))
    return lines


def _page(
    panels: list[tuple[Image.Image, str, list[LegendRow]]],
    headline: list[tuple[str, int, Colour]],
) -> Image.Image:
    width, height = panels[0][0].size
    cell_w = max(width, 420)
    heights = [36 + height + 12 + ROW * len(rows) + MARGIN for _, _, rows in panels]
    stacked = width > 1.7 * height
    across = 1 if stacked else len(panels)
    page_w = MARGIN + across * (cell_w + MARGIN)
    wrapped = [
        (line, font, size, colour)
        for text, size, colour in headline
        for line, font in _wrapped(text, size, page_w - 2 * MARGIN, most=2)
    ]
    top = MARGIN + sum(size + 12 for _, _, size, _ in wrapped) + (8 if wrapped else 0)
    page_h = top + (sum(heights) if stacked else max(heights))
    page = Image.new("RGB", (page_w, page_h), BACKGROUND)
    draw = ImageDraw.Draw(page)
    y = MARGIN
    for line, font, size, colour in wrapped:
        draw.text((MARGIN, y), line, colour, font)
        y += size + 12
    for i, (picture, title, rows) in enumerate(panels):
        x = MARGIN + (0 if stacked else i * (cell_w + MARGIN))
        y = top + (sum(heights[:i]) if stacked else 0)
        draw.text((x, y + 12), title, INK, ImageFont.load_default(20), anchor="lm")
        page.paste(picture, (x, y + 36))
        for k, row in enumerate(rows):
            _legend_row(draw, x, y + 36 + height + 12 + k * ROW + ROW // 2, row, cell_w)
    return page


def _legend_row(draw: ImageDraw.ImageDraw, x: int, middle: int, row: LegendRow, width: int) -> None:
    kind, colour, text = row
    left = x
    if kind == "heat":
        ramp = _heat_colours(np.linspace(0, 1, 96, dtype=np.float32))
        for i, c in enumerate(ramp):
            fill = (int(c[0]), int(c[1]), int(c[2]))
            draw.line((x + i, middle - 7, x + i, middle + 7), fill=fill)
        left += 96 + 12
    elif kind == "swatch":
        draw.rounded_rectangle((x, middle - 8, x + 22, middle + 8), 4, fill=colour)
        left += 22 + 12
    elif kind == "box":
        draw.rectangle((x, middle - 8, x + 22, middle + 8), outline=colour, width=2)
        left += 22 + 12
    for line, font in _wrapped(text, 16, width - (left - x), most=1):
        draw.text((left, middle), line, QUIET, font, anchor="lm")


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def _wrapped(text: str, size: int, width: float, most: int) -> list[tuple[str, Any]]:
    """Text broken into at most `most` lines of `width` pixels, and their font; the rest is cut."""
    text, font = lettered(_cut(text, 600), size)
    lines: list[str] = []
    words = _cut(text, 600).split()  # letters that are spelt out are longer
    while words and len(lines) < most:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        line, words = " ".join(words[:count]), words[count:]
        ends_early = bool(words) and len(lines) + 1 == most
        while line and font.getlength(line + ("..." if ends_early else "")) > width:
            line, ends_early = line[:-1], True
        lines.append(line.rstrip() + "..." if ends_early else line)
    return [(line, font) for line in lines]
