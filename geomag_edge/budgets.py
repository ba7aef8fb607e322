"""TMRA's token budgets: how much of the picture the LLM gets to see for a task.

A budget is a global grid of g x g tokens and K crops of c x c tokens each; its cost is
g*g + K*c*c visual tokens. Any budget runs through the same graphs, because pooling is a matrix
product with a host-made matrix (`geomag_edge.views.pooling_matrix`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from geomag_edge.arguments import SHOWN_BELOW, told, whole
from geomag_edge.errors import BudgetError

LEVELS = ("image", "region", "pixel")
"""The task levels, in the order of the router's three logits."""


@dataclass(frozen=True, order=True)
class TokenBudget:
    """`global_grid` x `global_grid` tokens of the whole, `crops` crops of `crop_grid` squared."""

    global_grid: int
    crops: int = 0
    crop_grid: int = 0

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            whole(number, f"a budget's {name}", -SHOWN_BELOW, error=BudgetError)
        if self.global_grid < 1 or self.crops < 0 or (self.crops > 0 and self.crop_grid < 1):
            raise BudgetError(
                f"token budget {self} is not possible: the global grid must be at least 1, and "
                "crops need a crop grid of at least 1"
            )

    @property
    def visual_tokens(self) -> int:
        """Tokens that the LLM reads for the picture."""
        return self.global_grid**2 + self.crops * self.crop_grid**2

    def __str__(self) -> str:
        if self.crops == 0:
            return f"{self.global_grid}"
        return f"{self.global_grid}+{self.crops}x{self.crop_grid}"

    def to_json(self) -> dict[str, int]:
        """The form in which manifests and answers hold a budget."""
        return {
            "global_grid": self.global_grid,
            "crops": self.crops,
            "crop_grid": self.crop_grid,
            "visual_tokens": self.visual_tokens,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, int]) -> TokenBudget:
        """Reads `to_json`'s form; `visual_tokens` is derived, so it is not read."""
        return cls(int(data["global_grid"]), int(data["crops"]), int(data["crop_grid"]))

    def fitted(self, visual_tokens: int) -> TokenBudget:
        """The largest budget of this shape with at most `visual_tokens` tokens.

        Grid sides and the number of crops shrink alike, so that neither the overview nor the
        magnification is given up for the other.
        """
        if visual_tokens < 1:
            raise BudgetError(f"a budget of {visual_tokens} visual tokens is too small: give >= 1")
        fitting = []
        for crops in range(self.crops + 1):
            for grid in range(1, min(self.global_grid, math.isqrt(visual_tokens)) + 1):
                # Of budgets that differ in the crops' grid alone, the finest that fits is best.
                left = visual_tokens - grid**2
                crop_grid = min(self.crop_grid, math.isqrt(left // crops)) if crops else 0
                if crop_grid or not crops:
                    fitting.append(TokenBudget(grid, crops, crop_grid))
        return max(fitting, key=lambda b: (_worth(b, self), b.visual_tokens, b.crops))


def _worth(budget: TokenBudget, full: TokenBudget) -> float:
    """How close a budget is to the full one, by its worst part (grid side or crop count)."""
    parts = [budget.global_grid / full.global_grid]
    if full.crops:
        parts.append(budget.crops / full.crops)
        parts.append((budget.crop_grid if budget.crops else 0) / full.crop_grid)
    return min(parts) + sum(parts) / (10 * len(parts))


_FORM = re.compile(r"(\d{1,6})(?:\+(\d{1,6})x(\d{1,6}))?")


def parse_budget(text: str, levels: Mapping[str, TokenBudget], routed: str) -> TokenBudget:
    """Reads what a user may give as `--budget`.

    Args:
        text: a level's name (`pixel`), an explicit budget `G+KxC` (`12+4x8`: 12 x 12 tokens of
            the whole and 4 crops of 8 x 8), or `Nt` (`200t`): at most N visual tokens, shaped
            like the routed level's budget.
        levels: the model's own budget of each level.
        routed: the level that the router chose.

    Raises:
        BudgetError: none of these forms.
    """
    text = text.strip()
    if text in levels:
        return levels[text]
    if match := re.fullmatch(r"(\d{1,9})t", text):
        return levels[routed].fitted(int(match[1]))
    if match := _FORM.fullmatch(text):
        return TokenBudget(int(match[1]), int(match[2] or 0), int(match[3] or 0))
    raise BudgetError(
        f"unknown budget {text!r}: give one of {', '.join(levels)}, a grid and crops such as "
        "12+4x8, or a number of visual tokens such as 200t"
    )


def check_budget(budget: TokenBudget, grid: int, max_crops: int) -> TokenBudget:
    """Refuses a budget finer than the encoder's patch grid or with more crops than `psc` makes."""
    if not isinstance(budget, TokenBudget):
        raise BudgetError(
            f"the budget is {told(budget)}: give a level's name, a form such as 12+4x8 or 200t, a "
            "number of visual tokens, or a TokenBudget"
        )
    if budget.global_grid > grid or budget.crop_grid > grid:
        raise BudgetError(
            f"budget {budget} asks for a grid finer than the encoder's {grid} x {grid} patches: "
            f"use grids of at most {grid}"
        )
    if budget.crops > max_crops:
        raise BudgetError(
            f"budget {budget} asks for {budget.crops} crops, this model chooses at most {max_crops}"
        )
    return budget
