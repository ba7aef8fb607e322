"""What an ONNX file says it needs and does, read without any ONNX library.

Protobuf's wire format, walked as far as a graph can name files, operators, inputs and outputs. A
bundle's graphs are straight lines of standard operators, so whatever else ONNX has (loops,
branches, functions, operators of strangers, training) is refused before a runtime sees it, as is
what cannot be walked. The one function that `psc.onnx` holds is known by its digest.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from geomag_edge.errors import BundleError

OPERATORS = {"geomag": {"PscCrop"}, "com.microsoft": {"MatMulNBits"}}
"""Domain -> the operators outside ONNX's own that a bundle's graphs may hold."""

FUNCTIONS = {"2e856956a36f7474f9e899a1823f8dbe9794f8876dad8ec3b1f890c991371191"}
"""sha256 of the nodes of each function body that an exporter of ours has written."""

MOST_FIELDS = 5_000_000
"""Parts of a file, of which a model of 100 layers has some 100,000."""

MOST_SIDES = 64
"""Dimensions of a tensor."""

KINDS = {"float": {1, 10}, "float32": {1}, "uint8": {2}, "int64": {7}}
"""Type of an input or output in its contract -> TensorProto.DataType; `float` may be half."""

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "input", 12: "output", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse",
                  23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "function": {11: "attribute"},
}  # fmt: skip
"""Message -> field number -> what lies there, of onnx.proto."""

_NUMBERS = {"model": {1, 5}}
"""Message -> fields that are whole numbers. TensorFlow keeps its nodes in the first, and OpenVINO
goes by what a file holds, not by its name."""

Shape = tuple[int | None, ...]
"""Sides of an input or output; None where they vary."""


@dataclass
class OnnxFile:
    """What a file says.

    Attributes:
        external: file that weights are taken from -> how many bytes it must have.
        inputs, outputs: name -> shape.
        kinds: of each input and output the type, a number of TensorProto.DataType.
    """

    external: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, Shape] = field(default_factory=dict)
    outputs: dict[str, Shape] = field(default_factory=dict)


def read_onnx(path: Path) -> OnnxFile:
    """Reads and checks a file.

    Raises:
        BundleError: it cannot be walked, or holds what no bundle's graph does.
    """
    found = OnnxFile()
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            steps = iter(range(MOST_FIELDS))
            for kind, at, end in _parts(text, "model", 0, len(text), steps):
                fields = [*_fields(text, at, end, steps)] if kind in _READ else []
                _READ.get(kind, _pass)(text, fields, found)
    except BundleError as e:
        raise BundleError(f"{path.name} {e}: this bundle is not opened") from e
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, IndexError) as e:  # an empty file too
        raise BundleError(f"{path.name} is not a readable ONNX file: export it again") from e
    return found


@dataclass(frozen=True)
class Wired:
    """A node of a graph: its name, its operator, and the names of the values it takes and gives."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_wiring(path: Path) -> tuple[list[Wired], set[str]]:
    """The nodes of a checked file in their order, and the names of its inputs.

    Raises:
        BundleError: it cannot be walked.
    """
    nodes, inputs = [], set()
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            steps = iter(range(MOST_FIELDS))
            for kind, at, end in _parts(text, "model", 0, len(text), steps):
                if kind == "node":
                    nodes.append(_wired(text, [*_fields(text, at, end, steps)]))
                elif kind == "input":
                    inputs.add(_word(text, [*_fields(text, at, end, steps)], 1))
    except (OSError, ValueError, IndexError) as e:
        raise BundleError(f"{path.name} is not a readable ONNX file: export it again") from e
    return nodes, inputs


def _wired(text: mmap.mmap, fields: list[Field]) -> Wired:
    def words(number: int) -> tuple[str, ...]:
        found = [(start, stop) for n, start, stop, _ in fields if n == number and start >= 0]
        return tuple(text[start:stop].decode() for start, stop in found)

    return Wired(_word(text, fields, 3), _word(text, fields, 4), words(1), words(2))


Field = tuple[int, int, int, int]
"""Number, start and end of what is delimited, value of what is a whole number."""


def _parts(
    text: mmap.mmap, kind: str, at: int, end: int, steps: Iterator[int]
) -> Iterator[tuple[str, int, int]]:
    """Every message inside a message: its kind, start and end."""
    for number, start, stop, _ in _fields(text, at, end, steps):
        if start >= 0 and number in _NUMBERS.get(kind, ()):
            raise ValueError("text where a number should be")
        inner = _INSIDE[kind].get(number)
        if inner is not None and start >= 0:
            yield inner, start, stop
            if inner in _INSIDE:
                yield from _parts(text, inner, start, stop, steps)


def _pass(text: mmap.mmap, fields: list[Field], found: OnnxFile) -> None:
    """Nothing is to be seen in a message of this kind."""


def _refuse(text: mmap.mmap, fields: list[Field], found: OnnxFile) -> None:
    raise BundleError("holds a loop, a branch or training, which no exporter of bundles writes")


def _node(text: mmap.mmap, fields: list[Field], found: OnnxFile) -> None:
    operator, domain = _word(text, fields, 4), _word(text, fields, 7)
    if domain not in ("", "ai.onnx") and operator not in OPERATORS.get(domain, ()):
        raise BundleError(f"holds {f'{domain}::{operator}'[:80]!r}, which no bundle's graph does")


def _function(text: mmap.mmap, fields: list[Field], found: OnnxFile) -> None:
    digest = hashlib.sha256()
    for number, start, stop, _ in fields:
        if number == 7:  # its nodes
            digest.update(text[start:stop])
    name, domain = _word(text, fields, 1), _word(text, fields, 10)
    if name not in OPERATORS.get(domain, ()) or digest.hexdigest() not in FUNCTIONS:
        raise BundleError(f"holds a function {name[:60]!r} that no exporter of bundles writes")


_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64,
         14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}  # fmt: skip
"""TensorProto.DataType -> bits of a value."""


def _tensor(text: mmap.mmap, fields: list[Field], found: OnnxFile) -> None:
    """Where a tensor's values lie, if elsewhere, and up to which byte."""
    said: dict[str, str] = {}
    kind = 0
    sides: list[int] = []
    for number, start, stop, value in fields:
        if number == 2 and start < 0:
            kind = value
        elif number == 1 and start < 0:
            sides.append(value)
        elif number == 1:  # packed
            while start < stop and len(sides) <= MOST_SIDES:
                value, start = _varint(text, start)
                sides.append(value)
        elif number == 13 and start >= 0:
            entry = [*_fields(text, start, stop, iter(range(100)))]
            said[_word(text, entry, 1)] = _word(text, entry, 2)
    if len(sides) > MOST_SIDES:
        raise BundleError("has a tensor of more sides than any")
    if "location" in said:
        offset, length = (int(said.get(key, "0")) for key in ("offset", "length"))
        if min(offset, length) < 0:
            raise ValueError("a place below 0")
        if "length" in said and length != -(-math.prod(sides) * _BITS.get(kind, 0) // 8):
            raise BundleError("says of a tensor's bytes what its shape does not")
        end = max(found.external.get(said["location"], 0), offset + length)
        found.external[said["location"]] = end


def _input(text: mmap.mmap, fields: list[Field], found: OnnxFile) -> None:
    name = _word(text, fields, 1)
    found.inputs[name], found.kinds[name] = _type(text, fields)


def _output(text: mmap.mmap, fields: list[Field], found: OnnxFile) -> None:
    name = _word(text, fields, 1)
    found.outputs[name], found.kinds[name] = _type(text, fields)


_READ = {
    "node": _node, "function": _function, "tensor": _tensor, "input": _input, "output": _output,
    "subgraph": _refuse, "training": _refuse,
}  # fmt: skip


def _type(text: mmap.mmap, fields: list[Field]) -> tuple[Shape, int]:
    """Shape and type of a ValueInfoProto, whose fields these are."""
    steps = iter(range(10_000))

    def inside(fields: list[Field], number: int) -> list[Field]:
        places = [(start, stop) for n, start, stop, _ in fields if n == number and start >= 0]
        return [f for start, stop in places for f in _fields(text, start, stop, steps)]

    kind = inside(fields, 2)
    if {number for number, *_ in kind} - {6} != {1}:  # beside its denotation a tensor alone
        raise BundleError("takes or gives something that is no tensor")
    tensor = inside(kind, 1)
    shape = inside(tensor, 2)
    sides: list[int | None] = []
    for number, start, stop, _ in shape:
        if number == 1:
            said = [(n, value) for n, _, _, value in _fields(text, start, stop, steps) if n < 3]
            sides.append(said[-1][1] if said and said[-1][0] == 1 else None)
    kinds = [value for number, start, _, value in tensor if number == 1 and start < 0]
    return tuple(sides), kinds[-1] if kinds else 0


def _word(text: mmap.mmap, fields: list[Field], number: int) -> str:
    """The text of a field, the last if there are several, as protobuf has it."""
    words = [(start, stop) for n, start, stop, _ in fields if n == number and start >= 0]
    return text[words[-1][0] : words[-1][1]].decode() if words else ""


def _fields(text: mmap.mmap, at: int, end: int, steps: Iterator[int]) -> Iterator[Field]:
    """The fields of a message; `steps` are those that may still be taken."""
    while at < end:
        if next(steps, None) is None:
            raise BundleError("has more parts than any model")
        tag, at = _varint(text, at)
        number, wire = tag >> 3, tag & 7
        if not number or tag >> 32:  # runtimes cut a tag to 32 bits, and would see another field
            raise ValueError(f"field {number}")
        if wire == 2:
            length, at = _varint(text, at)
            if at + length > end:
                raise ValueError("a field reaches past its message")
            yield number, at, at + length, 0
            at += length
        elif wire == 0:
            value, at = _varint(text, at)
            yield number, -1, -1, value
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:  # groups, which ONNX has none of
            raise ValueError(f"wire type {wire}")
    if at > end:
        raise ValueError("a field reaches past its message")


def _varint(text: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = text[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
