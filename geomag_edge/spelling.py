"""What a person types -> the spelling that a tower was trained on.

A keyboard, a phone, a word processor and a web page each spell one sentence in their own way: a
capital first, curly quotes, two spaces, a space that must not break, full-width letters. A tower
has seen one of these. `spelt` brings text to a tower's form; docs/PROMPTS.md is its specification.
"""

from __future__ import annotations

import re
import string
import unicodedata

from tokenizers import Tokenizer

FORMS = ("cased", "lower", "canonical")
"""cased: NFC, capitals kept. lower: NFKC and lower case. canonical: lower, without ASCII
punctuation, as SigLIP's first text towers were trained."""

_PLAIN = {
    "'": "\u2018\u2019\u201a\u201b\u2032\u2039\u203a\u02bc\u00b4",
    '"': "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u301d\u301e\u301f",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2e3a\u2e3b\ufe58\ufe63",
    "...": "\u2026",
    "": "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061"
    "\u2062\u2063\u2064\u2065\u115f\u1160\u3164\uffa0\u2800\u2066\u2067\u2068\u2069\ufeff",
}  # fmt: skip
_INVISIBLE = [*range(0x09), *range(0x0E, 0x1C), *range(0x7F, 0x85), *range(0x86, 0xA0)]
_INVISIBLE += [*range(0x206A, 0x2070), *range(0xFFF9, 0xFFFC), *range(0xFE00, 0xFE10)]
_INVISIBLE += range(0xE0000, 0xE01F0)  # controls that are no space; variants; tags
_TABLE = {ord(c): plain for plain, typed in _PLAIN.items() for c in typed}
_TABLE |= dict.fromkeys(_INVISIBLE, "")
_JOINERS = {0x200C: "", 0x200D: ""}
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}  # ASCII's full-width forms
_WIDE_WORDS = {wide: narrow for wide, narrow in _WIDE.items() if chr(narrow).isalnum()}
_PUNCTUATION = str.maketrans("", "", string.punctuation)

_LATIN_JOINER = re.compile(r"(^|[\x00-\x7f])[\u200c\u200d]+")
_EAST_ASIAN = re.compile(r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]")
_SPACES = re.compile(r"\s+")
_BRACKETED = re.compile(r"<.*>|\[.*\]")
_CAPITAL = re.compile("[A-Z]")


def spelt(text: str, form: str) -> str:
    """Text in a tower's form; a text in that form stays as it is.

    Runs of white space become one space, at the ends too, which stay: see `str.strip`.

    Args:
        text: as typed, of whole characters (no lone surrogates).
        form: one of `FORMS`.
    """
    text = _SPACES.sub(" ", text.translate(_TABLE))
    if form == "cased":
        # In East Asian writing the wide marks are the ordinary ones; outside ASCII joiners spell
        # Persian, Hindi and emoji.
        text = text.translate(_WIDE_WORDS if _EAST_ASIAN.search(text) else _WIDE)
        text = unicodedata.normalize("NFC", text).translate(_TABLE)
        text = unicodedata.normalize("NFC", _LATIN_JOINER.sub(r"\1", text))
    else:
        # Compatibility forms hold capitals and dashes of their own, and a lower-case letter may
        # be composed in another way than its capital.
        text = unicodedata.normalize("NFKC", text.translate(_JOINERS)).translate(_TABLE)
        text = text.lower()
        if form == "canonical":
            text = text.translate(_PUNCTUATION)
        text = unicodedata.normalize("NFKC", text)
    return _SPACES.sub(" ", text)


def form_of_vocabulary(tokenizer: Tokenizer, known: str) -> str:
    """`lower` where a tokenizer lower-cases by itself or has learnt no capitals, else `cased`.

    Learnt are pieces of two letters or more; a single letter is in every alphabet.

    Args:
        tokenizer: of any kind. Its added tokens do not count, nor names in brackets such as
            `<unk>` or the byte `<0x4A>`.
        known: text whose parts do not count either: the prompt's template.
    """
    normalizer = tokenizer.normalizer
    if normalizer is not None and normalizer.normalize_str("AB").strip("\u2581 ") == "ab":
        return "lower"
    added = set(tokenizer.get_added_tokens_decoder())
    ids = [i for i in tokenizer.get_vocab(with_added_tokens=False).values() if i not in added]
    for piece in tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False):
        word = piece.strip()
        if sum(map(str.isalpha, word)) < 2 or word in known or _BRACKETED.fullmatch(word):
            continue
        # Undecoded, a byte-level piece spells its bytes with letters such as \u0120.
        if word != word.lower() if tokenizer.decoder else _CAPITAL.search(word):
            return "cased"
    return "lower"
