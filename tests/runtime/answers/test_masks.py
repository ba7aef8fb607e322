"""Masks: view logits pasted into the image's frame, finer views over coarser ones."""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.errors import BoxError, InputError
from geomag_edge.runtime.answers.masks import Mask, mask_iou


def pasted(shape, boxes, logits, quality):
    """The specification, one pixel at a time."""
    out = np.zeros(shape, bool)
    side = [max(b[2] - b[0], b[3] - b[1]) for b in boxes]
    for i in sorted(range(len(boxes)), key=lambda i: (-side[i], quality[i])):
        (x0, y0, x1, y1), cells = boxes[i], len(logits[i])
        for row in range(shape[0]):
            for col in range(shape[1]):
                x, y = col + 0.5, row + 0.5
                if x0 <= x < x1 and y0 <= y < y1:
                    u = np.clip((x - x0) / (x1 - x0) * cells - 0.5, 0, cells - 1)
                    v = np.clip((y - y0) / (y1 - y0) * cells - 0.5, 0, cells - 1)
                    r, c = min(int(v), max(cells - 2, 0)), min(int(u), max(cells - 2, 0))
                    s, d = min(r + 1, cells - 1), min(c + 1, cells - 1)
                    upper = logits[i][r, c] * (1 - (u - c)) + logits[i][r, d] * (u - c)
                    lower = logits[i][s, c] * (1 - (u - c)) + logits[i][s, d] * (u - c)
                    out[row, col] = upper * (1 - (v - r)) + lower * (v - r) > 0
    return out


def random_mask(seed, shape=(40, 50), views=4, cells=6):
    """A mask and its specification; boxes stick out of the image now and then."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 40, (views, 2))
    boxes = np.hstack([corner, corner + rng.uniform(2, 60, (views, 2))])
    logits = rng.normal(size=(views, cells, cells))
    quality = rng.random(views)
    arguments = (shape, boxes, logits.astype(np.float32), quality)
    return Mask(*arguments, score=0.5), pasted(shape, boxes, logits, quality)


def wide_mask(seed, shape):
    """A mask over several blocks, with three views inside one another."""
    rng = np.random.default_rng(seed)
    boxes = [[-90, 0, 900, 990], [100, 300, 700, 900], [480.5, 500, 560.5, 580]]
    return Mask(shape, boxes, rng.normal(size=(3, 6, 6)), np.ones(3), 0.5)


def square(value, cells=4):
    return np.full((cells, cells), value, np.float32)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("cells", [1, 2, 7])
def test_a_mask_is_what_its_specification_says(seed, cells):
    mask, expected = random_mask(seed, cells=cells)
    differing = np.asarray(mask) != expected
    assert differing.sum() <= 1  # a logit of 0 to the last bit may fall on either side


def test_a_finer_view_wins_inside_its_box_wherever_it_stands_in_the_list():
    boxes = [[2, 2, 6, 6], [0, 0, 10, 10]]
    for order in ([0, 1], [1, 0]):
        logits = np.stack([square(-1), square(1)])[order]
        mask = np.asarray(Mask((10, 10), np.array(boxes)[order], logits, np.ones(2), 1))
        assert not mask[2:6, 2:6].any()
        assert mask.sum() == 100 - 16


@pytest.mark.parametrize(("quality", "expected"), [((0.9, 0.1), True), ((0.1, 0.9), False)])
def test_among_equally_fine_views_the_better_one_wins(quality, expected):
    boxes = [[0, 0, 8, 8], [0, 0, 8, 8]]
    mask = Mask((8, 8), boxes, np.stack([square(1), square(-1)]), np.array(quality), 1)
    assert np.asarray(mask).all() == expected
    assert np.asarray(mask).any() == expected


def test_a_box_that_sticks_out_is_cut_at_the_image():
    logits = square(-1, 8)
    logits[:4, :4] = 1
    mask = Mask((10, 20), [[-8, -8, 8, 8]], logits[None], np.ones(1), 1)
    np.testing.assert_array_equal(np.asarray(mask), np.zeros((10, 20), bool))
    logits[4:6, 4:6] = 1
    mask = Mask((10, 20), [[-8, -8, 8, 8]], logits[None], np.ones(1), 1)
    assert mask.bbox == (0, 0, 4, 4)


def test_a_box_beside_the_image_leaves_nothing():
    mask = Mask((10, 20), [[30, 0, 40, 10]], square(1)[None], np.ones(1), 1)
    assert mask.area_px == 0
    assert mask.bbox is None


def test_edges_lie_halfway_between_cells_of_opposite_sign():
    logits = np.array([[[1, -1], [1, -1]]], np.float32)
    mask = np.asarray(Mask((4, 100), [[0, 0, 100, 4]], logits, np.ones(1), 1))
    assert mask[:, :50].all()
    assert not mask[:, 50:].any()


@settings(max_examples=80)
@given(st.integers(0, 5), st.data())
def test_any_window_equals_that_part_of_the_whole(seed, data):
    mask = wide_mask(seed, (700, 900))
    row0, row1 = sorted(data.draw(st.lists(st.integers(0, 700), min_size=2, max_size=2)))
    col0, col1 = sorted(data.draw(st.lists(st.integers(0, 900), min_size=2, max_size=2)))
    whole = np.asarray(mask)
    np.testing.assert_array_equal(mask.window(row0, col0, row1, col1), whole[row0:row1, col0:col1])


def test_a_window_outside_the_mask_is_refused():
    mask, _ = random_mask(0)
    with pytest.raises(
        InputError, match=r"rows 0\.\.41, columns 0\.\.50 is not inside a mask of 40 x"
    ):
        mask.window(0, 0, 41, 50)


@pytest.mark.parametrize("seed", range(6))
def test_area_and_bounding_box_are_those_of_the_pixels(seed):
    mask = wide_mask(seed, (1100, 800))
    whole = np.asarray(mask)
    rows, cols = np.nonzero(whole)
    assert mask.area_px == whole.sum()
    assert mask.bbox == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)


def test_an_empty_mask_has_no_box():
    mask = Mask((30, 30), [[0, 0, 30, 30]], square(-1)[None], np.ones(1), 1)
    assert mask.area_px == 0
    assert mask.bbox is None
    assert not np.asarray(mask).any()


def test_a_mask_turns_into_other_types_as_numpy_expects():
    mask, _ = random_mask(1)
    assert np.asarray(mask).dtype == bool
    assert np.asarray(mask, dtype=np.uint8).sum() == mask.area_px
    assert mask.shape == (40, 50)


def test_logits_that_overflowed_or_are_nan_do_not_spread():
    logits = np.array([[[np.inf, -np.inf], [np.inf, np.nan]]], np.float16)
    mask = np.asarray(Mask((10, 10), [[0, 0, 10, 10]], logits, np.ones(1), 1))
    assert mask[:, :5].all()
    assert not mask[:, 5:].any()


@pytest.mark.parametrize(
    ("boxes", "logits", "quality", "error"),
    [
        ([[0, 0, 5, 5]], np.zeros((2, 4, 4)), [1], InputError),
        ([[0, 0, 5, 5]], np.zeros((1, 4, 5)), [1], InputError),
        ([[0, 0, 5]], np.zeros((1, 4, 4)), [1], InputError),
        ([[0, 0, 5, 5]], np.zeros((1, 4, 4)), [1, 1], InputError),
        ([[5, 0, 5, 5]], np.zeros((1, 4, 4)), [1], BoxError),
        ([[0, 0, np.nan, 5]], np.zeros((1, 4, 4)), [1], BoxError),
    ],
)
def test_views_that_do_not_fit_together_are_refused(boxes, logits, quality, error):
    with pytest.raises(error):
        Mask((10, 10), boxes, logits, quality, 1)


def test_iou_of_masks_and_arrays():
    left = np.zeros((10, 10), bool)
    left[:, :6] = True
    right = np.zeros((10, 10), bool)
    right[:, 4:] = True
    assert mask_iou(left, right) == pytest.approx(0.2)
    assert mask_iou(left, left) == 1
    assert mask_iou(left, ~left) == 0
    assert mask_iou(left & False, right & False) == 1
    mask, expected = random_mask(3)
    assert mask_iou(mask, np.asarray(mask)) == 1
    assert mask_iou(mask, expected) > 0.99
    with pytest.raises(InputError, match="cannot be compared"):
        mask_iou(left, mask)


def huge_mask():
    """A 20,000 px scene with a ship of about 20 px that only the finest of three views shows."""
    y, x = np.mgrid[:64, :64]
    ship = (6 - np.hypot(x - 40, y - 20)).astype(np.float32)
    boxes = [
        [0, 0, 20_000, 20_000],
        [9_000, 9_000, 12_000, 12_000],
        [10_000, 10_000, 10_100, 10_100],
    ]
    logits = np.stack([square(-1, 64), square(-1, 64), ship])
    return Mask((20_000, 20_000), boxes, logits, np.ones(3), 0.9)


def test_a_small_object_in_a_huge_scene_is_measured_without_painting_the_scene():
    mask = huge_mask()
    tracemalloc.start()
    started = time.perf_counter()
    area, box = mask.area_px, mask.bbox
    elapsed = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert area == pytest.approx(np.pi * (6 * 100 / 64) ** 2, rel=0.03)
    assert box == (10_054, 10_023, 10_073, 10_041)
    assert peak < 20e6
    assert elapsed < 1


def test_a_mask_of_five_views_takes_milliseconds():
    rng = np.random.default_rng(0)
    boxes = np.array(
        [[0, 0, 1, 1], [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.8, 0.8], [0.2, 0.6, 0.5, 0.9],
         [0.6, 0.1, 0.8, 0.3]]
    ) * 1000  # fmt: skip
    mask = Mask((1000, 1000), boxes, rng.normal(size=(5, 64, 64)), np.ones(5), 1)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        np.asarray(mask)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1  # about 0.008 s on an idle core


def test_masks_need_numpy_alone():
    code = (
        "import sys, geomag_edge.runtime.answers.masks\n"
        "print([m for m in ('torch', 'rasterio', 'PIL', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
