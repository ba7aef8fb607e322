"""Where an ONNX file says that its weights lie, read without any ONNX library.

Protobuf's wire format, as far as weights can be named in it: only messages in which the word
`location` stands are walked, so a graph is read in milliseconds. What cannot be walked is refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from geomag_edge.errors import BundleError

_TENSOR = {13: "entry"}  # TensorProto.external_data
_SPARSE = {1: "tensor", 2: "tensor"}  # SparseTensorProto.values, .indices
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": _GRAPH,
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": _SPARSE,
    "tensor": _TENSOR,
}
"""Message -> field number -> message, of onnx.proto: every way from a model to a tensor."""

DEEPEST = 64
"""Graphs within graphs; real ones have two or three levels."""


def external_locations(path: Path) -> set[str]:
    """The names of the files that an ONNX file takes weights from, as it says them.

    Raises:
        BundleError: it is no ONNX file that can be walked.
    """
    if path.stat().st_size == 0:
        return set()
    found: set[str] = set()
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
            memoryview(text) as view,
        ):
            if text.find(b"location") >= 0:
                _walk(bytes(view), "model", found, 0)
    except (ValueError, IndexError, UnicodeDecodeError) as e:
        raise BundleError(f"{path.name} is not a readable ONNX file: export it again") from e
    return found


def _walk(message: bytes, kind: str, found: set[str], depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    for number, value in _fields(message):
        inner = _INSIDE[kind].get(number)
        if inner is None or b"location" not in value:
            continue
        if inner != "entry":
            _walk(value, inner, found, depth + 1)
            continue
        entry = {n: v.decode() for n, v in _fields(value)}  # StringStringEntryProto: key, value
        if entry.get(1) == "location":
            found.add(entry.get(2, ""))


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Field numbers and contents of a message's length-delimited fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("a field reaches past its message")
            yield number, message[at : at + length]
            at += length
        elif wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:  # groups, which ONNX has none of
            raise ValueError(f"wire type {wire}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
