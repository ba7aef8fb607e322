"""Calibration sets: what is chosen, that it is never what a gate measures on, and bad sets."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geomag_edge.budgets import LEVELS
from geomag_edge.calibration.sets import calibrating as sets
from geomag_edge.calibration.sets import rendered
from geomag_edge.calibration.sets.calibrating import (
    MIN_QUESTIONS,
    Question,
    choose,
    open_calibration_set,
)
from geomag_edge.errors import DatasetError, GeoMagError, ImageError
from geomag_edge.runtime.images.scene import Scene

SCENES = "scenes:2:2:96"


@pytest.fixture
def make_lines(tmp_path):
    """(lines or raw text) -> the folder of a set with the images a.png and b.png."""

    def make(lines, name="set"):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        rng = np.random.default_rng(1)
        for file in ("a.png", "b.png"):
            Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(root / file)
        text = "".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
        (root / "questions.jsonl").write_text(text)
        return root

    return make


def lines(count=12, level="image", **more):
    return [
        {"image": "ab"[i % 2] + ".png", "prompt": f"what is it {i}", "level": level, **more}
        for i in range(count)
    ]


@given(
    st.lists(st.sampled_from([*LEVELS, None]), min_size=1, max_size=60),
    st.integers(1, 70),
    st.integers(0, 5),
)
def test_levels_get_equal_shares_as_far_as_they_have_questions(levels, count, seed):
    questions = [Question("a", f"prompt {i}", level) for i, level in enumerate(levels)]
    chosen = choose(questions, count, seed)
    assert chosen == choose(questions, count, seed)
    assert len(chosen) == min(count, len(questions))
    assert chosen == [q for q in questions if q in chosen]  # the set's order, none twice
    have = {level: levels.count(level) for level in set(levels)}
    got = {level: [q.level for q in chosen].count(level) for level in have}
    for level in have:
        if got[level] < have[level]:  # not used up: no other level may have two more
            assert all(got[level] >= got[other] - 1 for other in have)


def test_another_seed_chooses_other_questions():
    questions = [Question("a", str(i), "image") for i in range(100)]
    assert choose(questions, 10, 0) != choose(questions, 10, 1)


def test_no_scene_is_one_that_an_evaluation_or_a_training_may_hold():
    last = rendered.scene_seed(rendered.SEEDS_PER_SET - 1, rendered.SEEDS_PER_SET - 1)
    assert last < sets.FIRST_SEED


def test_rendered_scenes_are_the_same_on_every_run():
    a, b = open_calibration_set(SCENES, 9), open_calibration_set(SCENES, 9)
    assert (a.digest, a.questions, a.notes) == (b.digest, b.questions, ())
    assert {q.level for q in a.questions} == set(LEVELS)
    images = [np.asarray(image) for image, _ in a.pictures()]
    assert [image.shape for image in images] == [(96, 96, 3)] * 2
    assert a.digest != open_calibration_set(SCENES, 9, seed=1).digest
    assert a.digest != open_calibration_set("scenes:3:2:96", 9).digest


def test_a_prompt_about_a_box_holds_the_box():
    prompts = [q.prompt for q in open_calibration_set("scenes:1:4:256", 48).questions]
    assert any("<box>" in prompt for prompt in prompts)


def test_a_folder_and_its_file_are_the_same_set(make_lines):
    root = make_lines(lines())
    a, b = open_calibration_set(root), open_calibration_set(root / "questions.jsonl")
    assert (a.digest, a.questions) == (b.digest, b.questions)
    assert len(a.questions) == 12
    for image, questions in a.pictures():
        assert len(questions) == 6
        assert Scene.open(image).width == 60


def test_the_digest_is_of_what_the_images_hold(make_lines):
    root = make_lines(lines())
    before = open_calibration_set(root).digest
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / "a.png")
    assert open_calibration_set(root).digest != before


def test_a_geotiff_is_an_image(make_lines):
    from geomag_edge.scenes import render_scene, write_scene

    root = make_lines([{"image": "a.tif", "prompt": f"what is it {i}"} for i in range(8)])
    write_scene(render_scene(3, 96), root / "a.tif")
    (picture,) = open_calibration_set(root).pictures()
    assert Scene.open(picture[0]).height == 96


def test_a_labelled_evaluation_folder_is_a_set_too(tmp_path):
    made = rendered.RenderedSet(3, 2, 96)
    rendered.write_folder(made, tmp_path / "set")
    assert len(open_calibration_set(tmp_path / "set").questions) == 24


def test_a_missing_level_and_too_few_questions_are_said(make_lines):
    (note, other) = open_calibration_set(make_lines(lines(level="region")), 20).notes
    assert note == f"20 questions were asked for, {make_lines([], 'set')} has 12"
    assert "no question of the image and pixel level" in other


def test_a_set_without_levels_says_nothing_of_them(make_lines):
    assert open_calibration_set(make_lines(lines(level=None))).notes == ()


@pytest.mark.parametrize("text", ["", "  "])
def test_no_set_is_refused_and_never_made_up(text):
    with pytest.raises(DatasetError, match=r"never made from random numbers.*scenes:SEED:COUNT"):
        open_calibration_set(text)


@pytest.mark.parametrize(
    "text", ["scenes:", "scenes:1", "scenes:1:2:3:4", "scenes:-1:2", "scenes:a:2"]
)
def test_a_misspelt_set_of_scenes_is_explained(text):
    with pytest.raises(DatasetError, match="write scenes:SEED:COUNT"):
        open_calibration_set(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("scenes:1:0", "count of 1 or more"), ("scenes:1:2:9", "64 to 4096")],
)
def test_impossible_scenes_are_refused(text, message):
    with pytest.raises(DatasetError, match=message):
        open_calibration_set(text)


def test_a_place_without_a_set_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no calibration set at"):
        open_calibration_set(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"has no questions\.jsonl"):
        open_calibration_set(tmp_path)


@pytest.mark.parametrize("count", [0, 1, MIN_QUESTIONS - 1])
def test_a_tiny_set_is_refused(make_lines, count):
    with pytest.raises(DatasetError, match=f"has {count} questions, too few"):
        open_calibration_set(make_lines(lines(count)))


def test_a_tiny_count_is_refused(make_lines):
    with pytest.raises(DatasetError, match="3 questions are too few"):
        open_calibration_set(make_lines(lines()), 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{\n", "line 13 is not readable JSON"),
        ("[1]\n", "line 13: a question is a JSON object, got list"),
        ({"prompt": "x"}, "line 13: image is None"),
        ({"image": "a.png"}, "line 13: prompt is None"),
        ({"image": "a.png", "prompt": " "}, "line 13: prompt is ' '"),
        ({"image": "../a.png", "prompt": "x"}, "give a path inside the set"),
        ({"image": "/a.png", "prompt": "x"}, "give a path inside the set"),
        ({"image": "a.png", "prompt": "x", "level": "pixels"}, "level is 'pixels': give image"),
        ({"image": "a.png", "prompt": "x", "kind": "describe_box"}, "about one box, got None"),
    ],
)
def test_a_wrong_line_is_named(make_lines, line, message):
    with pytest.raises(DatasetError, match=re.escape(message)):
        open_calibration_set(make_lines([*lines(), line]))


@pytest.mark.parametrize("content", [None, b"", b"no image at all"])
def test_an_image_that_cannot_be_read_is_named(make_lines, content):
    root = make_lines([*lines(), {"image": "c.png", "prompt": "x"}])
    if content is not None:
        (root / "c.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"c\.png"):
        open_calibration_set(root)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_set_or_one_clear_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(GeoMagError) as caught:
        open_calibration_set(path)
    assert "\n" not in str(caught.value)
