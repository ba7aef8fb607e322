"""Greedy decoding through the `embed` and `llm` graphs, with the cache kept by the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from geomag_edge.graphs import present_names
from geomag_edge.manifest import DecoderShape
from geomag_edge.prompts import MOST_MASKS
from geomag_edge.runtime.engines.engine import Session
from geomag_edge.runtime.engines.feeds import prompt_feeds, step_feeds
from geomag_edge.runtime.engines.values import HOST, Values, expect


@dataclass
class Decoded:
    """What the LLM said.

    Attributes:
        ids: the answer's token ids, a forced prefix included, the end token not.
        queries: [m,D], the last hidden state of each [SEG] in the answer, as the engine has it;
            of the first `MOST_MASKS` of them.
        prefill_ms, decode_ms: time of the prompt and of all further steps.
        steps: decode steps taken.
        stopped: "end" (the model ended its answer), "length" or "deadline".
    """

    ids: list[int]
    queries: Any
    prefill_ms: float
    decode_ms: float
    steps: int
    stopped: str


class Prompt(NamedTuple):
    """What the LLM reads.

    Attributes:
        before, after: prompt ids around the visual tokens.
        visual: [V,D], of the engine.
        prefix: ids that the answer starts with (teacher-forced), may be empty.
    """

    before: Sequence[int]
    visual: Any
    after: Sequence[int]
    prefix: Sequence[int] = ()


class Stop(NamedTuple):
    """What asks for a mask, what ends an answer, and at most so many ids after the prefix."""

    seg_token_id: int
    eos_token_ids: Sequence[int]
    max_new_tokens: int


class LanguageModel(NamedTuple):
    """The open graphs `llm` and `embed`, the cache's shape, and how the engine's arrays are
    joined and read."""

    llm: Session
    embed: Session
    shape: DecoderShape
    values: Values = HOST

    def embedded(self, input_ids: Any) -> Any:
        """[1,n] ids -> [1,n,D]."""
        made = self.embed.run({"input_ids": input_ids}, self.values.kept)["inputs_embeds"]
        expect(made, (1, input_ids.shape[1], self.shape.hidden))
        return made

    def joined(self, prompt: Prompt) -> Any:
        """All that is read before the first new id: [length,D]."""
        before, after = (
            [self.embedded(np.array([ids], np.int64))[0]] if ids else []
            for ids in ([*prompt.before], [*prompt.after, *prompt.prefix])
        )
        return self.values.concat([*before, prompt.visual, *after])

    def read(self, feeds: dict[str, Any], count: int) -> dict[str, Any]:
        """The outputs for `count` new places, the grown cache kept where the engine has it."""
        kept = self.values.kept | frozenset(present_names(self.shape.layers))
        out = self.llm.run(feeds, keep=kept)
        expect(out["logits"], (1, 1, None))
        expect(out["hidden_states"], (1, count, self.shape.hidden))
        return out


def decode_greedily(
    model: LanguageModel,
    prompt: Prompt,
    stop: Stop,
    on_ids: Callable[[list[int]], None] | None = None,
    go_on: Callable[[int, bool], bool] = lambda past, closing: True,
) -> Decoded:
    """One answer.

    Args:
        model: what answers.
        prompt: what it reads.
        stop: where it ends.
        on_ids: called with all answer ids so far after each new one.
        go_on: asked before each step, with the tokens so far and whether only a [SEG] awaits it,
            whether there is time for it.
    """
    values, shape = model.values, model.shape
    start = values.now()
    embeds = model.joined(prompt)
    length = len(embeds)
    out = model.read(prompt_feeds(embeds.reshape(1, length, -1), shape), length)
    ids = list(prompt.prefix)
    first = length - len(ids)
    queries = [
        out["hidden_states"][0, first + i]
        for i, token in enumerate(ids)
        if token == stop.seg_token_id
    ]
    prefilled = values.now()
    steps, stopped = 0, "length"
    for made in range(stop.max_new_tokens):
        token, input_ids = values.choose(out["logits"])
        if token in stop.eos_token_ids:
            stopped = "end"
            break
        ids.append(token)
        if on_ids:
            on_ids(ids)
        if made + 1 == stop.max_new_tokens and token != stop.seg_token_id:
            break  # nothing would read this step's outputs
        if not go_on(length, token == stop.seg_token_id):
            stopped = "deadline"
            break
        out = model.read(step_feeds(model.embedded(input_ids), length, shape.layers, out), 1)
        length, steps = length + 1, steps + 1
        if token == stop.seg_token_id and len(queries) < MOST_MASKS:
            queries.append(out["hidden_states"][0, -1])
    done = values.now()
    return Decoded(
        ids=ids,
        queries=values.stack(queries) if queries else np.zeros((0, shape.hidden), np.float32),
        prefill_ms=values.ms_between(start, prefilled),
        decode_ms=values.ms_between(prefilled, done),
        steps=steps,
        stopped=stopped,
    )
