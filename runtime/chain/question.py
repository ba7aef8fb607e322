"""What is asked about an image, checked, and the token ids that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomag_edge.arguments import called, text, told, whole
from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import BudgetError, PromptError
from geomag_edge.prompts import PromptCoder, prompt_in_view
from geomag_edge.runtime.chain.chain import F32
from geomag_edge.runtime.chain.deadline import Deadline
from geomag_edge.views import global_box


@dataclass
class Question:
    """One question; see `SceneSession.ask` for its fields and for what it raises."""

    prompt: str
    budget: str | int | TokenBudget | None
    max_new_tokens: int
    answer_prefix: str
    on_text: Callable[[str], None] | None
    deadline: Deadline | None
    sweep_px: int | None
    on_view: Callable[[str], None]

    def __post_init__(self) -> None:
        if self.sweep_px is not None and self.deadline is not None:
            raise BudgetError("a sweep takes as long as it takes: give no time")
        self.max_new_tokens = whole(self.max_new_tokens, "max_new_tokens", 1)
        text(self.answer_prefix, "answer_prefix", PromptError)
        for function, what in ((self.on_text, "on_text"), (self.on_view, "on_view")):
            called(function, what)
        if self.deadline is not None and not isinstance(self.deadline, Deadline):
            raise BudgetError(f"deadline is {told(self.deadline)}: give one of Pipeline.deadline")


@dataclass(frozen=True)
class Words:
    """A prompt as the model reads it.

    Attributes:
        prompt: cleaned.
        before, after: ids around the visual tokens.
        prefix: ids that the answer begins with.
        psc_ids: the same prompt for PSC, [1,T].
        cut: PSC reads only its beginning.
    """

    prompt: str
    before: list[int]
    after: list[int]
    prefix: list[int]
    psc_ids: NDArray
    cut: bool

    @property
    def count(self) -> int:
        """Tokens that the LLM reads, without the visual ones."""
        return len(self.before) + len(self.after) + len(self.prefix)


def words_of(question: Question, coder: PromptCoder, view: F32, size: tuple[int, int]) -> Words:
    """The token ids of a question about an image of `size` H, W that is seen through `view`.

    Raises:
        PromptError: empty, or too long.
    """
    prompt = coder.check(question.prompt)
    shown = prompt
    if not np.array_equal(view, global_box(*size)):
        shown = prompt_in_view(prompt, view.tolist(), *size)
    before, after = coder.around_image(shown)
    psc_ids, cut = coder.psc_ids(shown)
    return Words(prompt, before, after, coder.prefix_ids(question.answer_prefix), psc_ids, cut)
