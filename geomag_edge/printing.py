"""Text from outside, made fit for one line of a terminal, a log or a report.

File names, what a bundle says of itself, a model's answers, arguments and libraries' messages may
hold anything: escape sequences that act on a terminal, marks that turn a line around, halves of
characters that no encoding can write, or a hundred thousand letters. Here they are made harmless.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

LINE_CHARS = 300
"""No line about an error or a remark is longer."""
CELL_CHARS = 120
"""Nor a cell of a table; `--json` has everything whole."""

_JOINERS = "\u200c\u200d"
"""Invisible, but part of words in Persian and Hindi, and of emoji."""
_ENDS = 8_192
"""What is looked at of either end of a text that is far longer than a line."""
_LONG_WORD = re.compile(r"\S{72,}")


def printable(text: str, keep: str = "") -> str:
    r"""Text whose invisible and acting characters are spelt out, as `\x1b`.

    Those are the control characters, ESC among them; line and paragraph separators; the marks that
    change the direction of writing; and bytes of a name that are no UTF-8 (`\xe9`).

    Args:
        text: of any origin.
        keep: characters that may stay all the same, such as a line feed in an answer.
    """
    if text.isprintable():
        return text
    return "".join(c if _shows(c) or c in keep else spelt_out(c) for c in text)


def one_line(text: str, most: int = LINE_CHARS) -> str:
    """Text as one printable line of at most `most` characters.

    A longer one loses the middle of its long words first, then its own middle: a message begins
    with the thing and ends with the remedy.
    """
    if len(text) > 2 * _ENDS:
        text = f"{text[:_ENDS]} ... {text[-_ENDS:]}"
    return shortened(printable(" ".join(text.split())), most)


def shortened(line: str, most: int) -> str:
    """A line of at most `most` characters, its spaces as they are; see `one_line`."""
    if len(line) <= most:
        return line
    line = _LONG_WORD.sub(lambda word: f"{word[0][:44]}...{word[0][-20:]}", line)
    if len(line) <= most:
        return line
    head = most * 3 // 5
    return f"{line[:head].rstrip()} ... {line[head + 5 - most :].lstrip()}"


def plain(data: Any) -> Any:
    """Data that any JSON reader takes: paths as text, text that any encoding can write, and null
    for NaN and infinity, which JSON lacks."""
    if isinstance(data, dict):
        return {plain(str(key)): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if isinstance(data, os.PathLike):
        return plain(str(data))
    if isinstance(data, str):
        return re.sub("[\ud800-\udfff]", lambda half: spelt_out(half[0]), data)
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def _shows(character: str) -> bool:
    return (
        character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"  # wide and narrow spaces
    )


def spelt_out(character: str) -> str:
    r"""A character's number, as `\u202e`."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A plain table's lines; numbers to the right, text to the left."""
    cells = [[one_line(str(c), CELL_CHARS) for c in row] for row in rows]
    widths = [max(len(x) for x in column) for column in zip(header, *cells, strict=True)]
    numeric = [
        all(isinstance(row[i], int | float) or _numeric(row[i]) for row in rows)
        for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return [line(header), line(["-" * w for w in widths]), *(line(r) for r in cells)]


def _numeric(cell: Any) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True
