"""A sweep: every part of the image that PSC finds worth a look is seen at one scale, and nothing
but the masks changes."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge import Pipeline
from geomag_edge.errors import BudgetError, InputError
from geomag_edge.runtime.answers.masks import MaskMaps
from geomag_edge.runtime.chain import sweep as module
from geomag_edge.runtime.chain.sweep import coarse_boxes, sweep, sweep_boxes, worth_a_look

PROMPT = "segment the ships near the pier"
EXTENTS = st.integers(1, 5000)


@given(EXTENTS, EXTENTS, st.integers(20, 700))
def test_the_views_cover_the_image_and_are_as_few_as_can_be(height, width, side):
    boxes = sweep_boxes(height, width, side)
    if max(height, width) <= side:
        assert not len(boxes)  # the global view has seen it all
        return
    assert len(boxes) == -(-height // side) * -(-width // side)
    np.testing.assert_array_equal(boxes[:, 2:] - boxes[:, :2], np.full((len(boxes), 2), side))
    for low, high, extent in ((1, 3, height), (0, 2, width)):
        starts = np.unique(boxes[:, low])
        ends = np.unique(boxes[:, high])
        assert starts[0] <= 0
        assert ends[-1] >= extent
        assert (starts[1:] <= ends[:-1]).all()  # no gap
        if extent >= side:
            assert (starts[0], ends[-1]) == (0, extent)  # none sticks out


def test_a_sweep_needs_views_of_at_least_a_pixel():
    with pytest.raises(InputError, match="at least 1 px"):
        sweep_boxes(100, 100, 0)


def test_a_sweep_that_would_never_end_is_refused():
    with pytest.raises(InputError, match="400000000 of them, more than 65536: give"):
        sweep_boxes(20_000, 20_000, 1)


def test_psc_decides_at_a_quarter_of_the_scale_or_in_the_global_view():
    np.testing.assert_array_equal(coarse_boxes(1600, 900, 100), sweep_boxes(1600, 900, 400))
    np.testing.assert_array_equal(coarse_boxes(300, 200, 100), [[-50, 0, 250, 300]])


@given(st.integers(30, 900), st.integers(30, 900), st.integers(3, 50), st.data())
def test_a_view_is_worth_a_look_where_it_touches_a_patch_that_may_be_relevant(h, w, step, data):
    side, grid = 4 * step, data.draw(st.sampled_from((1, 2, 4)))
    boxes, coarse = sweep_boxes(h, w, side), coarse_boxes(h, w, side)
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    relevance = (rng.random((len(coarse), grid, grid)) < 0.05).astype(np.float32)
    expected = np.zeros(len(boxes), bool)
    for box, patches in zip(coarse.astype(float), relevance, strict=True):
        cell = (box[2] - box[0]) / grid
        for row, column in np.argwhere(patches):
            low = np.array([box[0] + column * cell, box[1] + row * cell])
            expected |= ((boxes[:, :2] < low + cell) & (boxes[:, 2:] > low)).all(axis=1)
    np.testing.assert_array_equal(worth_a_look(boxes, coarse, relevance), expected)


def glance_at(relevant):
    """PSC that sees something of the prompt in one place: (x, y) px."""

    def glance(boxes):
        maps = np.zeros((len(boxes), 4, 4), np.float32)
        for i, (x0, y0, x1, _) in enumerate(boxes):
            cell = (x1 - x0) / 4
            column, row = int((relevant[0] - x0) // cell), int((relevant[1] - y0) // cell)
            if 0 <= row < 4 and 0 <= column < 4:
                maps[i, row, column] = 0.9
        return boxes, maps

    return glance


def find_nothing(boxes):
    return MaskMaps(boxes, np.zeros((1, len(boxes), 2, 2), np.float32), np.zeros((1, len(boxes))))


def test_only_views_that_psc_sees_something_in_are_looked_at():
    named = []
    found, looked_at = sweep(glance_at((130, 270)), find_nothing, (800, 1600), 100, 4, named.append)
    assert looked_at == 1
    np.testing.assert_array_equal(
        np.concatenate([maps.boxes for maps in found]), [[100, 200, 200, 300]]
    )
    assert len(named) == len(sweep_boxes(800, 1600, 100)) + len(coarse_boxes(800, 1600, 100))
    assert named[:2] == ["0, 0", "400, 0"]
    assert named[-1] == "100, 200"


def test_a_mask_counts_only_where_psc_sees_something_up_close():
    def unsure(boxes):
        return boxes, np.full((len(boxes), 4, 4), 0.3, np.float32)

    found, looked_at = sweep(unsure, find_nothing, (300, 500), 100, 4)
    assert (found, looked_at) == ([], 15)


def test_views_go_through_in_batches():
    seen = []

    def glance(boxes):
        seen.append(len(boxes))
        return boxes, np.ones((len(boxes), 4, 4), np.float32)

    found, looked_at = sweep(glance, find_nothing, (300, 500), 100, 4)
    assert seen == [2, 4, 4, 4, 3]
    assert looked_at == 15
    np.testing.assert_array_equal(
        np.concatenate([maps.boxes for maps in found]), sweep_boxes(300, 500, 100)
    )


@pytest.fixture(scope="module")
def pipe(bundle):
    with Pipeline.load(bundle, engine="ort-cpu") as pipe:
        yield pipe


@pytest.fixture
def all_worth_a_look(monkeypatch):
    """Random weights see nothing in particular anywhere."""
    monkeypatch.setattr(module, "MAYBE", -1)
    monkeypatch.setattr(module, "LIKELY", -1)


@pytest.mark.usefixtures("all_worth_a_look")
def test_a_sweep_changes_the_masks_alone(pipe, picture):
    plain = pipe(picture, PROMPT, "4+2x4", 3, "[SEG]")
    swept = pipe(picture, PROMPT, "4+2x4", 3, "[SEG]", sweep_px=100)
    assert (swept.token_ids, swept.boxes) == (plain.token_ids, plain.boxes)
    np.testing.assert_array_equal(swept.crop_boxes, plain.crop_boxes)
    count = len(sweep_boxes(*picture.shape[:2], 100))
    assert swept.sweep == {"view_px": 100, "views": count, "of": count}
    assert plain.sweep is None
    for a, b in zip(swept.masks, plain.masks, strict=True):
        assert len(a.views) == len(b.views) + count
    assert set(swept.timings_ms) - set(plain.timings_ms) == {"sweep"}


@pytest.mark.usefixtures("all_worth_a_look")
def test_a_swept_view_is_what_the_answers_query_finds_there(pipe, picture):
    """As if PSC had looked there: the view's own encoding, the same query."""
    swept = pipe(picture, PROMPT, "4", 1, "[SEG]", sweep_px=100).masks[0]
    height, width = picture.shape[:2]
    box = sweep_boxes(height, width, 100)[5]
    found = {(view.x0, view.y0, view.x1, view.y1): view.logits for view in swept.views}
    looked = {}
    with pipe.open(picture) as session:
        mask_maps = session.chain.mask_maps

        def remember(views, queries):
            looked["queries"] = queries
            return mask_maps(views, queries)

        session.chain.mask_maps = remember
        session.ask(PROMPT, "4", 1, "[SEG]")
        session.chain.mask_maps = mask_maps
        from geomag_edge.runtime.chain.chain import Stopwatch

        views = session.chain.encode(session.scene, box[None], Stopwatch())
        expected = mask_maps(views, looked["queries"]).logits[0, 0]
    np.testing.assert_allclose(found[tuple(box.tolist())], expected, atol=1e-4)


def test_an_answer_without_a_mask_sweeps_nothing(pipe, picture):
    named = []
    with pipe.open(picture) as session:
        answer = session.ask(PROMPT, "4", 1, sweep_px=100, on_view=named.append)
    assert bool(named) == bool(answer.masks)


@pytest.mark.parametrize(
    ("prefix", "side_px", "why"), [("", 100, "no .SEG"), ("[SEG]", 9999, "larger")]
)
def test_a_sweep_that_has_nothing_to_do_says_so(pipe, picture, prefix, side_px, why):
    answer = pipe(picture, PROMPT, "4", 1, prefix, sweep_px=side_px)
    if not prefix and answer.masks:
        pytest.skip("the random model said [SEG] by itself")
    assert any(re.search(f"nothing was swept.*{why}", note) for note in answer.notes)


def test_a_sweep_that_psc_sees_no_use_in_says_so(pipe, picture, monkeypatch):
    monkeypatch.setattr(module, "MAYBE", 1)
    answer = pipe(picture, PROMPT, "4", 1, "[SEG]", sweep_px=100)
    count = len(sweep_boxes(*picture.shape[:2], 100))
    assert answer.sweep == {"view_px": 100, "views": 0, "of": count}
    assert any("PSC sees nothing of the prompt" in note for note in answer.notes)


@pytest.mark.usefixtures("all_worth_a_look")
def test_a_sweeps_many_views_do_not_make_an_answer_surer(pipe, picture):
    plain = pipe(picture, PROMPT, "4+2x4", 1, "[SEG]").masks[0]
    assert pipe(picture, PROMPT, "4+2x4", 1, "[SEG]", sweep_px=50).masks[0].score == plain.score


def test_an_impossible_sweep_is_refused_before_anything_runs(pipe, picture):
    with pytest.raises(InputError, match="at least 1 px"):
        pipe(picture, PROMPT, on_text=pytest.fail, sweep_px=0)


def test_a_sweep_and_a_deadline_exclude_each_other(pipe, picture):
    with pytest.raises(BudgetError, match="as long as it takes"):
        pipe(picture, PROMPT, latency_ms=1000, sweep_px=100)


def test_no_view_without_data_is_looked_at():
    def everywhere(boxes):
        seen.extend(boxes.tolist())
        return boxes, np.full((len(boxes), 4, 4), 0.9, np.float32)

    def has_data(boxes):
        return boxes[:, 0] < 250

    seen, named = [], []
    found, looked_at = sweep(everywhere, find_nothing, (800, 1600), 100, 4, named.append, has_data)
    every = sweep_boxes(800, 1600, 100)
    assert looked_at == has_data(every).sum() == sum(len(maps.boxes) for maps in found)
    assert all(box[0] < 250 for box in seen)
    assert len(named) == len(every) + len(coarse_boxes(800, 1600, 100))  # a bar comes to its end


@pytest.mark.usefixtures("all_worth_a_look")
def test_a_sweep_counts_and_looks_at_views_that_show_data(pipe, picture):
    hidden = np.zeros(picture.shape, bool)
    hidden[:, 120:] = True
    hidden[310:, 390:] = False  # an island
    image = np.ma.MaskedArray(picture, hidden)
    answer = pipe(image, PROMPT, "4", 1, "[SEG]", sweep_px=50)
    boxes = sweep_boxes(*picture.shape[:2], 50).astype(int)
    shown = [not hidden[y0:y1, x0:x1].all() for x0, y0, x1, y1 in boxes]
    assert answer.sweep["of"] == sum(shown) < len(boxes)
    assert answer.sweep["views"] <= sum(shown)
    assert not np.asarray(answer.masks[0])[hidden[..., 0]].any()
