"""Metrics against brute force and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.calibration import Item
from geomag_edge.calibration.evaluation.metrics import (
    box_overlap,
    box_score,
    mask_iou,
    mask_overlap,
    same_words,
    size_name,
    words,
)


class Pixels:
    """Objects in an array of ids."""

    def __init__(self, ids):
        self.ids = np.asarray(ids)

    def area_px(self, ids):
        return int(np.isin(self.ids, ids).sum())

    def sides_px(self, ids):
        return [float(max(np.ptp(np.argwhere(self.ids == i), axis=0) + 1)) for i in ids]

    def window(self, ids, rect):
        row0, col0, row1, col1 = rect
        return np.isin(self.ids[row0:row1, col0:col1], ids)


def segment(ids, targets):
    return Item("q", "pixel", "refer", "segment it", target_ids=tuple(targets), objects=Pixels(ids))


pictures = st.integers(1, 12).flatmap(
    lambda side: st.lists(
        st.lists(st.integers(0, 3), min_size=side, max_size=side), min_size=side, max_size=side
    ).map(np.array)
)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("Yes.", "yes"),
        ("  the  red ship ", "the red ship"),
        ("the red ship [SEG]", "the red ship"),
        ("the ship <box>0:001,002,003,004</box>", "the ship"),
        ("[SEG]", ""),
        ("T-junction", "t junction"),
        ("between 11 and 100", "between 11 and 100!"),
        ("STRASSE", "straße"),
    ],
)
def test_words_are_compared_without_case_punctuation_spaces_and_markup(got, expected):
    assert same_words(got, expected)


@pytest.mark.parametrize(
    ("got", "expected"),
    [("12", "1 2"), ("no", "yes"), ("", "yes"), ("a ship", "ship"), ("ships", "ship")],
)
def test_other_words_stay_other_words(got, expected):
    assert not same_words(got, expected)


@given(st.text(max_size=30))
def test_normalising_words_twice_changes_nothing(text):
    assert words(words(text)) == words(text)


def test_a_mask_that_covers_half_of_its_target_and_as_much_beside_it(to_mask):
    ids = np.zeros((10, 10), int)
    ids[0:4, 0:4] = 7  # 16 px
    answer = np.zeros((10, 10), bool)
    answer[0:4, 2:6] = True  # 8 px inside, 8 px outside
    overlap = mask_overlap([to_mask(answer)], segment(ids, [7]))
    assert overlap == (8, 24)
    assert mask_iou(overlap, segment(ids, [7]), 1) == pytest.approx(1 / 3)


def test_many_masks_count_as_their_union_against_the_union_of_the_targets(to_mask):
    ids = np.zeros((20, 30), int)
    ids[2:6, 2:6], ids[10:14, 20:24], ids[15:18, 1:4] = 1, 2, 3
    masks = [to_mask(ids == 1), to_mask((ids == 1) | (ids == 2))]
    assert mask_overlap(masks, segment(ids, [1, 2])) == (32, 32)


@given(pictures, pictures, st.sets(st.integers(1, 3)))
def test_overlap_is_that_of_whole_arrays(to_mask, ids, painted, targets):
    side = max(len(ids), len(painted))
    ids = np.pad(ids, (0, side - len(ids)))
    painted = np.pad(painted, (0, side - len(painted)))
    masks = [to_mask(painted == 1), to_mask(painted == 2)]
    item = segment(ids, sorted(targets))
    answer, truth = np.isin(painted, [1, 2]), np.isin(ids, list(targets))
    assert mask_overlap(masks, item) == ((answer & truth).sum(), (answer | truth).sum())


@given(pictures, pictures)
def test_iou_is_symmetric_and_between_0_and_1(to_mask, one, two):
    side = max(len(one), len(two))
    one = np.pad(one, (0, side - len(one)), constant_values=1) == 1
    two = np.pad(two, (0, side - len(two)), constant_values=1) == 1
    one[0, 0] = two[0, 0] = True
    there, back = (
        mask_iou(mask_overlap([to_mask(answer)], segment(truth, [1])), segment(truth, [1]), 1)
        for answer, truth in ((one, two), (two, one))
    )
    assert there == back
    assert 0.0 < there <= 1.0
    assert (there == 1.0) == np.array_equal(one, two)


def test_an_absent_target_wants_no_mask_at_all(to_mask):
    absent = Item("q", "pixel", "absent", "segment the ship")
    nothing = to_mask(np.zeros((8, 8), bool))
    something = to_mask(np.ones((8, 8), bool))
    assert mask_iou(mask_overlap([], absent), absent, 0) == 1.0
    assert mask_iou(mask_overlap([something], absent), absent, 1) == 0.0
    assert mask_iou(mask_overlap([nothing], absent), absent, 1) == 0.0
    assert mask_overlap([something], absent) == (0, 64)


def test_no_answer_to_a_present_target_is_zero():
    item = segment(np.ones((4, 4), int), [1])
    overlap = mask_overlap([], item)
    assert overlap == (0, 16)
    assert mask_iou(overlap, item, 0) == 0.0


def test_boxes_are_found_from_an_iou_of_one_half_on():
    expected = [[0, 0, 10, 10]]
    assert box_score([[0, 0, 10, 5]], expected) == 1.0  # IoU exactly 0.5
    assert box_score([[0, 0, 10, 4.9]], expected) == 0.0
    assert box_score([[20, 20, 30, 30]], expected) == 0.0
    assert box_score([], expected) == 0.0


def test_an_extra_or_a_missing_box_is_not_free():
    one, two, far = [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]
    assert box_score([one, far], [one]) == 0.5
    assert box_score([one], [one, two]) == 0.5
    assert box_score([two, one], [one, two]) == 1.0
    assert box_score([one, one], [one, two]) == 0.5  # one answer cannot find two things


def test_boxes_are_worth_their_iou_by_degrees():
    expected = [[0, 0, 10, 10]]
    assert box_overlap([[0, 0, 10, 4.9]], expected) == pytest.approx(0.49)
    assert box_overlap([[0, 0, 10, 5], [50, 50, 60, 60]], expected) == pytest.approx(0.25)
    assert box_overlap([], expected) == 0.0


corners = st.tuples(
    *(st.integers(0, 30) for _ in range(2)), *(st.integers(1, 20) for _ in range(2))
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(st.lists(corners, min_size=1, max_size=5), st.lists(corners, min_size=1, max_size=5))
def test_box_scores_are_symmetric_and_between_0_and_1(one, two):
    assert box_score(one, one) == 1.0
    assert 0.0 <= box_score(one, two) <= 1.0
    assert box_score(one, two) == box_score(two, one)
    assert box_overlap(one, one) == pytest.approx(1)
    assert box_overlap(one, two) >= 0.5 * box_score(one, two)


@pytest.mark.parametrize(
    ("side", "name"),
    [(0.5, "<16 px"), (15.99, "<16 px"), (16, "16-64 px"), (64, "16-64 px"), (64.1, ">64 px")],
)
def test_sizes_have_their_edges_where_the_documentation_says(side, name):
    assert size_name(side) == name


def test_the_size_of_a_group_is_the_mean_of_its_longer_sides():
    ids = np.zeros((20, 20), int)
    ids[0:2, 0:6], ids[10:14, 10:13] = 1, 2
    assert segment(ids, [1, 2]).longer_side_px() == 5.0
    box = Item("q", "region", "find_box", "find it", boxes=((0, 0, 4, 9),))
    assert box.longer_side_px() == 9.0
    assert Item("q", "image", "count", "how many").longer_side_px() is None
