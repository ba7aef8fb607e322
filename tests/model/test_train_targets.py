"""Targets in the frame of a view, and the symmetries of a scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from geomag_edge.model.train.samples.augment import transform
from geomag_edge.model.train.samples.pool import ALL_CLASSES, COLOUR_NAMES, PooledScene
from geomag_edge.model.train.samples.targets import (
    OUTSIDE,
    Noun,
    answer_text,
    centre_labels,
    finest_view,
    mask_targets,
    nouns_in,
    pixel_labels,
    prompt_text,
    sample_ids,
    shown_objects,
    subject_of,
)
from geomag_edge.prompts import named_boxes
from geomag_edge.scenes.questions import Question


@pytest.fixture
def scene() -> PooledScene:
    """64 px: a red ship (id 1) at rows 8..12, columns 16..24, a white tank (id 2) at 40..48."""
    ids = np.zeros((64, 64), np.uint16)
    ids[8:12, 16:24], ids[40:48, 40:48] = 1, 2
    image = np.repeat((ids * 100).astype(np.uint8)[..., None], 3, -1)
    ship, tank = ALL_CLASSES.index("ship"), ALL_CLASSES.index("storage tank")
    red, white = COLOUR_NAMES.index("red"), COLOUR_NAMES.index("white")
    boxes = np.array([[0, 0, 0, 0], [16, 8, 24, 12], [40, 40, 48, 48]], np.float32)
    questions = (
        Question("region", "find the leftmost ship", "the ship", ((16, 8, 24, 12),), (1,),
                 "find_box"),
        Question("pixel", "segment the white tank", "the white storage tank", (), (2,),
                 "refer_one"),
    )  # fmt: skip
    return PooledScene(
        0, image, ids, np.array([-1, ship, tank], np.int16), np.array([-1, red, white], np.int16),
        np.array([-1, 0, 1], np.int16), boxes, questions,
    )  # fmt: skip


WHOLE = np.array([0, 0, 64, 64], np.float32)


def test_nouns_are_read_with_their_attributes() -> None:
    assert nouns_in("segment the small red boats near the pier") == (
        Noun("ship", "red", "small"),
        Noun("pier"),
    )
    assert nouns_in("how many car parks") == (Noun("parking lot"),)


def test_subjects(scene: PooledScene) -> None:
    find, segment = scene.questions
    assert subject_of(find, scene).tolist() == [False, True, False]
    assert subject_of(segment, scene).tolist() == [False, False, True]
    place = Question("image", "name the scene", "harbour", (), (), "scene_class")
    assert subject_of(place, scene) is None
    absent = Question("pixel", "mask the blue ship", "there is no blue ship", (), (), "absent")
    assert not subject_of(absent, scene).any()


def test_masks_are_exact_at_native_resolution(scene: PooledScene) -> None:
    crop = np.array([16, 8, 32, 24], np.float32)
    cover = mask_targets(scene.ids, [np.array([False, True, False])], np.stack([WHOLE, crop]), 64)
    np.testing.assert_array_equal(cover[0, 0] > 0.5, scene.ids == 1)
    assert (cover[0, 1] > 0.5).mean() == pytest.approx(8 * 4 / 16**2, abs=0.02)


def test_samples_outside_the_image_are_marked(scene: PooledScene) -> None:
    samples = sample_ids(scene.ids, np.array([-16, -16, 48, 48], np.float32), 64)
    assert (samples[:16] == OUTSIDE).all()
    np.testing.assert_array_equal(samples[16:, 16:], scene.ids[:48, :48])
    assert (pixel_labels(samples, scene)[:, :16] == OUTSIDE).all()


def test_patches_show_what_lies_in_them(scene: PooledScene) -> None:
    shown = shown_objects(sample_ids(scene.ids, WHOLE, 128), 3, 8)
    assert np.flatnonzero(shown[:, 1]).tolist() == [8 + 2]
    assert np.flatnonzero(shown[:, 2]).tolist() == [5 * 8 + 5]
    counts, boxes, patch = centre_labels(scene, WHOLE, 8)
    assert patch.tolist() == [8 + 2, 5 * 8 + 5]
    assert counts.sum() == 2
    np.testing.assert_allclose(boxes[0] * 64, [16, 8, 24, 12])


def test_a_box_is_told_in_the_finest_view_that_holds_it(scene: PooledScene) -> None:
    question = scene.questions[0]
    views = np.array([[0, 0, 64, 64], [16, 0, 32, 16], [20, 0, 36, 16]], np.float32)
    assert finest_view(question.boxes[0], views) == 1
    text = answer_text(question, views)
    assert text == "the ship [SEG]<box>1:000,500,500,750</box>"
    assert named_boxes(text, views, 64, 64) == [([16, 8, 24, 12], 0)]


def test_answers_hold_one_seg_or_none(scene: PooledScene) -> None:
    views = WHOLE[None]
    assert answer_text(scene.questions[1], views) == "the white storage tank [SEG]"
    absent = Question("pixel", "mask the ship", "there is no ship", (), (), "absent")
    assert answer_text(absent, views) == "there is no ship"


def test_a_question_about_a_box_carries_it(scene: PooledScene) -> None:
    asked = Question("region", "what is in this box", "a ship", ((16, 8, 24, 12),), (1,),
                     "describe_box")  # fmt: skip
    assert prompt_text(asked, 64, 64) == "what is in this box <box>0:250,125,375,188</box>"


@pytest.mark.parametrize("moves", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_turned_scenes_keep_boxes_on_objects(scene: PooledScene, moves: tuple) -> None:
    turned = transform(scene, *map(bool, moves))
    for row in (1, 2):
        y, x = np.nonzero(turned.ids == row)
        np.testing.assert_array_equal(
            turned.boxes[row], [x.min(), y.min(), x.max() + 1, y.max() + 1]
        )
    np.testing.assert_array_equal(turned.image[..., 0], turned.ids * 100)


def test_words_turn_with_the_scene(scene: PooledScene) -> None:
    mirrored = transform(scene, True, False, False)
    assert mirrored.questions[0].prompt == "find the rightmost ship"
    assert mirrored.questions[0].boxes == ((40.0, 8.0, 48.0, 12.0),)
    transposed = transform(scene, False, False, True)
    assert [q.prompt for q in transposed.questions] == ["segment the white tank"]
    upside = replace(scene.questions[0], prompt="segment the tree below the lowest pier")
    flipped = transform(replace(scene, questions=(upside,)), False, True, False)
    assert flipped.questions[0].prompt == "segment the tree above the topmost pier"
