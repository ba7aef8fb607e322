"""JSON and arrays in files of strangers, held to bounds before anything is made of them.

Every such file comes in here: manifests and what lies beside them, checkpoints, sets of questions,
reports. It must be a regular file: a pipe or a device would wait for ever, or never end.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from geomag_edge.disk.bounds import (
    DEEPEST_JSON,
    JSON_BYTES,
    JSON_VALUES,
    LINE_BYTES,
    LINES,
    LINES_BYTES,
)
from geomag_edge.errors import BundleError, GeoMagError

Error = type[GeoMagError]


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading, and waits for nothing.

    Raises:
        OSError: there is none, it may not be read, or it is a folder, a pipe or a device.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except ValueError as e:  # a null byte
        raise FileNotFoundError(2, "no file can have this name") from e
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(22, "it is a folder, a pipe or a device, not a file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int, error: Error = BundleError) -> bytes:
    """A file's content, if it has no more than `most` bytes.

    Raises:
        GeoMagError: `error`; not readable, no regular file, or larger.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as e:
        raise error(f"cannot read {path}: {e.strerror or e}") from e
    if len(content) > most:
        raise error(
            f"{path.name} has {size} bytes, and no such file has over {most}: it is not read"
        )
    return content


def read_json(
    path: Path, most: int = JSON_BYTES, error: Error = BundleError, bits: int = 64
) -> Any:
    """A JSON file's content; see `parse_json`.

    Raises:
        GeoMagError: `error`; not readable, larger than `most` bytes, or not such JSON.
    """
    return parse_json(read_bytes(path, most, error), str(path), error, bits)


def parse_json(content: bytes, name: str, error: Error = BundleError, bits: int = 64) -> Any:
    """JSON that can be kept, copied, printed and written again: text is UTF-8, numbers are finite
    and fit so many bits, every name stands once, and records do not lie in each other without end.

    Raises:
        GeoMagError: `error`; anything else.
    """

    def whole(digits: str) -> int:
        if len(digits) > bits or not -(2 ** (bits - 1)) <= (value := int(digits)) < 2 ** (bits - 1):
            raise ValueError(f"a number of more than {bits} bits")
        return value

    if sum(map(content.count, (b",", b"[", b"{"))) > JSON_VALUES:
        raise error(f"{name} holds more than {JSON_VALUES} values: it is not read")
    try:
        data = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_record,
            parse_int=whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except UnicodeDecodeError as e:
        raise error(f"{name} is not readable JSON: not UTF-8 at byte {e.start + 1}") from e
    except RecursionError as e:
        raise error(f"{name} is nested more than {DEEPEST_JSON} deep: it is not read") from e
    except ValueError as e:
        raise error(f"{name} is not readable JSON: {str(e)[:120]}") from e
    _check_values(data, name, error)
    return data


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {twice[:40]!a} stands twice in a record")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _check_values(data: Any, name: str, error: Error) -> None:
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > DEEPEST_JSON:
            raise error(f"{name} is nested more than {DEEPEST_JSON} deep: it is not read")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii() and not _is_text(value):
                raise error(f"{name} holds text that is no Unicode: it is not read")
        level = below


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def json_lines(path: Path, error: Error) -> Iterator[tuple[int, Any]]:
    """The values of a file with one JSON text a line, each with its line's number, from 1.

    Raises:
        GeoMagError: `error`; it cannot be read, is absurdly large, or a line is no such JSON.
    """
    try:
        file = open_regular(path)
    except OSError as e:
        raise error(f"cannot read {path}: {e.strerror or e}") from e
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > LINES_BYTES:
            raise error(f"{path.name} has {size} bytes, at most {LINES_BYTES} are read: split it")
        for number in itertools.count(1):
            line = file.readline(LINE_BYTES + 1)
            if not line:
                return
            if number > LINES:
                raise error(f"{path} has more than {LINES} lines: split it")
            if len(line) > LINE_BYTES:
                raise error(f"{path} line {number} has more than {LINE_BYTES} bytes: shorten it")
            text = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if text:
                yield number, parse_json(text, f"{path} line {number}", error)


def read_arrays(path: Path, error: Error = BundleError) -> dict[str, NDArray]:
    """The arrays of an npz file as numpy writes it: uncompressed, of booleans or real numbers.

    What is read is never more than the file holds: nothing is unpacked, and an array's shape must
    agree with its bytes.

    Raises:
        GeoMagError: `error`; not readable, or another file.
    """
    try:
        with open_regular(path) as file, ZipFile(file) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type != ZIP_STORED or entry.flag_bits & 1:
                    raise ValueError(f"{entry.filename[:60]!a} is compressed or encrypted")
            if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
                raise ValueError("its entries overlap")
            return {e.filename.removesuffix(".npy"): _array(archive, e) for e in entries}
    except OSError as e:
        raise error(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, LookupError, ArithmeticError, EOFError, BadZipFile, NotImplementedError,
            MemoryError) as e:  # fmt: skip
        raise error(f"{path} is damaged: {(str(e) or type(e).__name__)[:120]}; get it again") from e


_NPY = re.compile(
    rb"\{'descr': '([|<>](?:b1|[iu][1248]|f[248]))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)
"""What numpy writes before an array's values. It would take any Python literal there, and warn."""


def _array(archive: ZipFile, entry: ZipInfo) -> NDArray:
    content = archive.read(entry)
    start = 10 + int.from_bytes(content[8:10], "little")
    header = _NPY.fullmatch(content[10:start])
    if content[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise ValueError(f"{entry.filename[:60]!a} is no array of numbers")
    dtype = np.dtype(header[1].decode())
    shape = [int(side) for side in header[3].split(b",") if side.strip()]
    if start + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{entry.filename[:60]!a} is of another size than it says")
    flat = np.frombuffer(content, dtype, offset=start).copy()
    return flat.reshape(shape, order="F" if header[2] == b"True" else "C")
