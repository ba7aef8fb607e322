"""Ways to spoil bytes, text and JSON, by a numpy Generator, so that a case can be made again."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from numpy.random import Generator

T = TypeVar("T")

SIZES = (0, 1, 2, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS = (
    "0", "-1", "1", "3", "64", "65536", "1000000", "1000000000", "2147483647", "2147483648",
    "4294967296", "9223372036854775808", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf", "0.5",
    "9" * 5000, "0x10", "1_000", "", "one", "\u0663", "1,5",
)  # fmt: skip
TEXTS = (
    "", " ", "a" * 300, "a" * 100_000, "\x1b[31mred", "\u202eleft", "\u2028", "\x00", "\x9b31m",
    "\udcff\udcfe", "..", "../..", "../../../../x", "/", "/etc/passwd", "~", "-", "--", "-x",
    "%s%n{0}", "[SEG]", "[SEG]" * 2000, "<image>", "<box>0:1,2,3,4</box>", "\U0001f6a2" * 40,
    "e\u0301" * 50, "\ufeff", "\r\n", "\n" * 50, "CON", "a/b", "a\\b", "file:///etc/passwd",
    "/vsimem/x", "/vsizip//tmp/x.zip", "/dev/zero", "/dev/stdin", "/proc/self/mem", "auto", "all",
)  # fmt: skip
RAW = ("[" * 100_000, "9" * 5000, '"\\ud800"', "1e999", "{", "'x'", "\x00", '{"a":1,"a":2}')
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 64, 10**6, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5,
    -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), [], {}, [[]], {"": ""}, [None],
    [0] * 9, ["a", 1], {"a": [1]}, [0] * 10_000,
)  # fmt: skip


def pick(rng: Generator, of: Sequence[T]) -> T:
    """One of these."""
    return of[int(rng.integers(len(of)))]


NO_FILE = ("pipe", "folder", "gone", "empty", "zeros")


def no_file(path: Path, how: str) -> None:
    """Puts something that is no proper file in a file's place, by one of `NO_FILE`."""
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "empty":
        path.touch()
    elif how == "zeros":
        with path.open("wb") as out:
            out.truncate(3 << 30)


def spoil_bytes(rng: Generator, data: bytes, head: int = 512) -> tuple[bytes, str]:
    """Spoilt bytes and how; the first `head` bytes, where sizes and offsets stand, more often."""
    found = bytearray(data or b"\0")
    near = len(found) if rng.random() < 0.4 else max(min(head, len(found)), 1)
    at = int(rng.integers(near))
    kind = pick(
        rng, ("flip", "flip", "fill", "cut", "double", "insert", "number", "number", "drop")
    )
    if kind == "flip":
        for _ in range(int(rng.integers(1, 17))):
            found[int(rng.integers(near))] ^= 1 << int(rng.integers(8))
    elif kind == "fill":
        n = int(rng.integers(1, 200))
        found[at : at + n] = pick(rng, (b"\0", b"\xff", rng.bytes(1))) * n
    elif kind == "cut":
        del found[int(rng.integers(len(found))) :]
    elif kind == "double":
        n = int(rng.integers(1, 2000))
        found[at:at] = found[at : at + n]
    elif kind == "insert":
        found[at:at] = rng.bytes(int(rng.integers(1, 100)))
    elif kind == "number":
        order, width = pick(rng, ("little", "big")), pick(rng, (2, 4, 8))
        found[at : at + width] = (pick(rng, SIZES) % 2 ** (8 * width)).to_bytes(width, order)
    else:
        del found[at : at + int(rng.integers(1, 300))]
    return bytes(found), f"{kind} at {at}"


def spoil_text(rng: Generator, text: str, names: Sequence[str]) -> tuple[bytes, str]:
    """Spoilt XML, headers, worlds: numbers and quoted or tagged words replaced, lines dropped.

    `names` are places that the text has no right to.
    """
    kind = pick(rng, ("number", "number", "name", "name", "line", "bytes", "word"))
    if kind == "number":
        spans = [m.span() for m in re.finditer(r"-?\d+(\.\d+)?", text)]
        new = pick(rng, NUMBERS)
    elif kind in ("name", "word"):
        spans = [m.span(1) for m in re.finditer(r"[\"'>=]([^\"'<>=]+)(?=[\"'<\n])", text)]
        new = pick(rng, names if kind == "name" else TEXTS)
    elif kind == "line":
        spans = [m.span() for m in re.finditer(r"[^\n]+", text)]
        new = pick(rng, ("", text, "<", "]]>", "&x;"))
    else:
        return spoil_bytes(rng, text.encode(), len(text))
    if not spans:
        return spoil_bytes(rng, text.encode(), len(text))
    start, end = pick(rng, spans)
    done = text[:start] + new + text[end:]
    return done.encode("utf-8", "surrogateescape"), f"{kind} at {start} is {new[:40]!r}"


def spoil_json(rng: Generator, data: Any, names: Sequence[str] = ()) -> tuple[bytes, str]:
    """A JSON document with one to three values that are not what they should be, and how."""
    done, notes = copy.deepcopy(data), []
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(done))
        if not places:
            break
        holder, key = pick(rng, places)
        notes.append(_spoil_place(rng, holder, key, places, names))
    text = json.dumps(done)
    if rng.random() < 0.08:
        raw = pick(rng, RAW)
        spans = [m.span() for m in re.finditer(r'"[^"]*"|-?\d+(\.\d+)?', text)]
        if spans:
            start, end = pick(rng, spans)
            text = text[:start] + raw + text[end:]
            notes.append(f"raw {raw[:20]!r}")
    return text.encode("utf-8", "surrogatepass"), "; ".join(notes)


def _spoil_place(
    rng: Generator, holder: Any, key: Any, places: list[Any], names: Sequence[str]
) -> str:
    kind = pick(rng, ("value", "value", "text", "near", "gone", "other", "more", "name"))
    old = holder[key]
    if kind == "gone":
        del holder[key]
    elif kind == "near" and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = pick(rng, (old + 1, old - 1, -old, old * 1000, old / 3, str(old), [old]))
    elif kind == "text":
        holder[key] = pick(rng, TEXTS)
    elif kind == "name" and names:
        holder[key] = pick(rng, names)
    elif kind == "other":
        other, at = pick(rng, places)
        try:
            holder[key] = copy.deepcopy(other[at])
        except (KeyError, IndexError):
            holder[key] = None
    elif kind == "more" and isinstance(holder, dict):
        holder[pick(rng, TEXTS)] = copy.deepcopy(old)
    elif kind == "more":
        holder.extend([copy.deepcopy(old)] * int(rng.integers(1, 50)))
    else:
        holder[key] = copy.deepcopy(pick(rng, VALUES))
    return f"{kind} of {str(key)[:40]!r}: {repr(old)[:30]} -> {_short(holder, key)}"


def _short(holder: Any, key: Any) -> str:
    try:
        return repr(holder[key])[:40]
    except (KeyError, IndexError):
        return "gone"


def _places(data: Any) -> Any:
    keys = (
        list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    )
    for key in keys:
        yield data, key
        yield from _places(data[key])
