"""The geometry of views, against slow and obvious versions of itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.views import (
    PscSettings,
    best_distinct,
    choose_crops,
    global_box,
    iou_with,
    pooling_matrix,
    select_windows,
    token_positions,
    useful_levels,
    view_to_image,
    windows_of,
)

sides = st.integers(1, 60_000)


def iou(a, b):
    """Intersection over union of two boxes, one plain step after another."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    common = w * h if w > 0 and h > 0 else 0.0
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@given(sides, sides)
def test_the_global_box_is_the_smallest_centred_square_around_the_image(height, width):
    x0, y0, x1, y1 = global_box(height, width).tolist()
    assert x1 - x0 == y1 - y0 == max(height, width)
    assert (x0 + x1, y0 + y1) == (width, height)


@given(st.integers(1, 24), st.integers(1, 24))
def test_pooling_rows_sum_to_one_and_every_patch_counts_alike(grid, out):
    matrix = pooling_matrix(grid, min(out, grid))
    assert matrix.shape == (min(out, grid) ** 2, grid**2)
    assert matrix.dtype == np.float32
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(matrix.sum(0), min(out, grid) ** 2 / grid**2, rtol=1e-5)


@given(st.integers(1, 24))
def test_pooling_to_the_same_grid_changes_nothing(grid):
    np.testing.assert_array_equal(pooling_matrix(grid, grid), np.eye(grid**2))


@pytest.mark.parametrize(("grid", "out"), [(4, 2), (6, 3), (6, 2), (8, 1)])
def test_pooling_by_a_divisor_is_the_mean_of_blocks(grid, out):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(grid, grid))
    block = grid // out
    means = values.reshape(out, block, out, block).mean((1, 3))
    np.testing.assert_allclose(pooling_matrix(grid, out) @ values.ravel(), means.ravel(), atol=1e-6)


@given(
    st.integers(1, 5), st.integers(1, 4000), st.integers(1, 4000),
    st.floats(-500, 3000), st.floats(-500, 3000), st.floats(1, 3000),
)  # fmt: skip
def test_each_position_column_says_what_it_claims(out, height, width, x0, y0, side):
    box = np.array([[x0, y0, x0 + side, y0 + side]], np.float32)
    table = token_positions(box, out, height, width)
    assert table.shape == (1, out * out, 5)
    x0, y0, x1, y1 = box[0].astype(float)
    longer = max(height, width)
    for row in range(out):
        for column in range(out):
            u, v = (column + 0.5) / out, (row + 0.5) / out
            expected = [
                (x0 + u * (x1 - x0) - width / 2) / longer,
                (y0 + v * (y1 - y0) - height / 2) / longer,
                math.log2((x1 - x0) / longer),
                u,
                v,
            ]
            np.testing.assert_allclose(table[0, row * out + column], expected, rtol=1e-5, atol=1e-5)


def test_the_global_views_tokens_lie_symmetrically_around_the_centre():
    table = token_positions(global_box(300, 500)[None], 4, 300, 500)[0]
    np.testing.assert_allclose(table[:, :2].sum(0), 0, atol=1e-6)
    np.testing.assert_array_equal(table[:, 2], 0)


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_windows_are_all_squares_of_the_sizes_and_none_twice(grid, sizes):
    found = [tuple(w) for w in windows_of(grid, sizes).tolist()]
    expected = {
        (r, c, r + s, c + s)
        for s in {min(s, grid) for s in sizes}
        for r in range(grid - s + 1)
        for c in range(grid - s + 1)
    }
    assert len(found) == len(set(found))
    assert set(found) == expected


@st.composite
def selections(draw):
    """A relevance map of quarters (so that float32 sums are exact), a view box and settings."""
    grid = draw(st.integers(2, 7))
    cells = st.integers(0, 4).map(lambda q: q / 4)
    relevance = draw(st.lists(cells, min_size=grid * grid, max_size=grid * grid))
    x0, y0 = draw(st.integers(-64, 64)), draw(st.integers(-64, 64))
    side = grid * draw(st.sampled_from([1, 2, 16, 48]))
    psc = PscSettings(
        max_crops=draw(st.integers(1, 5)),
        windows=tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))),
        overlap=draw(st.sampled_from([0.0, 0.2, 0.5, 0.9])),
        levels=1,
    )
    box = np.array([x0, y0, x0 + side, y0 + side], np.float32)
    return np.array(relevance, np.float32).reshape(grid, grid), box, psc


def windows_by_brute_force(relevance, view_box, psc):
    """Every window summed on its own, then the greedy choice, in plain Python."""
    grid = len(relevance)
    cell = (view_box[2] - view_box[0]) / grid
    windows = [tuple(w) for w in windows_of(grid, psc.windows).tolist()]
    scores = [
        float(np.float32(relevance[r0:r1, c0:c1].sum()) / np.float32(r1 - r0))
        for r0, c0, r1, c1 in windows
    ]
    boxes, kept = [], []
    for _ in range(psc.max_crops):
        best = scores.index(max(scores))
        y0, x0, y1, x1 = windows[best]
        corner = [x0 * cell, y0 * cell, x1 * cell, y1 * cell]
        boxes.append([o + c for o, c in zip(view_box[[0, 1, 0, 1]], corner, strict=True)])
        kept.append(scores[best])
        scores = [
            -1.0 if iou(windows[best], w) > psc.overlap else s
            for w, s in zip(windows, scores, strict=True)
        ]
    return np.array(boxes), np.array(kept)


@settings(max_examples=150)
@given(selections())
def test_window_selection_equals_brute_force(case):
    boxes, scores = select_windows(*case)
    expected_boxes, expected_scores = windows_by_brute_force(*case)
    np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))
    np.testing.assert_array_equal(boxes, expected_boxes.astype(np.float32))


def test_windows_that_only_fill_the_count_are_marked():
    psc = PscSettings(max_crops=3, windows=(2,), overlap=0.0, levels=1)
    _, scores = select_windows(np.ones((2, 2), np.float32), np.array([0, 0, 2, 2], np.float32), psc)
    assert scores.tolist() == [2, -1, -1]


boxes_lists = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20), st.integers(1, 20)),
    min_size=1,
    max_size=8,
).map(lambda rows: np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32))


@given(boxes_lists)
def test_iou_is_symmetric_one_with_itself_and_as_by_hand(boxes):
    table = np.stack([iou_with(b, boxes) for b in boxes])
    np.testing.assert_allclose(table, table.T)
    np.testing.assert_array_equal(np.diag(table), 1)
    by_hand = [[iou(a, b) for b in boxes.tolist()] for a in boxes.tolist()]
    np.testing.assert_allclose(table, by_hand, rtol=1e-6)


@given(
    boxes_lists,
    st.integers(0, 5),
    st.floats(0, 1),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_best_distinct_boxes_are_few_ordered_and_apart(boxes, count, overlap, some_taken, rng):
    scores = np.array([rng.choice([-1.0, 0.0, 0.5, 1.0]) for _ in boxes], np.float32)
    taken = boxes[:1] + 3 if some_taken else None
    kept, kept_scores = best_distinct(boxes, scores, count, overlap, taken)
    assert len(kept) == len(kept_scores) <= count
    assert (kept_scores >= 0).all()
    assert (np.diff(kept_scores) <= 0).all()
    for i, box in enumerate(kept):
        others = [*kept[:i], *([] if taken is None else taken)]
        assert all(iou(box.tolist(), o.tolist()) <= overlap + 1e-6 for o in others)


def quarters_of(box):
    """Four boxes inside a box, as one look into a view would propose them."""
    x0, y0, x1, y1 = box.tolist()
    xm, ym = (x0 + x1) / 2, (y0 + y1) / 2
    parts = [(x0, y0, xm, ym), (xm, y0, x1, ym), (x0, ym, xm, y1), (xm, ym, x1, y1)]
    return np.array(parts, np.float32)


@given(st.integers(0, 9), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**31))
def test_the_pyramid_never_chooses_more_crops_than_the_budget_allows(count, levels, overlap, seed):
    rng = np.random.default_rng(seed)
    encoded = []

    def propose(box):
        return quarters_of(box), rng.choice([-1.0, 0.2, 0.7], 4).astype(np.float32)

    def look_again(boxes):
        encoded.extend(boxes.tolist())
        return [propose(box) for box in boxes]

    whole = np.array([0, 0, 1024, 1024], np.float32)
    boxes, scores = choose_crops(propose(whole), count, levels, overlap, look_again)
    assert len(boxes) == len(scores) <= count
    assert (scores >= 0).all()
    chosen = boxes.tolist()
    assert all(box in chosen for box in encoded)  # a look costs no view beyond the chosen ones
    assert len({tuple(b) for b in chosen}) == len(chosen)


def test_each_level_of_the_pyramid_lies_inside_a_crop_of_the_level_above():
    def look_again(boxes):
        return [(quarters_of(box), np.linspace(1, 0.5, 4, dtype=np.float32)) for box in boxes]

    whole = np.array([0, 0, 1024, 1024], np.float32)
    boxes, _ = choose_crops(look_again(whole[None])[0], 6, 3, 0.3, look_again)
    sides = (boxes[:, 2] - boxes[:, 0]).tolist()
    assert sides == [512, 512, 256, 256, 128, 128]
    for level in (2, 4):
        for box in boxes[level : level + 2]:
            above = boxes[level - 2 : level]
            assert ((above[:, :2] <= box[:2]) & (box[2:] <= above[:, 2:])).all(1).any()


def test_a_pyramid_with_one_level_never_looks_again():
    def look_again(boxes):
        pytest.fail("one level needs no second look")

    candidates = (quarters_of(np.array([0, 0, 64, 64], np.float32)), np.ones(4, np.float32))
    boxes, _ = choose_crops(candidates, 3, 1, 0.3, look_again)
    assert len(boxes) == 3


@pytest.mark.parametrize(
    ("height", "width", "most", "expected"),
    [
        (64, 64, 3, 1),  # smaller than a view
        (256, 100, 3, 1),  # a quarter of the side is a view already
        (257, 100, 3, 2),
        (1024, 1024, 3, 2),
        (1025, 1, 3, 3),
        (20_000, 20_000, 3, 3),  # `levels` caps it
        (20_000, 20_000, 9, 5),
        (20_000, 20_000, 1, 1),
    ],
)
def test_psc_looks_again_until_its_smallest_window_shows_native_pixels(
    height, width, most, expected
):
    psc = PscSettings(max_crops=4, windows=(2, 4), overlap=0.3, levels=most)
    assert useful_levels(height, width, view_px=64, grid=8, psc=psc) == expected


def test_a_box_in_a_view_is_placed_in_the_image():
    assert view_to_image((100, 200, 300, 400), (0, 0.5, 0.25, 1)) == (100, 300, 150, 400)
