"""Chains of a TIFF's directories."""

import struct

import pytest

from geomag_edge.errors import ImageError
from geomag_edge.runtime.images.vetting.tiff import MOST_DIRECTORIES, check_tiff


def chain(count, order="<", big=False, last=0):
    """A TIFF of so many empty directories; the last one leads to an offset."""
    head = b"II" if order == "<" else b"MM"
    first, size = (16, 16) if big else (8, 6)
    out = head + (
        struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
    )
    form = f"{order}QQ" if big else f"{order}HI"
    for i in range(count):
        out += struct.pack(form, 0, last if i + 1 == count else first + (i + 1) * size)
    return out


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_directories_are_counted(tmp_path, order, big):
    path = tmp_path / "a.tif"
    path.write_bytes(chain(MOST_DIRECTORIES, order, big))
    check_tiff(str(path))
    path.write_bytes(chain(MOST_DIRECTORIES + 1, order, big))
    with pytest.raises(ImageError, match="more than 2,000 directories"):
        check_tiff(str(path))


@pytest.mark.parametrize("last", [8, 14, 10**9])
def test_chains_that_lead_back_or_out_end(tmp_path, last):
    path = tmp_path / "a.tif"
    path.write_bytes(chain(5, last=last))
    check_tiff(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"II", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0+" + bytes(12)]
)
def test_pieces_pass_on_to_the_library(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    check_tiff(str(path))
