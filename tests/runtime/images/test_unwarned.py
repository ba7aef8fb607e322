"""A program's own warnings stay its own, whatever is read beside them."""

import threading
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.images.unwarned import unwarned


@pytest.fixture
def plain(tmp_path):
    """A raster without a place, which rasterio warns of."""
    path = tmp_path / "plain.tif"
    with unwarned(), rasterio.open(
        path, "w", driver="GTiff", width=8, height=8, count=1, dtype="uint8"
    ) as out:  # fmt: skip
        out.write(np.ones((1, 8, 8), np.uint8))
    return path


def test_threads_leave_the_filters_as_they_were(plain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        turn = threading.Barrier(2)

        def first():  # comes in first and leaves first
            with unwarned():
                turn.wait()
                turn.wait()

        other = threading.Thread(target=first)
        other.start()
        turn.wait()
        with unwarned():
            turn.wait()
            other.join()
            Scene.open(plain).close()
        assert warnings.filters == before
        with pytest.raises(NotGeoreferencedWarning):
            rasterio.open(plain)


def test_a_program_that_listens_meanwhile_goes_on_hearing(plain):
    shown = warnings.showwarning
    reading = unwarned()
    with warnings.catch_warnings(record=True):
        reading.__enter__()
    reading.__exit__(None, None, None)
    assert warnings.showwarning is shown
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        rasterio.open(plain).close()
    assert [w.category for w in heard] == [NotGeoreferencedWarning]


def test_a_list_that_a_program_puts_back_holds_nothing_of_ours():
    before = list(warnings.filters)
    reading = unwarned()
    reading.__enter__()
    with warnings.catch_warnings():
        reading.__exit__(None, None, None)
    assert warnings.filters == before
