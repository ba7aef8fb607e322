"""What a word of the command line may be: text, or a number within bounds."""

from __future__ import annotations

import math
import os
from argparse import ArgumentTypeError
from pathlib import Path

MOST = 2**31 - 1
"""More than any count, size or seed has use for, and what fits every library's integers."""


def text(word: str) -> str:
    """Words, in UTF-8 whatever the system's encoding is."""
    try:
        if any("\ud800" <= c <= "\udfff" for c in word):  # bytes that the system's encoding lacks
            return os.fsencode(word).decode()
    except UnicodeError as e:
        raise ArgumentTypeError(f"{word!r} is not valid text: give it in UTF-8") from e
    return word


def path(word: str) -> Path:
    """A file's or a folder's name; nothing at all is not this folder."""
    if not word:
        raise ArgumentTypeError("an empty name: give a path")
    return Path(word)


def positive(word: str) -> int:
    """A whole number of at least 1."""
    return _whole(word, 1)


def seed(word: str) -> int:
    """A whole number of at least 0."""
    return _whole(word, 0)


def _whole(word: str, least: int) -> int:
    try:
        value = int(word)
    except ValueError as e:  # of thousands of digits, too
        raise ArgumentTypeError(f"{word!r} is not a whole number") from e
    if value < least:
        raise ArgumentTypeError(f"{word} is not at least {least}")
    if value > MOST:
        raise ArgumentTypeError(f"{word} is more than {MOST}")
    return value


def milliseconds(word: str) -> float:
    """A time of more than 0."""
    return _between(word, 0, math.inf, "more than 0 ms")


def watts(word: str) -> float:
    """A power of more than 0."""
    return _between(word, 0, math.inf, "more than 0 W")


def points(word: str) -> float:
    """0 to 100."""
    return _between(word, -math.ulp(0), 100, "from 0 to 100 points")


def share(word: str) -> float:
    """0 to 1."""
    return _between(word, -math.ulp(0), 1, "a share from 0 to 1")


def _between(word: str, above: float, most: float, what: str) -> float:
    try:
        value = float(word)
    except ValueError as e:
        raise ArgumentTypeError(f"{word!r} is not a number") from e
    if not above < value <= most or math.isinf(value):
        raise ArgumentTypeError(f"{word} is not {what}")
    return value


def number(word: str) -> float:
    """An int where the word is one, with all of its digits; else a float, or NaN."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    raise ArgumentTypeError(f"{word!r} is not a number")
