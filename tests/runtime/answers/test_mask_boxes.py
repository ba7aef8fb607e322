"""Boxes from masks: the strongest connected part, to the pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.runtime.answers.mask_boxes import answer_boxes, box_around
from geomag_edge.runtime.answers.masks import Mask

WHOLE = np.array([[0, 0, 64, 64]], np.float32)


def mask_of(*rects, cells=64, boxes=WHOLE, shape=(64, 64)):
    """One view's logits: -4, and `value` in each (value, x0, y0, x1, y1) of cells."""
    logits = np.full((1, cells, cells), -4, np.float32)
    for value, x0, y0, x1, y1 in rects:
        logits[0, y0:y1, x0:x1] = value
    return Mask(shape, boxes, logits, [1.0], 1.0)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 13), st.integers(1, 13))
def test_a_single_part_is_boxed_to_the_pixel(x, y, width, height):
    assert box_around(mask_of((4, x, y, x + width, y + height))) == [x, y, x + width, y + height]


def test_stray_pixels_do_not_blow_the_box_up():
    assert box_around(mask_of((4, 10, 10, 30, 20), (4, 60, 60, 61, 61))) == [10, 10, 30, 20]


def test_a_certain_part_beats_a_larger_doubtful_one():
    assert box_around(mask_of((6, 4, 4, 12, 12), (1, 20, 20, 40, 40))) == [4, 4, 12, 12]


def test_parts_that_touch_at_a_corner_are_two():
    assert box_around(mask_of((4, 10, 10, 20, 20), (4, 20, 20, 24, 24))) == [10, 10, 20, 20]


def test_an_empty_mask_has_no_box():
    assert box_around(mask_of()) is None


def test_a_part_cut_by_a_crop_is_boxed_where_the_whole_view_shows_it():
    boxes = np.array([[0, 0, 64, 64], [0, 0, 16, 16]], np.float32)
    logits = np.full((2, 16, 16), -4, np.float32)
    logits[0, 2:4, 2:10] = 4  # px 8..40, 8..16
    logits[1, 8:16, 8:16] = 4  # its left end, magnified
    x0, y0, x1, y1 = box_around(Mask((64, 64), boxes, logits, [1.0, 1.0], 1.0))
    assert (x0, y0) == (8, 8)
    assert x1 >= 38
    assert y1 == pytest.approx(16, abs=1)


def test_a_small_part_of_a_huge_image_is_boxed_as_finely_as_its_crop_shows_it():
    boxes = np.array([[0, 0, 20_000, 20_000], [5000, 5000, 5064, 5064]], np.float32)
    logits = np.full((2, 64, 64), -4, np.float32)
    logits[1, 20:30, 10:40] = 4
    mask = Mask((20_000, 20_000), boxes, logits, [1.0, 1.0], 1.0)
    assert box_around(mask) == [5010, 5020, 5040, 5030]


def test_what_lies_in_the_padding_of_a_view_is_not_boxed():
    boxes = np.array([[0, -16, 64, 48]], np.float32)
    mask = mask_of((9, 0, 0, 64, 16), (4, 8, 30, 12, 34), boxes=boxes, shape=(32, 64))
    assert box_around(mask) == [8, 14, 12, 18]


def test_an_answers_box_is_its_masks_where_a_seg_stands_before_it():
    mask = mask_of((4, 10, 12, 30, 20))
    said = "the ship [SEG]<box>0:100,100,500,500</box>"
    assert answer_boxes(said, WHOLE, [mask], 64, 64) == [[10, 12, 30, 20]]


@pytest.mark.parametrize(
    ("text", "masks"),
    [
        ("the ship <box>0:250,250,500,500</box>", []),
        ("the ship [SEG] at <box>0:250,250,500,500</box>", [mask_of((4, 10, 12, 30, 20))]),
        ("the ship [SEG]<box>0:250,250,500,500</box>", [mask_of()]),
        ("[SEG] as words: [SEG]<box>0:250,250,500,500</box>", [mask_of((4, 10, 12, 30, 20))]),
    ],
)  # fmt: skip
def test_else_the_digits_say_it(text, masks):
    assert answer_boxes(text, WHOLE, masks, 64, 64) == [[16, 16, 32, 32]]


def test_a_mask_answers_even_where_the_digits_point_at_nothing():
    mask = mask_of((4, 10, 12, 30, 20))
    assert answer_boxes("[SEG]<box>7:0,0,1,1</box>", WHOLE, [mask], 64, 64) == [[10, 12, 30, 20]]
    assert answer_boxes("[SEG]<box>7:0,0,1,1</box>", WHOLE, [mask_of()], 64, 64) == []
