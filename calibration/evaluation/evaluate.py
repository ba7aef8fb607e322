"""Asks every question of a set and weighs the answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from geomag_edge.calibration.sets.items import Dataset, Item
from geomag_edge.errors import DatasetError
from geomag_edge.prompts import prompt_with_box

from .metrics import box_overlap, box_score, mask_iou, mask_overlap, same_words
from .records import Record
from .report import Report

if TYPE_CHECKING:
    from geomag_edge.runtime.chain.pipeline import Pipeline
    from geomag_edge.runtime.chain.result import Result
    from geomag_edge.runtime.chain.scene_session import SceneSession


def evaluate(
    pipe: Pipeline,
    dataset: Dataset,
    budget: str | None = None,
    max_new_tokens: int = 64,
    progress: Callable[[str], None] = lambda name: None,
    nodata: float | None = None,
) -> Report:
    """Asks a pipeline every question of a set.

    Args:
        pipe: an open pipeline; each picture is opened once, and its questions share what has
            been encoded.
        dataset: from `open_dataset`.
        budget: what `SceneSession.ask` takes: None for the routed level's own budget, a level's
            name, `G+KxC`, or `Nt`. A grid alone (`14`) is one view without crops: PSC off.
        max_new_tokens: longest answer.
        progress: called with each picture's name as its questions begin.
        nodata: of the pictures, as of `Pipeline.open`.
    """
    manifest = pipe.bundle.manifest
    records: list[Record] = []
    times: dict[str, list[float]] = defaultdict(list)
    result: Result | None = None
    for picture in dataset.pictures():
        progress(picture.name)
        with pipe.open(picture.image, nodata=nodata) as session:
            for item in picture.items:
                result = session.ask(prompt_of(item, session), budget, max_new_tokens)
                records.append(weigh(picture.name, item, result, session, manifest.view.view_px))
                for stage, ms in result.timings_ms.items():
                    times[stage].append(ms)
    if result is None:
        raise DatasetError(f"{dataset.name} has no questions: there is nothing to measure")
    return Report(
        dataset=dataset.name,
        bundle=pipe.bundle.root.resolve().name,
        checkpoint=str(manifest.checkpoint.get("sha256", "")),
        engine=result.engine,
        precision=result.precision,
        providers=dict(result.providers),
        budget=budget,
        untrained=list(manifest.untrained),
        latency_ms={stage: round(float(np.median(ms)), 3) for stage, ms in times.items()},
        records=records,
    )


def prompt_of(item: Item, session: SceneSession) -> str:
    """What is asked: the prompt, with its box written out if the item describes one."""
    if not item.describes_box:
        return item.prompt
    return prompt_with_box(item.prompt, item.boxes[0], session.scene.height, session.scene.width)


def weigh(picture: str, item: Item, result: Result, session: SceneSession, view_px: int) -> Record:
    """One answer against the truth.

    Args:
        picture: its name.
        item, result: the question and the answer.
        session: where it was asked.
        view_px: side S of the global view, to which sizes refer.
    """
    image_px = max(session.scene.height, session.scene.width)
    side = item.longer_side_px()
    overlap: tuple[int, int] | None = None
    iou = box = box_iou = None
    answer = absent = None
    if item.level == "pixel":
        overlap = mask_overlap(result.masks, item)
        iou = mask_iou(overlap, item, len(result.masks))
    elif item.level == "image" or item.describes_box:
        answer = same_words(result.text, item.answer)
    elif not item.absent:
        box = box_score(result.boxes, item.boxes)
        box_iou = box_overlap(result.boxes, item.boxes)
    if item.absent:
        absent = not result.masks and not result.boxes
    grid, crop_grid = result.budget.global_grid, result.budget.crop_grid
    return Record(
        id=item.id,
        picture=picture,
        level=item.level,
        kind=item.kind,
        prompt=result.prompt,
        expected=item.answer,
        image_px=image_px,
        size_px=None if side is None else round(side * view_px / image_px, 3),
        text=result.text,
        granularity=result.granularity,
        visual_tokens=grid**2 + len(result.crop_boxes) * crop_grid**2,
        ms=round(result.timings_ms["total"], 3),
        intersection_px=None if overlap is None else overlap[0],
        union_px=None if overlap is None else overlap[1],
        iou=iou,
        box=box,
        box_iou=box_iou,
        answer=answer,
        absent=absent,
    )
