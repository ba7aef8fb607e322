"""Words in a picture: a font that has their letters, and for letters that none has, their numbers.

Pillow's own font has those of English alone and draws an empty box for any other.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from PIL import ImageFont

from geomag_edge.printing import printable, spelt_out

SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc",
    "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "FreeSans.ttf",
    "Arial Unicode.ttf", "PingFang.ttc", "Arial.ttf", "segoeui.ttf", "msyh.ttc",
)  # fmt: skip
"""Looked for by name, in this order, where the system keeps its fonts."""

_NOBODYS = "\uffff"
"""No character, so a font draws for it what it draws for any that it lacks."""


def lettered(text: str, size: int) -> tuple[str, Any]:
    r"""Text as one font can draw it, and that font, whose `size` is in pixels.

    The font is Pillow's where that has every letter, else the first of the system's that lacks the
    fewest. What it lacks all the same is spelt out, as `\u6e2f`.
    """
    text = printable(unicodedata.normalize("NFC", " ".join(text.split())))
    best, fewest = 0, len(text) + 1
    for i in range(len(SYSTEM_FONTS) + 1):
        lacking = sum(not _has(i, c) for c in text)
        if lacking < fewest:
            best, fewest = i, lacking
        if not fewest:
            break
    shown = "".join(c if _has(best, c) else spelt_out(c) for c in text)
    return shown, _font(best, size)


@functools.cache
def _font(which: int, size: int) -> Any:
    """Pillow's font (0) or one of the system's; None where there is none of that name."""
    if which == 0:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(SYSTEM_FONTS[which - 1], size)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _has(which: int, character: str) -> bool:
    if character.isascii():
        return which == 0 or _font(which, 16) is not None
    font = _font(which, 16)
    if font is None:
        return False
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow was built without FreeType
        return False
    drawn, lacking = font.getmask(character), font.getmask(_NOBODYS)
    return drawn.size != lacking.size or bytes(drawn) != bytes(lacking)
