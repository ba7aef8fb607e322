"""An answer about an image, and what is to be remarked where it lacks something."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from geomag_edge.budgets import TokenBudget
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.answers.wording import CUT_SHORT, mask_names
from geomag_edge.runtime.chain.chain import F32


@dataclass
class Result:
    """An answer.

    Attributes:
        prompt, text: what was asked and what the model said, markup included.
        granularity: the task level that TMRA's router chose.
        granularity_probabilities: of each level.
        budget: the token budget that ran (the level's own, unless another was asked for).
        boxes: [x0,y0,x1,y1] in pixels of the image, for each box in the text; a box right after
            a [SEG] is that mask's own (`mask_boxes`), finer than the digits of the text. Cut to
            the pixels that hold data; a box without any is left out.
        masks: one `Mask` for each [SEG] in the text; `numpy.asarray(mask)` is bool [H,W], never
            True on a pixel without data. Usable after the image is closed.
        relevance: f32[G,G] over `view_box`: the centred square of the image's longer side, or a
            smaller one where all data lies in a part of the image. 0 where there is no data.
        crop_boxes: f32[k,4] px, what PSC magnified, coarse levels first.
        token_ids: the answer's ids.
        stopped: "end", "length" or "deadline".
        timings_ms: time of each stage, and `total`.
        providers: what ran each graph.
        notes: plain remarks on how the input was read.
        deadline: planned against actual and what was given up, where a latency was asked for.
        sweep: side of the views in px, how many were looked at for masks, and of how many that
            show data.
    """

    prompt: str
    text: str
    granularity: str
    granularity_probabilities: dict[str, float]
    budget: TokenBudget
    boxes: list[list[float]]
    masks: list[Mask]
    relevance: F32
    view_box: F32
    crop_boxes: F32
    crop_scores: F32
    token_ids: list[int]
    stopped: str
    decode_steps: int
    timings_ms: dict[str, float]
    engine: str
    precision: str
    providers: dict[str, str]
    notes: list[str] = field(default_factory=list)
    deadline: dict[str, Any] | None = None
    sweep: dict[str, int] | None = None

    @property
    def labels(self) -> list[str]:
        """What the answer calls each of its masks."""
        names = mask_names(self.text, self.prompt)[: len(self.masks)]
        return names + [self.prompt] * (len(self.masks) - len(names))


def what_is_missing(
    text: str, level: str, prompt: str, masks: list[Mask], boxes: list[list[float]], stopped: str
) -> str | None:
    """A remark on an answer that does not hold what its task is about, or was cut."""
    if stopped == "deadline":
        return None  # the deadline's own report says it
    cut = "; it was cut at the most tokens that were allowed" if stopped == "length" else ""
    if not text:
        return f"the answer is empty: the model said nothing{cut}"
    if level == "pixel" and not masks:
        return f"the task was taken for one of pixels, but the answer has no [SEG], so no mask{cut}"
    about_a_box = "<box>" in prompt
    if level == "region" and not boxes and not masks and not about_a_box:
        return f"the task was taken for one of regions, but the answer has no box{cut}"
    return CUT_SHORT.get(stopped)
