"""Files of a bundle as data: JSON and arrays, held to bounds before anything is made of them."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from geomag_edge.bounds import DEEPEST_JSON, JSON_BYTES
from geomag_edge.errors import BundleError

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content, if it has no more than `most` bytes.

    Raises:
        BundleError: not readable, or larger.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise BundleError(
                f"{path.name} has {size} bytes, and no such file has over {most}: it is not read"
            )
        return path.read_bytes()
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """A JSON file's content; see `parse_json`.

    Raises:
        BundleError: not readable, larger than `most` bytes, or not such JSON.
    """
    return parse_json(read_bytes(path, most), path.name)


def parse_json(content: bytes, name: str) -> Any:
    """JSON that can be kept, copied, printed and written again: text is UTF-8, numbers are finite
    and fit 64 bits, and records do not lie in each other without end.

    Raises:
        BundleError: anything else.
    """
    try:
        data = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{name} is not readable JSON: {str(e)[:120]}") from e
    _check_values(data, name)
    return data


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _check_values(data: Any, name: str) -> None:
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > DEEPEST_JSON:
            raise BundleError(f"{name} is nested more than {DEEPEST_JSON} deep: it is not read")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                if not value.isascii() and not _is_text(value):
                    raise BundleError(f"{name} holds text that is no Unicode: it is not read")
            elif isinstance(value, float) and not math.isfinite(value):
                raise BundleError(f"{name} holds a number that is not finite: it is not read")
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise BundleError(f"{name} holds a number of more than 64 bits: it is not read")
        level = below


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def read_arrays(path: Path) -> dict[str, NDArray]:
    """The arrays of an npz file as numpy writes it: uncompressed, of booleans or real numbers.

    What is read is never more than the file holds: nothing is unpacked, and an array's shape must
    agree with its bytes.

    Raises:
        BundleError: not readable, or another file.
    """
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type != ZIP_STORED or entry.flag_bits & 1:
                    raise ValueError(f"{entry.filename[:60]} is compressed or encrypted")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its entries overlap")
            return {e.filename.removesuffix(".npy"): _array(archive, e) for e in entries}
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, TypeError, LookupError, ArithmeticError, EOFError, BadZipFile, SyntaxError,
            NotImplementedError, RuntimeError, RecursionError, MemoryError,
            TokenError) as e:  # fmt: skip
        raise BundleError(
            f"{path.name} is damaged: {(str(e) or type(e).__name__)[:120]}; get the bundle again"
        ) from e


def _array(archive: ZipFile, entry: ZipInfo) -> NDArray:
    text = io.BytesIO(archive.read(entry))
    version = np.lib.format.read_magic(text)
    shape, _, dtype = _HEADERS[version](text)
    if dtype.kind not in "biuf" or any(side < 0 for side in shape):
        raise ValueError(f"{entry.filename[:60]} holds {str(dtype)[:40]}")
    if math.prod(shape) * dtype.itemsize != len(text.getbuffer()) - text.tell():
        raise ValueError(f"{entry.filename[:60]} is of another size than it says")
    text.seek(0)
    array: NDArray = np.lib.format.read_array(text, allow_pickle=False)
    return array
