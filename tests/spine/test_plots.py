"""A picture of figures is there whole or not at all."""

from pathlib import Path

import pytest

from geomag_edge.errors import OutputError
from geomag_edge.plots import figure, write_png


def test_a_picture_that_fails_leaves_the_earlier_one(tmp_path):
    class Broken:
        def savefig(self, place, **how):
            if isinstance(place, Path):
                place.write_bytes(b"half")
            raise MemoryError

    picture = tmp_path / "a.png"
    picture.write_bytes(b"earlier")
    with pytest.raises(MemoryError):
        write_png(Broken(), picture)
    assert picture.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [picture]


def test_a_picture_is_a_png_whatever_its_name(tmp_path):
    pytest.importorskip("matplotlib")
    write_png(figure(1, 1), tmp_path / "a.bogus")
    assert (tmp_path / "a.bogus").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="cannot write"):
        write_png(figure(1, 1), tmp_path / "nowhere" / "a.png")
