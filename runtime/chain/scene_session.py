"""One image and the prompts about it: look, read, find.

`SceneSession._answer` reads top to bottom; each stage has a file of its name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.errors import BudgetError
from geomag_edge.runtime.chain.chain import Chain, Stopwatch
from geomag_edge.runtime.chain.deadline import Deadline
from geomag_edge.runtime.chain.decode import Decoded
from geomag_edge.runtime.chain.find import Found, find, views_of_sweep
from geomag_edge.runtime.chain.look import Look, look
from geomag_edge.runtime.chain.question import Question, Words, words_of
from geomag_edge.runtime.chain.read import read
from geomag_edge.runtime.chain.result import Result, what_is_missing
from geomag_edge.runtime.chain.viewer import Viewer
from geomag_edge.runtime.engines.sharing import Door
from geomag_edge.runtime.images.scene import Scene


class SceneSession:
    """One image and what is already known of it; any number of prompts share its encoded views."""

    def __init__(
        self,
        chain: Chain,
        scene: Scene,
        deadline_of: Callable[[Any, float | None], Deadline | None] | None = None,
    ):
        """`deadline_of`: (budget, latency_ms) -> a deadline that starts now, where times can be
        asked for; see `Pipeline.deadline`."""
        self.chain, self.scene, self._deadline_of = chain, scene, deadline_of
        self.viewer = Viewer(chain, scene)
        what = "this image's session", "open the image"
        self._door = Door(what, self._free, one_at_a_time=True)

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
        latency_ms: float | None = None,
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
            latency_ms: in place of a deadline, one that starts now.

        Raises:
            PromptError: empty, or too long for the model with this budget.
            BudgetError: an impossible budget, or a sweep with a deadline.
            InputError: a sweep in views of less than 1 px, or in too many views.
            EngineError: closed, or opened in the process that this one was forked from.
        """
        if latency_ms is not None:
            if deadline is not None or self._deadline_of is None:
                raise BudgetError(
                    "latency_ms cannot be given beside a deadline"
                    if deadline
                    else "this session plans for no time: open the image with Pipeline.open"
                )
            deadline = self._deadline_of(budget, latency_ms)
        question = Question(
            prompt, budget, max_new_tokens, answer_prefix, on_text, deadline, sweep_px, on_view
        )
        with self.chain.door.inside(), self._door.inside():
            return self._answer(question)

    def _answer(self, question: Question) -> Result:
        viewer, values = self.viewer, self.chain.values
        views_of_sweep(viewer, question.sweep_px)  # what it cannot do is said before all else
        start, watch = time.perf_counter(), Stopwatch(values)
        words = words_of(question, self.chain.coder, viewer.global_view, viewer.size)
        sight = look(viewer, question, words, watch)
        decoded = read(viewer, question, words, sight, watch)
        looked_ms = watch.ms
        found = find(viewer, question, words, sight.every(values), decoded, watch)
        timings_ms = looked_ms | {"prefill": decoded.prefill_ms, "decode": decoded.decode_ms}
        timings_ms |= {stage: watch.ms[stage] for stage in ("sweep", "mask") if stage in watch.ms}
        timings_ms["total"] = (time.perf_counter() - start) * 1e3
        return self._result(question, words, sight, decoded, found, timings_ms)

    def _result(
        self,
        question: Question,
        words: Words,
        sight: Look,
        decoded: Decoded,
        found: Found,
        timings_ms: dict[str, float],
    ) -> Result:
        chain, deadline = self.chain, question.deadline
        report = None if deadline is None else deadline.closed(sight.budget, decoded.stopped)
        return Result(
            prompt=words.prompt,
            text=found.text,
            granularity=sight.level,
            granularity_probabilities=dict(zip(LEVELS, sight.odds.tolist(), strict=True)),
            budget=sight.budget,
            boxes=found.boxes,
            masks=found.masks,
            relevance=sight.relevance,
            view_box=sight.whole.boxes[0],
            crop_boxes=sight.crop_boxes,
            crop_scores=sight.crop_scores,
            token_ids=decoded.ids,
            stopped=decoded.stopped,
            decode_steps=decoded.steps,
            timings_ms=timings_ms,
            engine=chain.engine.name,
            precision=chain.engine.precision,
            providers={name: s.provider for name, s in chain.sessions.items()},
            notes=self._notes(question, words, sight, decoded, found),
            deadline=report,
            sweep=found.sweep,
        )

    def _notes(
        self, question: Question, words: Words, sight: Look, decoded: Decoded, found: Found
    ) -> list[str]:
        """Plain remarks, in the order of what they are about."""
        notes, settings = list(self.scene.notes), self.chain.coder.settings
        if untrained := self.chain.manifest.untrained:
            notes.append(f"never trained: {', '.join(untrained)}; the answer means nothing yet")
        if words.cut:
            notes.append(
                f"the prompt is longer than PSC's {settings.psc_context} tokens; crops were "
                "chosen from its beginning"
            )
        if question.deadline is not None and (lost := question.deadline.planner.model.lost):
            notes.append(lost)
        notes += found.notes
        if missing := what_is_missing(
            found.text, sight.level, words.prompt, found.masks, found.boxes, decoded.stopped
        ):
            notes.append(missing)
        return notes

    def close(self) -> None:
        """Forgets the encoded views and closes the image, once no query runs any more."""
        self._door.close()

    def _free(self) -> None:
        self.viewer.forget()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a session cannot be copied or sent to another process: send the bundle's path and "
            "the image, and open them there"
        )

    def __enter__(self) -> SceneSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
