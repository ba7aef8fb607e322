"""The loss curve as a small picture, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 720, 360, 42
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def draw_curve(log: Sequence[dict], path: Path, columns: Sequence[str], smooth: int = 25) -> None:
    """Writes a PNG with one line for each column over the logged steps, scaled to its maximum.

    Args:
        log: records with `step` and some of the columns.
        path: the picture.
        columns: which columns to draw.
        smooth: steps of the running mean.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    ink = ImageDraw.Draw(picture)
    right, bottom = WIDTH - 130, HEIGHT - MARGIN
    ink.line([(MARGIN, 12), (MARGIN, bottom), (right, bottom)], fill="black")
    logged = [record["step"] for record in log]
    first, last = min(logged, default=0), max(logged, default=1)
    ink.text((MARGIN, bottom + 10), f"step {first}", fill="black")
    ink.text((right - 50, bottom + 10), f"step {last}", fill="black")
    for i, name in enumerate(columns):
        points = [(r["step"], r[name]) for r in log if r.get(name) is not None]
        points = [(s, v) for s, v in points if np.isfinite(v)]
        if len(points) < 2:
            continue
        steps, values = np.array(points, float).T
        window = max(1, min(smooth, len(values) // 4))
        padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
        values = np.convolve(padded, np.ones(window) / window, mode="valid")
        top = max(float(values.max()), 1e-9)
        x = MARGIN + (steps - first) / max(last - first, 1) * (right - MARGIN)
        y = bottom - values / top * (bottom - 20)
        colour = COLOURS[i % len(COLOURS)]
        ink.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=2)
        ink.text((right + 8, 14 + 30 * i), name, fill=colour)
        ink.text((right + 8, 26 + 30 * i), f"{top:.3g} -> {values[-1]:.3g}", fill=colour)
    picture.save(path, optimize=True)
