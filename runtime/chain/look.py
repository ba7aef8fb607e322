"""The first stages: PSC and TMRA look at the whole image, and PSC magnifies what matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.budgets import LEVELS, TokenBudget, check_budget, parse_budget
from geomag_edge.errors import PromptError
from geomag_edge.manifest import Manifest
from geomag_edge.runtime.chain.chain import F32, Stopwatch, Views
from geomag_edge.runtime.chain.deadline import Deadline
from geomag_edge.runtime.chain.question import Question, Words
from geomag_edge.runtime.chain.viewer import Viewer
from geomag_edge.runtime.engines.values import Values
from geomag_edge.views import Candidates, choose_crops

NOTHING: Candidates = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)


@dataclass(frozen=True)
class Look:
    """What an answer is read from.

    Attributes:
        level: the task level that TMRA's router chose, of `odds` f64[levels].
        relevance: f32[G,G], PSC's, over the whole.
        budget: the token budget; its crops may be more than there are.
        whole, crops: encoded views; no crops is None.
        crop_scores: f32[k].
    """

    level: str
    odds: NDArray[np.float64]
    relevance: F32
    budget: TokenBudget
    whole: Views
    crops: Views | None
    crop_scores: F32

    @property
    def crop_boxes(self) -> F32:
        """f32[k,4] px."""
        return NOTHING[0] if self.crops is None else self.crops.boxes

    def every(self, values: Values) -> Views:
        """The whole and the crops behind it."""
        if self.crops is None:
            return self.whole
        a, b = self.whole, self.crops
        return Views(
            np.concatenate([a.boxes, b.boxes]),
            values.concat([a.tokens, b.tokens]),
            values.concat([a.embeds, b.embeds]),
            values.concat([a.features, b.features]),
        )


def look(viewer: Viewer, question: Question, words: Words, watch: Stopwatch) -> Look:
    """Looks at the whole image, routes, plans and magnifies.

    Raises:
        BudgetError: an impossible budget.
        PromptError: too long for the model with this budget.
    """
    chain, deadline = viewer.chain, question.deadline
    whole = viewer.views(viewer.global_view[None], watch)
    with watch("select"):
        seen = chain.select(whole, 0, words.psc_ids, viewer.scene)
    odds = _softmax(seen["granularity"][0].astype(np.float64))
    level = LEVELS[int(odds.argmax())]
    if deadline is None:
        budget = budget_of(question.budget, level, chain.manifest)
    else:
        deadline.saw_crop(watch.ms.get("crop", 0.0))
        budget = deadline.plan(level, viewer.levels, words.count)
    length, context = words.count + budget.visual_tokens, chain.coder.settings.context
    if length >= context:
        raise PromptError(
            f"the prompt needs {length} positions with budget {budget}, the model has "
            f"{context}: shorten the prompt or give a smaller budget"
        )
    boxes, scores = _crops(viewer, seen, budget, words, watch, deadline)
    crops = viewer.views(boxes, watch) if len(boxes) else None
    if deadline is not None:
        budget = deadline.tokens(len(boxes))
    return Look(level, odds, seen["relevance"], budget, whole, crops, scores)


def budget_of(wanted: Any, level: str, manifest: Manifest) -> TokenBudget:
    """The budget that was asked for, or the level's own.

    Raises:
        BudgetError: an impossible one.
    """
    if wanted is None:
        return manifest.budgets[level]
    if isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool):
        wanted = manifest.budgets[level].fitted(int(wanted))
    if isinstance(wanted, str):
        wanted = parse_budget(wanted, manifest.budgets, level)
    return check_budget(wanted, manifest.view.grid, manifest.psc.max_crops)


def _crops(
    viewer: Viewer,
    seen: dict[str, NDArray],
    budget: TokenBudget,
    words: Words,
    watch: Stopwatch,
    deadline: Deadline | None,
) -> Candidates:
    if not budget.crops:
        return NOTHING
    chain = viewer.chain

    def look_again(boxes: F32) -> list[Candidates]:
        boxes = _in_time(viewer, boxes, deadline, selected=True)
        if not len(boxes):
            return [NOTHING]
        inside = viewer.views(boxes, watch)
        with watch("select"):
            looks = [
                chain.select(inside, i, words.psc_ids, viewer.scene) for i in range(len(boxes))
            ]
        return [(one["boxes"], one["scores"]) for one in looks]

    first = (seen["boxes"], seen["scores"])
    overlap = chain.manifest.psc.overlap
    boxes, scores = choose_crops(first, budget.crops, viewer.levels, overlap, look_again)
    kept = len(_in_time(viewer, boxes, deadline, selected=False))
    return boxes[:kept], scores[:kept]


def _in_time(viewer: Viewer, boxes: F32, deadline: Deadline | None, selected: bool) -> F32:
    """The first of the boxes that there is time to encode; known ones cost nothing."""
    if deadline is None:
        return boxes
    new = viewer.unseen(boxes)
    count = deadline.views(len(new), selected, len(boxes) - len(new))
    return boxes[: new[count]] if count < len(new) else boxes


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()
