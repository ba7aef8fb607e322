"""tokenizer.json from a stranger: what it may do is read off it before the library takes it, and
whatever the library throws, a panic of its Rust code too, is one `BundleError`.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from geomag_edge.disk.bounds import TOKENIZER_BYTES
from geomag_edge.disk.stored import read_bytes
from geomag_edge.errors import BundleError, GeoMagError

GROWTH = 100
"""How many bytes a tokenizer's rules may make of one: each character may become several by
normalisation, and what it becomes may be replaced again."""

RULES = 200
"""Normalizers, splits and processors of a tokenizer."""

PIECE = 1000
"""Characters of a token, of a word that is looked up whole, and of what a rule puts in."""

TRIAL = ("", " ", "a", "a word, 1", "\u4e00 \u00e9\U0001f6f0", "[SEG] <image> </s> ", "ab" * 200)
"""Texts on which most that are broken fail at once, before a prompt does."""

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json, without the padding and truncation that it may have been saved with.

    Raises:
        BundleError: missing, not a tokenizer, one that fails on a word, or one that makes
            megabytes of a prompt.
    """
    try:
        content = read_bytes(path, TOKENIZER_BYTES)
        _check(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        reason = str(e)[:120] or type(e).__name__
        raise BundleError(f"cannot read the tokenizer {path}: {reason}") from e
    with _rust_unheard(), tokenizing(path):
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for text in TRIAL:
            ids = tokenizer.encode(text).ids
            tokenizer.decode(ids, skip_special_tokens=False)
    return tokenizer


@contextmanager
def tokenizing(path: Path | None = None) -> Iterator[None]:
    """Turns what the library throws into an error of ours.

    Raises:
        BundleError: the tokenizer failed; a panic in its Rust code is no `Exception` in Python.
    """
    try:
        yield
    except GeoMagError:
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
        which = f"the tokenizer {path}" if path else "text with the bundle's tokenizer"
        raise BundleError(f"cannot read {which}: {reason}") from e


def _check(data: dict[str, Any]) -> None:
    """Bounds on what a tokenizer's rules can make of a prompt.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: out of them, or not a tokenizer.
    """
    rules = {part: [*_rules(data.get(part))] for part in PARTS}
    if sum(map(len, rules.values())) > RULES:
        raise ValueError(f"it has more than {RULES} rules")
    for side in (("normalizer", "pre_tokenizer"), ("decoder",)):
        growth = 1
        for rule in (rule for part in side for rule in rules[part]):
            growth *= _growth(rule)
        if growth > GROWTH:
            raise ValueError(f"its rules may make {growth} bytes of one, more than {GROWTH}")
    templates = [r for r in rules["post_processor"] if r.get("type") == "TemplateProcessing"]
    if len(templates) > 4:
        raise ValueError("it has more than 4 templates")
    for template in templates:
        _check_template(template)
    model = data["model"]
    if model.get("max_input_chars_per_word", 0) > PIECE:
        raise ValueError(f"it looks up words of more than {PIECE} characters")
    vocabulary = model["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else (entry[0] for entry in vocabulary)
    added = (token["content"] for token in data.get("added_tokens") or ())
    longest = max((len(piece) for some in (pieces, added) for piece in some), default=0)
    if longest > PIECE:
        raise ValueError(f"it has a token of {longest} characters")


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    """The rules of a part, those in sequences too.

    Raises:
        ValueError: one has no name, which the library would guess from its fields.
    """
    if part is None:
        return
    if not isinstance(part.get("type"), str):
        raise ValueError("a rule does not say its type")
    inner = [
        value
        for key, value in part.items()
        if isinstance(value, list) and part.get("type") == "Sequence" and key != "type"
    ]
    for rules in inner:
        for rule in rules:
            yield from _rules(rule)
    if not inner:
        yield part


def _growth(rule: dict[str, Any]) -> int:
    """How many bytes a rule may make of one."""
    for key in ("content", "prepend", "prefix", "suffix", "replacement"):
        if len(str(rule.get(key, ""))) > PIECE:
            raise ValueError(f"a rule puts in more than {PIECE} characters")
    if rule.get("type") == "Replace":
        pattern = rule["pattern"]
        between = not pattern.get("String", "")  # an expression may match nothing, everywhere
        return max(1, len(rule["content"].encode())) + between
    if rule.get("type") == "ByteLevel":
        return 2  # a letter for each byte, which is two bytes itself beyond ASCII
    charsmap = rule.get("precompiled_charsmap")
    if charsmap:
        blob = base64.b64decode(charsmap)
        spelt = blob[4 + int.from_bytes(blob[:4], "little") :]  # behind the trie, with NULs between
        return max(map(len, spelt.split(b"\0")))
    return 1


def _check_template(rule: dict[str, Any]) -> None:
    known = rule["special_tokens"]
    for which in ("single", "pair"):
        pieces = rule[which]
        named = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
        if len(pieces) > 16 or len(pieces) - len(named) > 2:
            raise ValueError(f"its template {which} has too many pieces")
        for name in named:
            if len(known[name]["ids"]) > 16 or len(known[name]["ids"]) != len(
                known[name]["tokens"]
            ):
                raise ValueError(f"its template's token {name[:40]!r} stands for too much")


@contextmanager
def _rust_unheard() -> Iterator[None]:
    """Keeps what Rust writes of a panic, past Python, off the terminal; all else is written on.

    Only where no other thread of Python runs: it might fork or start a program meanwhile, which
    would have its stderr here for ever.
    """
    if threading.active_count() > 1:
        yield
        return
    with ExitStack() as stack:
        try:
            heard = stack.enter_context(tempfile.TemporaryFile())
            own = os.dup(2)
        except OSError:  # a read-only machine, or started without a stderr
            yield
            return
        panicked = False
        try:
            os.dup2(heard.fileno(), 2)
            yield
        except BundleError:
            panicked = True
            raise
        finally:
            os.dup2(own, 2)
            heard.seek(0)
            if not panicked:
                with suppress(OSError):
                    os.write(own, heard.read())
            os.close(own)
