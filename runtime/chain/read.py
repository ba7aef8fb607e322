"""The middle stages: what was looked at becomes visual tokens, and the LLM answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.chain import Stopwatch
from geomag_edge.runtime.chain.decode import Decoded, LanguageModel, Prompt, Stop, decode_greedily
from geomag_edge.runtime.chain.look import Look
from geomag_edge.runtime.chain.question import Question, Words
from geomag_edge.runtime.chain.viewer import Viewer


def read(
    viewer: Viewer, question: Question, words: Words, sight: Look, watch: Stopwatch
) -> Decoded:
    """The LLM's answer, its text told piece by piece."""
    chain, settings = viewer.chain, viewer.chain.coder.settings
    with watch("project"):
        visual = chain.project(sight.whole, sight.budget.global_grid, viewer.scene)
        if sight.crops is not None and sight.budget.crops:
            crops = sight.crops.first(sight.budget.crops)
            more = chain.project(crops, sight.budget.crop_grid, viewer.scene)
            visual = chain.values.concat([visual, more])
    room = settings.context - words.count - sight.budget.visual_tokens
    on_ids = streamer(chain.coder, question.on_text)
    views = 1 + len(sight.crop_scores)
    pace: dict[str, Any] = {}
    if question.deadline is not None:
        pace["go_on"] = question.deadline.pace(views)
    decoded = decode_greedily(
        LanguageModel(
            chain.sessions["llm"], chain.sessions["embed"], chain.manifest.decoder, chain.values
        ),
        Prompt(words.before, visual, words.after, words.prefix),
        Stop(
            settings.seg_token_id,
            settings.eos_token_ids,
            min(question.max_new_tokens, room),
        ),
        on_ids=on_ids,
        **pace,
    )
    if on_ids:
        on_ids(decoded.ids, last=True)
    return decoded


class Stream(Protocol):
    """Called with all ids of an answer so far."""

    def __call__(self, ids: list[int], last: bool = False) -> None:
        """`last`: the answer is over."""


def streamer(coder: PromptCoder, on_text: Callable[[str], None] | None) -> Stream | None:
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
