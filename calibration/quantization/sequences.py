"""Whole prompts with the model's own answers, as the LLM read them while a bundle was calibrated.

Statistics by channel say how loud a layer's inputs are, not how they go together. Sequences say it,
and are smaller than the moments that can be taken from them. 4-bit weights are fitted to them
(`gptq`), and they show what a layer's rounding does to the answer's tokens (`forced`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

COUNT = 128
"""Questions of a calibration whose sequences are kept. With 32 of the shipped model's, which hold
some 200 tokens of answers, 4 bits put its logits off by 0.024 of their norm; with 144, by 0.019."""


@dataclass(frozen=True)
class Spoken:
    """One prompt and its answer.

    Attributes:
        embeds: f16[T,D], what the LLM read: prompt, visual tokens, answer.
        answer: the first position whose output chose a token of the answer.
    """

    embeds: NDArray[np.float16]
    answer: int

    @property
    def tokens(self) -> int:
        """Length T."""
        return len(self.embeds)


def chosen_questions(count: int) -> frozenset[int]:
    """Which of `count` questions are kept, the same on every run.

    Drawn, not every n-th: levels and budgets take turns too, and some would never be met.
    """
    return frozenset(np.random.default_rng(0).permutation(count)[:COUNT].tolist())


def spoken_of(steps: Sequence[NDArray]) -> Spoken:
    """The sequence of one answer, from f[t,D] of the prompt and of each step."""
    half = np.finfo(np.float16).max
    embeds = np.clip(np.concatenate(steps), -half, half).astype(np.float16)
    return Spoken(embeds, len(steps[0]) - 1)


def feeds_of(session: ort.InferenceSession, spoken: Spoken) -> dict[str, NDArray]:
    """Inputs of a decoder that reads the whole sequence at once, with an empty cache."""
    steps = spoken.tokens
    feeds: dict[str, NDArray] = {
        "inputs_embeds": spoken.embeds.astype(np.float32)[None],
        "attention_mask": np.ones((1, steps), np.int64),
        "position_ids": np.arange(steps)[None],
    }
    for port in session.get_inputs():
        if port.name.startswith("past_key_values."):
            feeds[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]), np.float32)
    return feeds


def to_arrays(spoken: Sequence[Spoken]) -> dict[str, Any]:
    """The form of the bundle's file: `answers` i64[n], and `0`, `1`, ..."""
    arrays: dict[str, Any] = {str(i): s.embeds for i, s in enumerate(spoken)}
    return arrays | {"answers": np.array([s.answer for s in spoken], np.int64)}


def from_arrays(arrays: Mapping[str, NDArray]) -> list[Spoken]:
    """Reads `to_arrays`'s form.

    Raises:
        ValueError, LookupError: it is not that.
    """
    found = []
    for i, answer in enumerate(arrays["answers"].tolist()):
        embeds = arrays[str(i)]
        if embeds.dtype != np.float16 or embeds.ndim != 2 or not 0 <= answer < len(embeds):
            raise ValueError(f"sequence {i} has no answer")
        found.append(Spoken(embeds, answer))
    return found
