"""Measures a checkpoint on scenes that it has never seen: `python -m ...train.evaluate CKPT`.

Runs `geomag_edge.model.inference`, the readable reference, so that training has its numbers
without a bundle. Intervals are 95 % percentile bootstraps over questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import GeoMagError
from geomag_edge.model.geomag import GeoMagForConditionalGeneration, load_checkpoint
from geomag_edge.model.inference import answer
from geomag_edge.model.processor import GeoMagProcessor
from geomag_edge.model.train.cost import mask_iou, masks_of, measure_cost
from geomag_edge.model.train.samples.pool import PooledScene
from geomag_edge.model.train.samples.targets import prompt_text
from geomag_edge.prompts import SEG_TOKEN
from geomag_edge.runtime.answers.mask_boxes import answer_boxes
from geomag_edge.scenes import render_scene
from geomag_edge.scenes.questions import Question
from geomag_edge.views import iou_with

FIRST_SEED = 50_000_000
"""Seeds from here on are for measuring; training uses lower ones."""

SMALL_PX = 16
"""A target is small if its longer side is below this in the global view."""


@dataclass
class Scores:
    """Values by metric name, one a question."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, value: float, *names: str) -> None:
        """Counts a value under each name."""
        for name in names:
            self.values[name].append(float(value))

    def table(self, resamples: int = 1000) -> dict[str, dict[str, float]]:
        """Mean, 95 % interval and number of questions by name."""
        rng = np.random.default_rng(0)
        out = {}
        for name in sorted(self.values):
            values = np.array(self.values[name])
            picks = rng.integers(len(values), size=(resamples, len(values)))
            low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
            out[name] = {
                "mean": round(float(values.mean()), 4),
                "low": round(float(low), 4),
                "high": round(float(high), 4),
                "n": len(values),
            }
        return out


def evaluate(
    model: GeoMagForConditionalGeneration,
    processor: GeoMagProcessor,
    scenes: Iterator[PooledScene],
    without_psc: bool = True,
) -> Scores:
    """Asks every question of every scene.

    Args:
        model, processor: a checkpoint.
        scenes: with questions.
        without_psc: also segments small targets with all visual tokens in the global view.
    """
    scores = Scores()
    view_px = model.config.view_px
    for scene in scenes:
        height, width = scene.ids.shape
        for question in scene.questions:
            prompt = prompt_text(question, height, width)
            got = answer(model, processor, scene.image, prompt)
            text = processor.decode(got.token_ids)
            scores.add(got.level == question.level, "router", f"router/{question.level}")
            if question.level == "pixel" and question.targets:
                size = _longest_px(scene, question) * view_px / max(height, width)
                small = "small" if size < SMALL_PX else "large"
                iou = mask_iou(scene, question, got)
                scores.add(iou, "mIoU", f"mIoU/{question.kind}", f"mIoU/{small}")
                if small == "small" and without_psc:
                    even = TokenBudget(round(model.config.budgets["pixel"].visual_tokens ** 0.5))
                    blind = answer(model, processor, scene.image, prompt, even)
                    scores.add(mask_iou(scene, question, blind), "mIoU/small, PSC off")
            elif question.kind == "find_box":
                found = answer_boxes(
                    text, got.view_boxes, masks_of(got, height, width), height, width
                )
                best = iou_with(np.array(question.boxes[0]), np.array(found[:1])) if found else [0]
                scores.add(best[0] >= 0.5, "box IoU@0.5")
                scores.add(best[0], "box mean IoU")
                scores.add(_words(text) == question.answer, "box name")
            elif question.kind == "absent":
                none = SEG_TOKEN not in text and "<box>" not in text
                scores.add(none, "absent recognised")
            else:
                right = text == question.answer
                scores.add(right, f"answer/{question.kind}", f"answer/{question.level}")
    return scores


def _words(text: str) -> str:
    return text.split("<box>")[0].replace(SEG_TOKEN, "").strip()


def _longest_px(scene: PooledScene, question: Question) -> float:
    """The longer side of the targets' mean box, px."""
    boxes = scene.boxes[list(question.targets)]
    return float((boxes[:, 2:] - boxes[:, :2]).max(1).mean())


def unseen_scenes(
    count: int, size_px: int, per_level: int, first_seed: int = FIRST_SEED
) -> Iterator[PooledScene]:
    """Scenes of seeds that training never uses."""
    for seed in tqdm(range(first_seed, first_seed + count), desc=f"{size_px} px", unit="scene"):
        yield PooledScene.of(render_scene(seed, size_px), per_level)


def main(arguments: list[str] | None = None) -> int:
    """Parses, measures, prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m geomag_edge.model.train.evaluate", description=__doc__
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=30, help="scenes of each size (30)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides, px")
    parser.add_argument("--per-level", type=int, default=3, help="questions a level and scene (3)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="first seed")
    parser.add_argument(
        "--cost",
        action="store_true",
        help="masks at the default budget against a uniform high-resolution run, and nothing else",
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        model = load_checkpoint(args.checkpoint)
        processor = GeoMagProcessor.from_pretrained(args.checkpoint)
        result: dict[str, Any] = {}
        for size in args.sizes:
            scenes = unseen_scenes(args.scenes, size, args.per_level, args.seed)
            if args.cost:
                result[str(size)] = measure_cost(model, processor, scenes)
            else:
                result[str(size)] = evaluate(model, processor, scenes).table()
    except GeoMagError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    for size, table in result.items() if not args.cost else ():
        print(f"\n{size} px, {args.scenes} scenes", file=sys.stderr)
        for name, row in table.items():
            print(
                f"  {name:24} {row['mean']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]  "
                f"n={row['n']}",
                file=sys.stderr,
            )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
