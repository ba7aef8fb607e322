"""One image and the prompts about it: views -> PSC and TMRA -> LLM -> masks.

`SceneSession.ask` reads like DESIGN's list of stages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geomag_edge.arguments import called, text, told, whole
from geomag_edge.budgets import LEVELS, TokenBudget, check_budget, parse_budget
from geomag_edge.errors import BudgetError, PromptError
from geomag_edge.nodata import data_view
from geomag_edge.prompts import MOST_MASKS, PromptCoder, prompt_in_view
from geomag_edge.runtime.answers.mask_boxes import answer_boxes
from geomag_edge.runtime.answers.masks import Mask, MaskMaps, joined_masks
from geomag_edge.runtime.chain.chain import F32, Chain, Stopwatch, Views
from geomag_edge.runtime.chain.deadline import Deadline
from geomag_edge.runtime.chain.decode import Decoded, decode_greedily
from geomag_edge.runtime.chain.result import Result, what_is_missing, why_not_swept
from geomag_edge.runtime.chain.sweep import sweep, sweep_boxes
from geomag_edge.runtime.engines.sharing import Door
from geomag_edge.runtime.engines.values import Values
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.views import Candidates, choose_crops, global_box, useful_levels


class SceneSession:
    """One image and what is already known of it; any number of prompts share its encoded views."""

    def __init__(self, chain: Chain, scene: Scene):
        self.chain, self.scene = chain, scene
        self._known: dict[bytes, tuple[Any, Any, Any]] = {}
        what = "this image's session", "open the image"
        self._door = Door(what, self._free, one_at_a_time=True)

    def views(self, boxes: F32, watch: Stopwatch) -> Views:
        """Encoded views of the boxes, in order; only unseen boxes are encoded."""
        boxes = np.ascontiguousarray(boxes, np.float32).reshape(-1, 4)
        new = [box for box in boxes if box.tobytes() not in self._known]
        if new:
            fresh = self.chain.encode(self.scene, np.stack(new), watch)
            for i, box in enumerate(new):
                self._known[box.tobytes()] = (fresh.tokens[i], fresh.embeds[i], fresh.features[i])
        parts = [self._known[box.tobytes()] for box in boxes]
        stack = self.chain.values.stack
        return Views(boxes, *(stack(column) for column in zip(*parts, strict=True)))

    def ask(
        self,
        prompt: str,
        budget: str | int | TokenBudget | None = None,
        max_new_tokens: int = 64,
        answer_prefix: str = "",
        on_text: Callable[[str], None] | None = None,
        deadline: Deadline | None = None,
        sweep_px: int | None = None,
        on_view: Callable[[str], None] = lambda name: None,
    ) -> Result:
        """Answers one prompt about the image.

        Args:
            prompt: plain text.
            budget: None for the routed level's own, a number of visual tokens not to exceed, or
                what `parse_budget` reads.
            max_new_tokens: at most so many tokens are decoded.
            answer_prefix: the answer's forced start, markup allowed ("[SEG]" asks for a mask
                whatever the model would say).
            on_text: called with each new piece of the answer's text.
            deadline: chooses the budget, and gives up crops and words rather than be late.
            sweep_px: also look for the answer's masks in views of this side over the whole image,
                where PSC sees something of the prompt. The LLM is not asked again.
            on_view: called with each view of the sweep as its turn comes.

        Raises:
            PromptError: empty, or too long for the model with this budget.
            BudgetError: an impossible budget, or a sweep with a deadline.
            InputError: a sweep in views of less than 1 px, or in too many views.
            EngineError: closed, or opened in the process that this one was forked from.
        """
        if sweep_px is not None and deadline is not None:
            raise BudgetError("a sweep takes as long as it takes: give no time")
        max_new_tokens = whole(max_new_tokens, "max_new_tokens", 1)
        text(answer_prefix, "answer_prefix", PromptError)
        for function, what in ((on_text, "on_text"), (on_view, "on_view")):
            called(function, what)
        if deadline is not None and not isinstance(deadline, Deadline):
            raise BudgetError(f"deadline is {told(deadline)}: give one of Pipeline.deadline")
        with self.chain.door.inside(), self._door.inside():
            return self._answer(
                prompt, budget, max_new_tokens, answer_prefix, on_text, deadline, sweep_px, on_view
            )

    def _answer(
        self, prompt: str, budget: str | int | TokenBudget | None, max_new_tokens: int,
        answer_prefix: str, on_text: Callable[[str], None] | None, deadline: Deadline | None,
        sweep_px: int | None, on_view: Callable[[str], None],
    ) -> Result:  # fmt: skip
        """As `ask`, inside both doors."""
        chain, scene, manifest = self.chain, self.scene, self.chain.manifest
        size = scene.height, scene.width
        sweep_views = 0 if sweep_px is None else self._views_of_sweep(sweep_px)
        watch = Stopwatch(chain.values)
        coder, settings = chain.coder, chain.coder.settings
        start = time.perf_counter()
        notes = list(scene.notes)
        if manifest.untrained:
            notes.append(
                f"never trained: {', '.join(manifest.untrained)}; the answer means nothing yet"
            )
        prompt = coder.check(prompt)
        shown = prompt
        if not np.array_equal(self.global_view, global_box(*size)):
            shown = prompt_in_view(prompt, self.global_view.tolist(), *size)
        before, after = coder.around_image(shown)
        prefix = coder.prefix_ids(answer_prefix)
        prompt_ids, cut = coder.psc_ids(shown)
        if cut:
            notes.append(
                f"the prompt is longer than PSC's {settings.psc_context} tokens; crops were "
                "chosen from its beginning"
            )

        whole = self.views(self.global_view[None], watch)
        with watch("select"):
            seen = chain.select(whole, 0, prompt_ids, scene)
        odds = _softmax(seen["granularity"][0].astype(np.float64))
        level = LEVELS[int(odds.argmax())]
        text_tokens = len(before) + len(after) + len(prefix)
        if deadline is None:
            chosen = self._budget(budget, level)
        else:
            if lost := deadline.planner.model.lost:
                notes.append(lost)
            deadline.saw_crop(watch.ms.get("crop", 0.0))
            chosen = deadline.plan(level, self.levels, text_tokens)
        length = text_tokens + chosen.visual_tokens
        if length >= settings.context:
            raise PromptError(
                f"the prompt needs {length} positions with budget {chosen}, the model has "
                f"{settings.context}: shorten the prompt or give a smaller budget"
            )
        crop_boxes, crop_scores = self._crops(seen, chosen, prompt_ids, watch, deadline)
        crops = self.views(crop_boxes, watch) if len(crop_boxes) else None
        if deadline is not None:
            chosen = deadline.tokens(len(crop_boxes))

        with watch("project"):
            visual = chain.project(whole, chosen.global_grid, scene)
            if crops is not None and chosen.crops:
                more = chain.project(crops.first(chosen.crops), chosen.crop_grid, scene)
                visual = chain.values.concat([visual, more])
        stream = _streamer(coder, on_text)
        decoded = decode_greedily(
            chain.sessions["llm"], chain.sessions["embed"], manifest.decoder,
            before, visual, after, prefix,
            settings.seg_token_id, settings.eos_token_ids,
            min(max_new_tokens, settings.context - length),
            on_ids=stream, values=chain.values,
            **({} if deadline is None else {"go_on": deadline.pace(1 + len(crop_boxes))}),
        )  # fmt: skip
        if stream:
            stream(decoded.ids, last=True)
        before_mask = watch.ms
        every = whole if crops is None else _joined(whole, crops, chain.values)
        swept: list[MaskMaps] = []
        sweep_report = None
        if sweep_px is not None and sweep_views and len(decoded.queries):
            with watch("sweep"):
                swept, looked_at = self._swept(sweep_px, decoded.queries, prompt_ids, on_view)
            sweep_report = {"view_px": sweep_px, "views": looked_at, "of": sweep_views}
        if sweep_px is not None and not swept:
            notes.append(why_not_swept(sweep_px, sweep_views, len(decoded.queries)))
        with watch("mask"):
            masks = []
            if len(decoded.queries):
                looked = chain.mask_maps(every, decoded.queries)
                masks = joined_masks([looked, *swept], size, scene.validity)
            text = coder.decode(decoded.ids)
            boxes = answer_boxes(text, every.boxes, masks, *size)
            if scene.validity is not None:
                on_data = [scene.validity.box_of_data(box) for box in boxes]
                boxes = [box for box in on_data if box is not None]
        asked = decoded.ids.count(settings.seg_token_id)
        if asked > len(decoded.queries) == MOST_MASKS:
            notes.append(f"the answer asks for {asked} masks; the first {len(masks)} were made")
        if missing := what_is_missing(text, level, prompt, masks, boxes, decoded.stopped):
            notes.append(missing)
        timings_ms = before_mask | {"prefill": decoded.prefill_ms, "decode": decoded.decode_ms}
        timings_ms |= {stage: watch.ms[stage] for stage in ("sweep", "mask") if stage in watch.ms}
        timings_ms["total"] = (time.perf_counter() - start) * 1e3
        report = None if deadline is None else deadline.closed(chosen, decoded.stopped)
        found = self._result(
            prompt, text, decoded, level, odds, chosen, every, crop_scores, seen["relevance"],
            boxes, masks, timings_ms, notes, report,
        )  # fmt: skip
        found.sweep = sweep_report
        return found

    @cached_property
    def global_view(self) -> F32:
        """f32[4] px, the square around all of the image that holds data."""
        height, width = self.scene.height, self.scene.width
        whole = global_box(height, width)
        validity = self.scene.validity
        data = None if validity is None else validity.box_of_data(whole)
        return whole if data is None else data_view(data, height, width)

    @property
    def levels(self) -> int:
        """PSC's looks at an image of this size."""
        view, psc = self.chain.manifest.view, self.chain.manifest.psc
        side = math.ceil(self.global_view[2] - self.global_view[0])
        return useful_levels(side, side, view.view_px, view.grid, psc)

    def _budget(self, wanted: Any, level: str) -> TokenBudget:
        manifest = self.chain.manifest
        if wanted is None:
            return manifest.budgets[level]
        if isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool):
            wanted = manifest.budgets[level].fitted(int(wanted))
        if isinstance(wanted, str):
            wanted = parse_budget(wanted, manifest.budgets, level)
        return check_budget(wanted, manifest.view.grid, manifest.psc.max_crops)

    def _crops(
        self, seen: dict[str, NDArray], budget: TokenBudget, prompt_ids: NDArray, watch: Stopwatch,
        deadline: Deadline | None,
    ) -> Candidates:  # fmt: skip
        psc, scene = self.chain.manifest.psc, self.scene
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        if not budget.crops:
            return nothing

        def look_again(boxes: F32) -> list[Candidates]:
            boxes = self._in_time(boxes, deadline, selected=True)
            if not len(boxes):
                return [nothing]
            inside = self.views(boxes, watch)
            with watch("select"):
                looks = [self.chain.select(inside, i, prompt_ids, scene) for i in range(len(boxes))]
            return [(look["boxes"], look["scores"]) for look in looks]

        first = (seen["boxes"], seen["scores"])
        boxes, scores = choose_crops(first, budget.crops, self.levels, psc.overlap, look_again)
        kept = len(self._in_time(boxes, deadline, selected=False))
        return boxes[:kept], scores[:kept]

    def _in_time(self, boxes: F32, deadline: Deadline | None, selected: bool) -> F32:
        """The first of the boxes that there is time to encode; known ones cost nothing."""
        if deadline is None:
            return boxes
        new = [i for i, box in enumerate(boxes) if box.tobytes() not in self._known]
        count = deadline.views(len(new), selected, len(boxes) - len(new))
        return boxes[: new[count]] if count < len(new) else boxes

    def _swept(
        self, side_px: int, queries: Any, prompt_ids: NDArray, on_view: Callable[[str], None]
    ) -> tuple[list[MaskMaps], int]:
        """Batches of as many views as a look has crops, which every built engine takes."""
        chain, scene = self.chain, self.scene

        def glance(boxes: F32) -> tuple[Views, F32]:
            views = chain.encode(scene, boxes, Stopwatch(chain.values))
            looks = [chain.select(views, i, prompt_ids, scene) for i in range(len(boxes))]
            return views, np.stack([look["relevance"] for look in looks])

        def masks(views: Views) -> MaskMaps:
            return chain.mask_maps(views, queries)

        size, validity = (scene.height, scene.width), scene.validity
        return sweep(
            glance, masks, size, side_px, chain.manifest.psc.max_crops, on_view,
            None if validity is None else validity.has_data,
        )  # fmt: skip

    def _views_of_sweep(self, side_px: int) -> int:
        """How many views a sweep has that show any data."""
        boxes = sweep_boxes(self.scene.height, self.scene.width, side_px)
        validity = self.scene.validity
        return len(boxes) if validity is None else int(validity.has_data(boxes).sum())

    def _result(
        self, prompt: str, text: str, decoded: Decoded, level: str, odds: NDArray,
        budget: TokenBudget, views: Views, crop_scores: F32, relevance: F32,
        boxes: list[list[float]], masks: list[Mask],
        timings_ms: dict[str, float], notes: list[str], deadline: dict[str, Any] | None,
    ) -> Result:  # fmt: skip
        chain = self.chain
        return Result(
            prompt=prompt,
            text=text,
            granularity=level,
            granularity_probabilities=dict(zip(LEVELS, odds.tolist(), strict=True)),
            budget=budget,
            boxes=boxes,
            masks=masks,
            relevance=relevance,
            view_box=views.boxes[0],
            crop_boxes=views.boxes[1:],
            crop_scores=crop_scores,
            token_ids=decoded.ids,
            stopped=decoded.stopped,
            decode_steps=decoded.steps,
            timings_ms=timings_ms,
            engine=chain.engine.name,
            precision=chain.engine.precision,
            providers={name: s.provider for name, s in chain.sessions.items()},
            notes=notes,
            deadline=deadline,
        )

    def close(self) -> None:
        """Forgets the encoded views and closes the image, once no query runs any more."""
        self._door.close()

    def _free(self) -> None:
        self._known.clear()
        self.scene.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a session cannot be copied or sent to another process: send the bundle's path and "
            "the image, and open them there"
        )

    def __enter__(self) -> SceneSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _joined(a: Views, b: Views, values: Values) -> Views:
    return Views(
        np.concatenate([a.boxes, b.boxes]),
        values.concat([a.tokens, b.tokens]),
        values.concat([a.embeds, b.embeds]),
        values.concat([a.features, b.features]),
    )


def _softmax(logits: NDArray) -> NDArray:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


class _Stream(Protocol):
    def __call__(self, ids: list[int], last: bool = False) -> None: ...


def _streamer(coder: PromptCoder, on_text: Callable[[str], None] | None) -> _Stream | None:
    """Turns growing ids into new text; a half-made UTF-8 character waits for its end, or the
    answer's."""
    if on_text is None:
        return None
    shown = ""

    def on_ids(ids: list[int], last: bool = False) -> None:
        nonlocal shown
        text = coder.decode(ids)
        whole = last or not text.endswith("\ufffd")
        if whole and text.startswith(shown) and text != shown:
            on_text(text[len(shown) :])
            shown = text

    return on_ids
