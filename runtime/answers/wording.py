"""An answer in words for people: what its masks are called, its text, and what cut it short."""

from __future__ import annotations

import re
from typing import Any

from geomag_edge.prompts import MARKUP, SEG_TOKEN

CUT_SHORT = {
    "deadline": "cut short: the time that was given ended before the answer did",
    "length": "cut short: the answer has as many tokens as were allowed",
}
"""By what stopped an answer, if not its end."""

_LEADING = re.compile(r"^[\s,.;:!?]*(?:(?:and|or)\b\s*)?", re.I)


def mask_names(text: str, prompt: str) -> list[str]:
    """What an answer calls each of its masks, in order.

    The words that lead to a [SEG]; where there are none, the name before it, or the prompt.
    """
    name, names = _words_of(prompt), []
    for lead in text.split(SEG_TOKEN)[:-1]:
        name = _LEADING.sub("", _words_of(lead)).strip(" ,.;:!?") or name
        names.append(name)
    return names


def words_shown(text: str) -> str:
    """An answer without its markup, for people: where it has several masks, their numbers."""
    many = text.count(SEG_TOKEN) > 1
    numbered, *rest = text.split(SEG_TOKEN)
    for number, part in enumerate(rest, start=1):
        numbered += (f" ({number}) " if many else " ") + part
    return _words_of(numbered)


def _words_of(text: str) -> str:
    return " ".join(MARKUP.sub(" ", text).split())


def cut_short(answer: dict[str, Any]) -> str | None:
    """What everybody should know who sees an answer that was not finished; `answer` as in
    answer.json."""
    return CUT_SHORT.get(str(answer.get("stopped")))
