"""What PSC and TMRA save: masks at the default budget against looking closely everywhere.

The uniform runs are the same checkpoint on the same questions. They look at the whole and at TILES
x TILES equal tiles, each through the encoder's full resolution, so that no part of the image is
seen coarsely; they differ in how many tokens a tile has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.budgets import TokenBudget
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.inference import ReferenceAnswer, answer
from geomag_edge.model.processor import GeoMagProcessor
from geomag_edge.model.train.pool import PooledScene
from geomag_edge.runtime.masks import Mask
from geomag_edge.scenes.questions import Question
from geomag_edge.views import global_box

F32 = NDArray[np.float32]

TILES = 4
TILE_GRIDS = (4, 8)
"""Sides of a tile's grid of tokens: that of a crop by default, and that of the global view."""


def tiles_of(height: int, width: int, tiles: int = TILES) -> F32:
    """Equal squares over the global view, f32[tiles * tiles,4] px."""
    x0, y0, x1, _ = global_box(height, width).tolist()
    side = (x1 - x0) / tiles
    return np.array(
        [
            [x0 + c * side, y0 + r * side, x0 + (c + 1) * side, y0 + (r + 1) * side]
            for r in range(tiles)
            for c in range(tiles)
        ],
        np.float32,
    )


def mask_iou(scene: PooledScene, question: Question, got: ReferenceAnswer) -> float:
    """IoU of all masks of the answer together with the targets' visible pixels."""
    real = np.isin(scene.ids, np.array(question.targets, np.uint16))
    mask: NDArray[np.bool_] = np.zeros_like(real)
    for logits, quality in zip(got.mask_logits, got.quality, strict=True):
        mask |= np.asarray(
            Mask(scene.ids.shape, got.view_boxes, logits.numpy(), quality.numpy(), 0.0)
        )
    either = np.count_nonzero(mask | real)
    return np.count_nonzero(mask & real) / either if either else 1.0


def measure_cost(
    model: GeoMagForConditionalGeneration, processor: GeoMagProcessor,
    scenes: Iterator[PooledScene], resamples: int = 1000,
) -> dict[str, Any]:  # fmt: skip
    """mIoU and visual tokens of all runs over the pixel questions that have a target.

    Returns:
        `default`: `budget`, `visual_tokens` and `mIoU`; `uniform`: the same of each uniform run,
        with `mIoU_share` (default over uniform), its 95 % bootstrap interval `low`, `high` over
        questions, and `token_share`; `n`, the number of questions.
    """
    plan = model.config.budgets["pixel"]
    uniform = [TokenBudget(plan.global_grid, TILES**2, grid) for grid in TILE_GRIDS]
    rows = []
    for scene in scenes:
        tiles = tiles_of(*scene.ids.shape)
        for question in scene.questions:
            if question.level != "pixel" or not question.targets:
                continue
            prompt = question.prompt
            got = [answer(model, processor, scene.image, prompt, plan)]
            got += [answer(model, processor, scene.image, prompt, u, crops=tiles) for u in uniform]
            rows.append([mask_iou(scene, question, x) for x in got])
    values = np.array(rows)  # [n,1 + uniform runs]
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    means = values[picks].mean(1)  # [resamples,1 + uniform runs]
    records: list[dict[str, Any]] = [
        {"budget": str(b), "visual_tokens": b.visual_tokens, "mIoU": round(float(mean), 4)}
        for b, mean in zip([plan, *uniform], values.mean(0), strict=True)
    ]
    for i, record in enumerate(records[1:], 1):
        low, high = np.percentile(means[:, 0] / np.maximum(means[:, i], 1e-9), [2.5, 97.5])
        record["mIoU_share"] = round(records[0]["mIoU"] / max(record["mIoU"], 1e-9), 4)
        record |= {"low": round(float(low), 4), "high": round(float(high), 4)}
        record["token_share"] = round(plan.visual_tokens / record["visual_tokens"], 4)
    return {"default": records[0], "uniform": records[1:], "n": len(values)}
