"""Pixels without data: shares of patches, where PSC looks, the global view, what a view shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.views import PscSettings, global_box, select_windows, windows_of
from geomag_edge.views_on_data import SMALLER, data_view, fill_view, look_on_data, patch_shares

GRIDS = st.integers(2, 7)


def islands(rng, height, width):
    """Valid pixels in a few rectangles, which may be slivers or single pixels; at least one."""
    valid = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        r, c = rng.integers(height), rng.integers(width)
        valid[r : r + rng.integers(1, height + 1), c : c + rng.integers(1, width + 1)] = True
    return valid


def shares_by_hand(valid, box, grid):
    """Each patch's touched pixels, one by one."""
    x0, y0, x1, y1 = box.tolist()
    out = np.zeros((grid, grid))
    for i in range(grid):
        for j in range(grid):
            low = x0 + (x1 - x0) * j / grid, y0 + (y1 - y0) * i / grid
            high = x0 + (x1 - x0) * (j + 1) / grid, y0 + (y1 - y0) * (i + 1) / grid
            rows = range(int(np.floor(low[1])), int(np.ceil(high[1])))
            cols = range(int(np.floor(low[0])), int(np.ceil(high[0])))
            found = [
                0 <= r < valid.shape[0] and 0 <= c < valid.shape[1] and valid[r, c]
                for r in rows
                for c in cols
            ]
            out[i, j] = np.mean(found)
    return out


@given(GRIDS, st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_a_patchs_share_is_that_of_its_pixels(grid, height, width, seed):
    rng = np.random.default_rng(seed)
    valid = islands(rng, height, width)
    x0, y0 = rng.integers(-20, 30, 2)
    side = grid * rng.choice([0.25, 1, 3, 6.5])
    box = np.array([x0, y0, x0 + side, y0 + side], np.float32)
    got = patch_shares(valid, box, grid, valid.shape)
    np.testing.assert_allclose(got, shares_by_hand(valid, box, grid), atol=1e-6)


def test_a_share_is_the_same_from_a_part_of_the_image_and_from_coarser_elements():
    valid = islands(np.random.default_rng(3), 64, 96)
    box = np.array([20, 10, 52, 42], np.float32)
    whole = patch_shares(valid, box, 4, valid.shape)
    part = patch_shares(valid[8:44, 16:60], box, 4, valid.shape, corner=(8, 16))
    np.testing.assert_array_equal(part, whole)
    blocks = np.kron(np.random.default_rng(0).random((16, 24)) < 0.5, np.ones((4, 4), bool))
    box = np.array([16, 8, 64, 56], np.float32)
    coarse = patch_shares(blocks[::4, ::4], box, 4, blocks.shape, px=(4.0, 4.0))
    np.testing.assert_allclose(coarse, patch_shares(blocks, box, 4, blocks.shape), atol=1e-6)


@st.composite
def looks(draw):
    """A grid, settings, an image, a view of it and what PSC sees there, as the graph says it."""
    grid = draw(GRIDS)
    psc = PscSettings(
        draw(st.integers(1, 5)),
        tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))),
        draw(st.sampled_from([0.0, 0.3, 0.9])),
        levels=1,
    )
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    height, width = rng.integers(1, 60, 2).tolist()
    box = global_box(height, width)
    if draw(st.booleans()):
        side = rng.uniform(1, 60)
        x0, y0 = rng.uniform(-side / 2, [width, height])
        box = np.array([x0, y0, x0 + side, y0 + side], np.float32)
    cell = (box[2] - box[0]) / grid
    centres = box[:2] + (np.arange(grid)[:, None] + 0.5) * cell
    inside = (centres >= 0) & (centres < [width, height])
    relevance = rng.random((grid, grid)).astype(np.float32) * np.outer(inside[:, 1], inside[:, 0])
    return rng, psc, (height, width), box, (relevance, *select_windows(relevance, box, psc))


@settings(max_examples=200)
@given(looks())
def test_no_window_without_data_is_ever_chosen(case):
    rng, psc, size, box, look = case
    valid = islands(rng, *size)
    shares = patch_shares(valid, box, len(look[0]), size)
    relevance, boxes, scores = look_on_data(look, box, size, psc, shares)
    assert (relevance[shares == 0] == 0).all()
    for (x0, y0, x1, y1), score in zip(boxes.tolist(), scores, strict=True):
        rows = slice(max(0, int(np.floor(y0))), max(0, int(np.ceil(y1))))
        cols = slice(max(0, int(np.floor(x0))), max(0, int(np.ceil(x1))))
        assert score < 0 or valid[rows, cols].any()
    windows = windows_of(len(shares), psc.windows)
    if any((shares[a:c, b:d] > 0).any() for a, b, c, d in windows):
        assert scores[0] >= 0, "there was data to look at"


@settings(max_examples=200)
@given(looks())
def test_where_all_holds_data_the_graphs_choice_stands_unless_it_looks_beside_the_image(case):
    _, psc, size, box, look = case
    relevance, boxes, scores = look_on_data(look, box, size, psc, None)
    _, given_boxes, given_scores = look
    beside = (given_boxes[:, :2] >= size[::-1]).any(1) | (given_boxes[:, 2:] <= 0).any(1)
    if not (beside & (given_scores >= 0)).any():
        assert relevance is look[0]
        assert boxes is given_boxes
        assert scores is given_scores
    looked_at = boxes[scores >= 0]
    assert (looked_at[:, :2] < size[::-1]).all()
    assert (looked_at[:, 2:] > 0).all()


@given(GRIDS, st.integers(0, 10**6))
def test_shares_of_one_choose_what_no_shares_choose(grid, seed):
    rng = np.random.default_rng(seed)
    psc = PscSettings(4, (1, 2, 4), 0.3, levels=1)
    relevance, box = rng.random((grid, grid), np.float32), np.array([0, 0, 99, 99], np.float32)
    plain = select_windows(relevance, box, psc)
    shared = select_windows(relevance, box, psc, np.ones((grid, grid), np.float32))
    for a, b in zip(plain, shared, strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_the_global_view_is_the_smallest_square_around_the_data(height, width, data):
    def spans(extent):
        low = data.draw(st.integers(0, extent - 1))
        return low, data.draw(st.integers(low + 1, extent))

    (x0, x1), (y0, y1) = spans(width), spans(height)
    left, top, right, bottom = data_view((x0, y0, x1, y1), height, width).tolist()
    assert left <= x0
    assert top <= y0
    assert right >= x1
    assert bottom >= y1
    side = max(x1 - x0, y1 - y0)
    if side > SMALLER * max(height, width):
        assert [left, top, right, bottom] == global_box(height, width).tolist()
        return
    assert right - left == bottom - top == side
    for low, high, extent in ((left, right, width), (top, bottom, height)):
        assert side > extent or (low >= 0 and high <= extent)


def test_a_view_of_one_colour_keeps_it_where_there_is_no_data():
    rng = np.random.default_rng(1)
    shares = rng.random((37, 37), np.float32) * (rng.random((37, 37)) < 0.4)
    colour, blank = np.array([1.5, -0.5, 0.2]), np.array([0.006, -0.004, 0.0])
    view = np.stack([c * shares + b * (1 - shares) for c, b in zip(colour, blank, strict=True)])
    filled = fill_view(view.astype(np.float32), shares, blank)
    np.testing.assert_allclose(
        filled, np.broadcast_to(colour[:, None, None], view.shape), atol=0.03
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_only_pixels_without_data_are_filled_and_with_nothing_beyond_the_data(dtype):
    rng = np.random.default_rng(2)
    view, shares = rng.normal(size=(3, 24, 24)).astype(dtype), np.ones((24, 24), np.float32)
    shares[:9], shares[12:, 15:] = 0, 0
    view[:, shares == 0] = 0
    filled = fill_view(view, shares, np.zeros(3))
    assert filled.dtype == dtype
    np.testing.assert_array_equal(filled[:, shares == 1], view[:, shares == 1])
    for made, own in zip(filled[:, shares == 0], view[:, shares == 1], strict=True):
        assert own.min() - 1e-3 <= made.min()
        assert made.max() <= own.max() + 1e-3


def test_a_view_without_any_data_is_blank():
    view = np.full((3, 8, 8), 0.006, np.float32)
    filled = fill_view(view, np.zeros((8, 8), np.float32), np.full(3, 0.006))
    np.testing.assert_allclose(filled, 0, atol=1e-6)
