"""What PSC and TMRA save: masks with PSC's crops against looking closely everywhere.

The uniform run is the same checkpoint on the same questions. It looks at the whole and at TILES x
TILES equal tiles, each through the encoder's full resolution, so that no part of the image is seen
coarsely, with as many tokens a tile as a crop has by default. Against it stand the default budget
and a thrifty one, whose global view has half the default's grid.
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
from geomag_edge.model.train.samples.pool import PooledScene
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.scenes.questions import Question
from geomag_edge.views import global_box

F32 = NDArray[np.float32]

TILES = 4


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


def masks_of(got: ReferenceAnswer, height: int, width: int) -> list[Mask]:
    """The answer's masks in the frame of an image."""
    return [
        Mask((height, width), got.view_boxes, logits.numpy(), quality.numpy(), 0.0)
        for logits, quality in zip(got.mask_logits, got.quality, strict=True)
    ]


def mask_iou(scene: PooledScene, question: Question, got: ReferenceAnswer) -> float:
    """IoU of all masks of the answer together with the targets' visible pixels."""
    real = np.isin(scene.ids, np.array(question.targets, np.uint16))
    mask: NDArray[np.bool_] = np.zeros_like(real)
    for one in masks_of(got, *scene.ids.shape):
        mask |= np.asarray(one)
    either = np.count_nonzero(mask | real)
    return np.count_nonzero(mask & real) / either if either else 1.0


def measure_cost(
    model: GeoMagForConditionalGeneration,
    processor: GeoMagProcessor,
    scenes: Iterator[PooledScene],
    resamples: int = 1000,
) -> dict[str, Any]:
    """mIoU and visual tokens of all runs over the pixel questions that have a target.

    Returns:
        `uniform`: `budget`, `visual_tokens` and `mIoU`; `chosen`: the same of the default and the
        thrifty run, with `mIoU_share` (over the uniform run's), its 95 % bootstrap interval `low`,
        `high` over questions, and `token_share`; `n`, the number of questions.
    """
    plan = model.config.budgets["pixel"]
    uniform = TokenBudget(plan.global_grid, TILES**2, plan.crop_grid)
    chosen = [plan, TokenBudget(plan.global_grid // 2, plan.crops, plan.crop_grid)]
    rows = []
    for scene in scenes:
        tiles = tiles_of(*scene.ids.shape)
        for question in scene.questions:
            if question.level != "pixel" or not question.targets:
                continue
            prompt = question.prompt
            got = [answer(model, processor, scene.image, prompt, uniform, crops=tiles)]
            got += [answer(model, processor, scene.image, prompt, budget) for budget in chosen]
            rows.append([mask_iou(scene, question, x) for x in got])
    values = np.array(rows)  # [n,1 + chosen]
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    means = values[picks].mean(1)  # [resamples,1 + chosen]
    records: list[dict[str, Any]] = [
        {"budget": str(b), "visual_tokens": b.visual_tokens, "mIoU": round(float(mean), 4)}
        for b, mean in zip([uniform, *chosen], values.mean(0), strict=True)
    ]
    for i, record in enumerate(records[1:], 1):
        low, high = np.percentile(means[:, i] / np.maximum(means[:, 0], 1e-9), [2.5, 97.5])
        record["mIoU_share"] = round(record["mIoU"] / max(records[0]["mIoU"], 1e-9), 4)
        record |= {"low": round(float(low), 4), "high": round(float(high), 4)}
        record["token_share"] = round(record["visual_tokens"] / uniform.visual_tokens, 4)
    return {"uniform": records[0], "chosen": records[1:], "n": len(values)}
