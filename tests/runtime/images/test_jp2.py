"""Boxes of JPEG 2000 that lead nowhere, or to themselves."""

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.images.vetting.jp2 import MOST_BOXES, MOST_DEEP, check_jp2


def whole_file():
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(file, "JPEG2000")
    return file.getvalue()


WHOLE = whole_file()
SIGNATURE = WHOLE[:32]


def box(kind, content, size=None):
    return struct.pack(">I4s", len(content) + 8 if size is None else size, kind) + content


def deep(levels):
    content = b""
    for _ in range(levels):
        content = box(b"asoc", content)
    return content


@pytest.fixture
def file(tmp_path):
    def written(content):
        path = tmp_path / "a.jp2"
        path.write_bytes(content)
        return str(path)

    return written


@pytest.mark.parametrize(
    "content",
    [
        WHOLE,
        WHOLE[:-100],  # GDAL reads or refuses what was cut short
        SIGNATURE + box(b"jp2c", b"to the end", 0),
        SIGNATURE + struct.pack(">I4sQ", 1, b"uuid", 24) + bytes(8) + WHOLE[32:],
        SIGNATURE + deep(MOST_DEEP) + WHOLE[32:],
    ],
)
def test_boxes_that_end_pass(file, content):
    check_jp2(file(content))


@pytest.mark.parametrize(
    "content",
    [
        SIGNATURE + box(b"jp2h", WHOLE[40:62] + box(b"colr", bytes(7), 0)),
        SIGNATURE + box(b"jp2h", box(b"ihdr", bytes(14), 7)),
        SIGNATURE + box(b"jp2h", WHOLE[40:62] + box(b"colr", bytes(2)) + bytes(5)) + WHOLE[77:],
        SIGNATURE + box(b"jp2h", box(b"ihdr", bytes(14), 2**31)),
        SIGNATURE + struct.pack(">I4sQ", 1, b"uuid", 15) + bytes(8),
        SIGNATURE + struct.pack(">I4sQ", 1, b"uuid", 2**64 - 24) + bytes(8),
        SIGNATURE + deep(MOST_DEEP + 1),
        SIGNATURE + box(b"free", b"") * MOST_BOXES,
        b"NITF02.10" + bytes(99) + SIGNATURE + box(b"jp2h", box(b"colr", bytes(7), 0)),
    ],
)
def test_boxes_without_end_are_refused_in_one_line(file, content):
    path = file(content)
    with pytest.raises(ImageError, match="boxes of its JPEG 2000 are broken"):
        check_jp2(path)


def test_tiles_that_a_file_cannot_hold_are_refused(file):
    at = WHOLE.index(b"\xff\x4f\xff\x51") + 8
    sizes = struct.pack(">II", 31600, 31400) + bytes(8) + struct.pack(">II", 200, 200)
    with pytest.raises(ImageError, match="24,806 tiles in"):
        check_jp2(file(WHOLE[:at] + sizes + WHOLE[at + 24 :]))


@settings(max_examples=150)
@given(st.integers(28, 96), st.integers(0, 2**32 - 1) | st.integers(0, 40))
def test_any_four_bytes_of_the_head_end_in_a_picture_or_a_refusal(tmp_path_factory, at, number):
    path = tmp_path_factory.getbasetemp() / "harmed.jp2"
    path.write_bytes(WHOLE[:at] + struct.pack(">I", number) + WHOLE[at + 4 :])
    with contextlib.suppress(ImageError):
        Scene.open(str(path)).close()
