"""The last stages: the answer's queries become masks and boxes, in a sweep too if asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from geomag_edge.prompts import MOST_MASKS
from geomag_edge.runtime.answers.mask_boxes import answer_boxes
from geomag_edge.runtime.answers.masks import Mask, MaskMaps, joined_masks
from geomag_edge.runtime.chain.chain import F32, Stopwatch, Views
from geomag_edge.runtime.chain.decode import Decoded
from geomag_edge.runtime.chain.question import Question, Words
from geomag_edge.runtime.chain.sweep import sweep, sweep_boxes
from geomag_edge.runtime.chain.viewer import Viewer


@dataclass
class Found:
    """What an answer shows of the image.

    Attributes:
        text: the answer's words.
        masks, boxes: as of `Result`.
        sweep: as of `Result`.
        notes: remarks on what is not shown.
    """

    text: str
    masks: list[Mask]
    boxes: list[list[float]]
    sweep: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)


def find(
    viewer: Viewer,
    question: Question,
    words: Words,
    views: Views,
    decoded: Decoded,
    watch: Stopwatch,
) -> Found:
    """Masks and boxes of an answer that was read from `views`."""
    chain, scene = viewer.chain, viewer.scene
    swept, report, notes = _swept(viewer, question, words, decoded, watch)
    with watch("mask"):
        masks = []
        if len(decoded.queries):
            looked = chain.mask_maps(views, decoded.queries)
            masks = joined_masks([looked, *swept], viewer.size, scene.validity)
        text = chain.coder.decode(decoded.ids)
        boxes = answer_boxes(text, views.boxes, masks, *viewer.size)
        if scene.validity is not None:
            on_data = [scene.validity.box_of_data(box) for box in boxes]
            boxes = [box for box in on_data if box is not None]
    asked = decoded.ids.count(chain.coder.settings.seg_token_id)
    if asked > len(decoded.queries) == MOST_MASKS:
        notes.append(f"the answer asks for {asked} masks; the first {len(masks)} were made")
    return Found(text, masks, boxes, report, notes)


def views_of_sweep(viewer: Viewer, side_px: int | None) -> int:
    """How many views a sweep has that show any data; none without one.

    Raises:
        InputError: views of less than 1 px, or too many.
    """
    if side_px is None:
        return 0
    boxes = sweep_boxes(*viewer.size, side_px)
    validity = viewer.scene.validity
    return len(boxes) if validity is None else int(validity.has_data(boxes).sum())


def _swept(
    viewer: Viewer, question: Question, words: Words, decoded: Decoded, watch: Stopwatch
) -> tuple[list[MaskMaps], dict[str, int] | None, list[str]]:
    """(masks of the sweep's views, what was looked at, a remark where that is nothing)

    Batches are of as many views as a look has crops, which every built engine takes.
    """
    side_px, count = question.sweep_px, len(decoded.queries)
    if side_px is None:
        return [], None, []
    chain, scene, of = viewer.chain, viewer.scene, views_of_sweep(viewer, side_px)

    def glance(boxes: F32) -> tuple[Views, F32]:
        views = chain.encode(scene, boxes, Stopwatch(chain.values))
        looks = [chain.select(views, i, words.psc_ids, scene) for i in range(len(boxes))]
        return views, np.stack([one["relevance"] for one in looks])

    def masks(views: Views) -> MaskMaps:
        return chain.mask_maps(views, decoded.queries)

    found: list[MaskMaps] = []
    report = None
    if of and count:
        has_data = None if scene.validity is None else scene.validity.has_data
        with watch("sweep"):
            found, looked_at = sweep(
                glance, masks, viewer.size, side_px, chain.manifest.psc.max_crops,
                question.on_view, has_data,
            )  # fmt: skip
        report = {"view_px": side_px, "views": looked_at, "of": of}
    return found, report, [] if found else [why_not_swept(side_px, of, count)]


def why_not_swept(side_px: int, views: int, queries: int) -> str:
    """A remark on a sweep that looked at nothing."""
    if not queries:
        return "nothing was swept: the answer has no [SEG]"
    if not views:
        return f"nothing was swept: the image is not larger than one view of {side_px} px"
    return f"the sweep found nothing: PSC sees nothing of the prompt in views of {side_px} px"
