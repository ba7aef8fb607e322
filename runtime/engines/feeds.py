"""What the `llm` graph is fed: a whole prompt into an empty cache, then one token after another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from geomag_edge.graphs import past_names, present_names
from geomag_edge.manifest import DecoderShape


def prompt_feeds(embeds: Any, shape: DecoderShape) -> dict[str, Any]:
    """A prompt's.

    Args:
        embeds: [1,T,D], of the engine.
        shape: the cache's shape.
    """
    length = embeds.shape[1]
    nothing = np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
    return {
        "inputs_embeds": embeds,
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length)[None],
        **{past: nothing for past, _ in cache_names(shape.layers)},
    }


def step_feeds(embed: Any, past: int, layers: int, before: Mapping[str, Any]) -> dict[str, Any]:
    """One further token's.

    Args:
        embed: [1,1,D], of the engine.
        past: tokens so far.
        layers: of the LLM.
        before: the outputs of the run before, whose cache goes on.
    """
    return {
        "inputs_embeds": embed,
        "attention_mask": np.ones((1, past + 1), np.int64),
        "position_ids": np.array([[past]], np.int64),
        **{name: before[present] for name, present in cache_names(layers)},
    }


@cache
def cache_names(layers: int) -> tuple[tuple[str, str], ...]:
    """(input, output) of every part of the cache."""
    return tuple(zip(past_names(layers), present_names(layers), strict=True))
