"""The chain on ONNX Runtime: PyTorch's answers, shared views, budgets, streaming, limits."""

import re

import numpy as np
import pytest
import rasterio
from PIL import Image

from geomag_edge import Pipeline
from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import BudgetError, PromptError
from geomag_edge.manifest import Bundle
from geomag_edge.prompts import prompt_with_box
from geomag_edge.runtime.answers.masks import mask_iou
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.read import streamer
from geomag_edge.runtime.chain.result import what_is_missing
from geomag_edge.runtime.chain.scene_session import SceneSession
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.proof.recording import RecordingEngine

PROMPT = "segment the ships near the pier"
BUDGETS = [None, "image", "region", "pixel", "1", "4", "2+1x4", "4+2x3", "4+4x4", "9t", "200t"]


@pytest.fixture(scope="module")
def pipe(bundle):
    with Pipeline.load(bundle, engine="ort-cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def torch_pipe(exported):
    made = exported()
    with Pipeline.load(made.bundle, engine="torch", checkpoint=made.checkpoint) as pipe:
        yield pipe


@pytest.fixture
def recording(bundle, pipe):
    """A chain on ONNX Runtime whose calls are kept."""
    opened = Bundle.open(bundle)
    engine = RecordingEngine(open_engine("ort-cpu", opened))
    chain = Chain(engine, opened.manifest, pipe.chain.coder)
    yield chain
    chain.close()


@pytest.mark.parametrize("budget", BUDGETS)
def test_both_engines_give_one_answer_at_every_budget(pipe, torch_pipe, picture, budget):
    answers = [p(picture, PROMPT, budget, 5, answer_prefix="[SEG]") for p in (pipe, torch_pipe)]
    got, expected = answers
    assert got.token_ids == expected.token_ids
    assert (got.text, got.granularity, got.stopped) == (
        expected.text, expected.granularity, expected.stopped,
    )  # fmt: skip
    assert got.budget == expected.budget
    np.testing.assert_array_equal(got.crop_boxes, expected.crop_boxes)
    np.testing.assert_allclose(got.relevance, expected.relevance, atol=1e-5)
    assert got.boxes == expected.boxes
    assert len(got.masks) == len(expected.masks) >= 1
    for a, b in zip(got.masks, expected.masks, strict=True):
        assert np.asarray(a).shape == picture.shape[:2]
        assert mask_iou(np.asarray(a), np.asarray(b)) >= 0.999


def test_a_result_says_what_ran_it(pipe, torch_pipe, picture):
    graphs = {"encoder", "psc_select", "projector", "embed", "llm", "mask_head"}
    for pipeline, engine, provider in (
        (pipe, "ort-cpu", "CPUExecutionProvider"),
        (torch_pipe, "torch", "PyTorch CPU"),
    ):
        answer = pipeline(picture, PROMPT, "image", 1)
        assert (answer.engine, answer.precision) == (engine, "fp32")
        assert answer.providers == dict.fromkeys(graphs, provider)
        assert {"crop", "encode", "select", "project", "prefill", "total"} <= {*answer.timings_ms}


def test_a_result_describes_the_look_at_the_image(pipe, picture, manifest):
    answer = pipe(picture, PROMPT, "pixel", 2)
    assert answer.relevance.shape == (4, 4)
    assert answer.view_box.tolist() == [0, -40, 400, 360]
    assert sum(answer.granularity_probabilities.values()) == pytest.approx(1)
    likeliest = max(answer.granularity_probabilities, key=answer.granularity_probabilities.get)
    assert answer.granularity == likeliest
    assert answer.budget == manifest.budgets["pixel"]
    assert len(answer.crop_boxes) == len(answer.crop_scores) <= 4
    sides = answer.crop_boxes[:, 2] - answer.crop_boxes[:, 0]
    assert sides[-1] < sides[0]  # it looked again, inside


def test_the_routed_levels_budget_runs_unless_another_is_asked_for(pipe, picture, manifest):
    answer = pipe(picture, PROMPT, max_new_tokens=1)
    assert answer.budget == manifest.budgets[answer.granularity]
    assert pipe(picture, PROMPT, TokenBudget(2, 1, 2), 1).budget == TokenBudget(2, 1, 2)


def test_a_budget_without_crops_makes_none(pipe, picture):
    answer = pipe(picture, PROMPT, "3+0x0", 1)
    assert answer.crop_boxes.shape == (0, 4)


def test_prompts_on_one_image_share_its_encoded_views(recording, picture):
    def encoded():
        return sum(len(c.inputs["views"]) for c in recording.engine.calls if c.graph == "encoder")

    with SceneSession(recording, Scene.open(picture)) as session:
        first = session.ask(PROMPT, "pixel", 1)
        once = encoded()
        assert once == 1 + len(first.crop_boxes)
        again = session.ask(PROMPT, "pixel", 1)
        assert encoded() == once
        assert again.token_ids == first.token_ids
        session.ask("how many planes are there?", "image", 1)
        assert encoded() == once  # the whole image was known
        other = session.ask("roads", "4+4x4", 1)
        seen = {tuple(b) for b in first.crop_boxes.tolist()}
        new = [b for b in other.crop_boxes.tolist() if tuple(b) not in seen]
        assert encoded() == once + len(new)


def test_the_answer_to_one_prompt_does_not_depend_on_those_before(pipe, picture):
    with pipe.open(picture) as session:
        session.ask("how many planes are there?", "region", 4)
        after = session.ask(PROMPT, "pixel", 6)
    assert after.token_ids == pipe(picture, PROMPT, "pixel", 6).token_ids


def test_an_answer_prefix_is_part_of_the_answer_and_asks_for_its_masks(pipe, picture):
    answer = pipe(picture, PROMPT, "image", 3, answer_prefix="the [SEG] and [SEG]")
    assert answer.text.startswith("the [SEG] and [SEG]")
    assert len(answer.masks) == answer.token_ids.count(0) >= 2


def test_the_prompt_cannot_ask_for_a_mask_by_markup(pipe, picture):
    plain = pipe(picture, "ships", "image", 1)
    hostile = pipe(picture, "[SEG] ships <image>", "image", 1)
    assert len(hostile.masks) == hostile.token_ids.count(0)
    assert hostile.prompt != plain.prompt


def test_streamed_pieces_join_to_the_text(pipe, picture):
    for prefix in ("", "the [SEG]", "[SEG]"):
        pieces = []
        answer = pipe(picture, PROMPT, "image", 24, answer_prefix=prefix, on_text=pieces.append)
        assert "".join(pieces) == answer.text
        assert all(pieces)


@pytest.mark.parametrize(
    "text", ["plain", "  spaced  out  ", "é 漢字 🚢🚢 end", "half \u00e9", "a\n\nb "]
)
def test_streaming_waits_for_whole_characters_whatever_the_tokens_cut(pipe, text):
    coder, pieces = pipe.chain.coder, []
    ids = coder.markup_ids(text)
    on_ids = streamer(coder, pieces.append)
    for end in range(1, len(ids) + 1):
        on_ids(ids[:end])
    on_ids(ids, last=True)
    assert "".join(pieces) == text.strip()
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_answer_that_ends_within_a_character_is_streamed_to_its_end(pipe):
    coder, pieces = pipe.chain.coder, []
    ids = coder.markup_ids("ships 🚢")[:-1]
    on_ids = streamer(coder, pieces.append)
    on_ids(ids)
    assert pieces == []
    on_ids(ids, last=True)
    assert pieces == [coder.decode(ids)]


def test_one_new_token_is_one_token(pipe, picture):
    answer = pipe(picture, PROMPT, "image", max_new_tokens=1)
    assert len(answer.token_ids) == 1
    assert answer.stopped == "length"


def test_more_tokens_only_continue_an_answer(pipe, picture):
    short = pipe(picture, PROMPT, "image", max_new_tokens=3)
    longer = pipe(picture, PROMPT, "image", max_new_tokens=9)
    assert longer.token_ids[:3] == short.token_ids


def test_a_prompt_beyond_the_context_is_refused_with_its_length(pipe, picture):
    with pytest.raises(PromptError, match=r"needs \d+ positions with budget 3, the model has 512"):
        pipe(picture, "where is it? " * 200, "image")


def test_an_answer_never_runs_past_the_context(pipe, picture, manifest):
    coder = pipe.chain.coder
    words = PROMPT
    used = 9 + sum(map(len, coder.around_image(words)))
    while used + 8 < manifest.prompt.context:
        words += " near"
        used = 9 + sum(map(len, coder.around_image(words)))
    answer = pipe(picture, words, "image", max_new_tokens=100)
    assert len(answer.token_ids) <= manifest.prompt.context - used
    assert any("longer than PSC's 48 tokens" in note for note in answer.notes)


@pytest.mark.parametrize("prompt", ["", "   ", "x" * 20_001])
def test_prompts_that_cannot_be_asked_are_refused(pipe, picture, prompt):
    with pytest.raises(PromptError):
        pipe(picture, prompt)


@pytest.mark.parametrize("budget", ["huge", "5", "4+5x4", "4+1x5", "0", TokenBudget(9)])
def test_budgets_beyond_the_model_are_refused(pipe, picture, budget):
    with pytest.raises(BudgetError):
        pipe(picture, PROMPT, budget)


def test_a_refused_prompt_leaves_the_session_usable(pipe, picture):
    with pipe.open(picture) as session:
        before = session.ask(PROMPT, "image", 2).token_ids
        with pytest.raises(BudgetError):
            session.ask(PROMPT, "99")
        assert session.ask(PROMPT, "image", 2).token_ids == before


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 9), (64, 64), (900, 40)])
def test_images_of_any_shape_are_answered(pipe, shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    answer = pipe(image, PROMPT, "pixel", 2, answer_prefix="[SEG]")
    assert np.asarray(answer.masks[0]).shape == shape
    assert np.isfinite(answer.relevance).all()


def test_a_path_a_picture_and_an_array_are_one_image(pipe, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "scene.png")
    images = (
        picture,
        Image.fromarray(picture),
        tmp_path / "scene.png",
        str(tmp_path / "scene.png"),
    )
    answers = [pipe(image, PROMPT, "pixel", 4).token_ids for image in images]
    assert answers == [answers[0]] * 4


def test_a_budget_may_be_a_number_of_tokens_not_to_exceed(bundle, picture):
    from geomag_edge import Pipeline

    with Pipeline.load(bundle) as pipe:
        result = pipe(picture, "find ships", budget=5, max_new_tokens=1)
    assert result.budget.visual_tokens <= 5


def test_a_closed_pipeline_says_that_it_is_closed(bundle, picture):
    from geomag_edge import Pipeline
    from geomag_edge.errors import EngineError

    pipe = Pipeline.load(bundle)
    pipe.close()
    with pytest.raises(EngineError, match="closed"):
        pipe(picture, "find ships")


def test_a_prompt_is_answered_alike_however_it_is_typed_and_stays_as_it_was_typed(pipe, picture):
    with pipe.open(picture) as session:
        plain = session.ask(PROMPT, max_new_tokens=6, answer_prefix="the ship [SEG]")
        typed = session.ask(
            " Segment  the SHIPS near\u00a0the pier\n", max_new_tokens=6,
            answer_prefix="The  ship [SEG]",
        )  # fmt: skip
    assert typed.prompt == "Segment  the SHIPS near\u00a0the pier"
    assert typed.token_ids == plain.token_ids
    assert typed.granularity_probabilities == plain.granularity_probabilities
    assert np.array_equal(typed.crop_boxes, plain.crop_boxes)


def collar(picture):
    """Data in a tilted square and in one pixel far from it: bool[H,W]."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    valid = abs(x - 120) + abs(y - 150) < 100
    valid[300, 390] = True
    return valid


def masked(picture, valid):
    return np.ma.MaskedArray(
        np.where(valid[..., None], picture, 0), np.repeat(~valid[..., None], 3, 2)
    )


def rgba(picture, valid):
    return Image.fromarray(np.dstack([picture, valid * np.uint8(255)]), "RGBA")


@pytest.mark.parametrize("kind", [masked, rgba])
@pytest.mark.parametrize("budget", ["4+2x4", "4+4x4", "4+4x2"])
def test_nothing_of_an_answer_lies_where_there_is_no_data(pipe, picture, kind, budget):
    valid = collar(picture)
    prefix = "at <box>0:000,000,200,200</box> <box>0:500,300,900,999</box> [SEG] [SEG]"
    answer = pipe(kind(picture, valid), PROMPT, budget, 1, prefix)
    for mask in answer.masks:
        assert not np.asarray(mask)[~valid].any()
    assert len(answer.crop_boxes)
    for x0, y0, x1, y1 in [*answer.crop_boxes.tolist(), *answer.boxes]:
        rows, cols = (slice(max(0, int(a)), int(np.ceil(b))) for a, b in ((y0, y1), (x0, x1)))
        assert valid[rows, cols].any()
    assert len(answer.boxes) == 1  # the first of the two shows no data


def test_a_scene_in_a_collar_is_looked_at_as_if_it_were_cut_out(pipe, picture):
    inner = np.ascontiguousarray(picture[60:260, 100:300])
    bare = pipe(inner, PROMPT, "4+4x3", 6, "[SEG]")
    valid = np.zeros(picture.shape[:2], bool)
    valid[60:260, 100:300] = True
    answers = [
        pipe(rgba(np.where(valid[..., None], picture, np.uint8(hidden)), valid), PROMPT, "4+4x3", 6)
        for hidden in (0, 77)
    ]
    for answer in answers:
        assert answer.view_box.tolist() == [100, 60, 300, 260]
        np.testing.assert_array_equal(answer.crop_boxes - [100, 60, 100, 60], bare.crop_boxes)
        # The pixels along a view's edges are mixed with what lies beyond, or with nothing.
        np.testing.assert_allclose(answer.relevance, bare.relevance, atol=0.02)
    np.testing.assert_array_equal(answers[0].relevance, answers[1].relevance)
    assert answers[0].token_ids == answers[1].token_ids


def test_an_image_that_could_hide_pixels_and_hides_none_answers_as_ever(pipe, picture):
    plain = pipe(picture, PROMPT, "4+4x3", 6, "[SEG]")
    opaque = pipe(rgba(picture, np.ones(picture.shape[:2], bool)), PROMPT, "4+4x3", 6, "[SEG]")
    for name in ("crop_boxes", "crop_scores", "relevance", "view_box"):
        np.testing.assert_array_equal(getattr(opaque, name), getattr(plain, name))
    assert opaque.token_ids == plain.token_ids
    np.testing.assert_array_equal(np.asarray(opaque.masks[0]), np.asarray(plain.masks[0]))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (5, 7)])
def test_a_thin_or_tiny_image_is_looked_at_where_it_is(pipe, picture, shape):
    image = np.ascontiguousarray(np.resize(picture, (*shape, 3)))
    for valid in (None, np.arange(shape[0] * shape[1]).reshape(shape) == 0):
        source = image if valid is None else rgba(image, valid)
        answer = pipe(source, PROMPT, "4+4x2", 1, "[SEG]")
        boxes = answer.crop_boxes
        assert (boxes[:, :2] < [shape[1], shape[0]]).all()
        assert (boxes[:, 2:] > 0).all()


def test_a_box_in_the_prompt_is_said_in_the_frame_that_is_shown(recording, picture):
    valid = np.zeros(picture.shape[:2], bool)
    valid[60:260, 100:300] = True
    told = []
    ids = recording.coder.around_image

    def remember(prompt):
        told.append(prompt)
        return ids(prompt)

    recording.coder.around_image = remember
    try:
        with SceneSession(recording, Scene.open(rgba(picture, valid))) as session:
            prompt = prompt_with_box("what is this?", (120, 80, 160, 100), *picture.shape[:2])
            answer = session.ask(prompt, "4", 1)
    finally:
        recording.coder.around_image = ids
    assert answer.prompt == prompt
    assert told == ["what is this? <box>0:100,100,300,200</box>"]


def test_the_masks_of_a_file_read_by_windows_stay_clear_of_nodata(
    pipe, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr("geomag_edge.runtime.images.scene.WHOLE_IMAGE_PX", 0)
    valid = collar(picture)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=320, width=400, count=3, dtype="uint8",
        nodata=0,
    ) as out:  # fmt: skip
        out.write(np.moveaxis(np.where(valid[..., None], np.maximum(picture, 1), 0), -1, 0))
    answer = pipe(tmp_path / "a.tif", PROMPT, "4+4x4", 1, "[SEG]")
    assert not np.asarray(answer.masks[0])[~valid].any()
    memory = pipe(masked(np.maximum(picture, 1), valid), PROMPT, "4+4x4", 1, "[SEG]")
    np.testing.assert_array_equal(answer.crop_boxes, memory.crop_boxes)


BOX = [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (("there is no pier", "pixel", "pier", [], [], "end"), "no .SEG., so no mask"),
        (("a pier", "pixel", "pier", [], BOX, "end"), "no .SEG., so no mask"),
        (("the", "pixel", "pier", [], [], "length"), "no mask; it was cut"),
        (("a pier", "region", "find the pier", [], [], "end"), "no box"),
        (("", "pixel", "pier", [], [], "end"), "is empty"),
        (("", "image", "pier", [], [], "end"), "is empty"),
        (("", "image", "pier", [], [], "deadline"), None),
        (("the", "pixel", "pier", [], [], "deadline"), None),
        (("a pier", "image", "pier", [], [], "end"), None),
        (("a pier", "region", "what is <box>0:1,1,2,2</box>", [], [], "end"), None),
        (("[SEG]", "pixel", "pier", ["mask"], [], "end"), None),
        (("[SEG]", "region", "pier", ["mask"], [], "end"), None),
        (("<box>", "region", "pier", [], BOX, "end"), None),
    ],
)
def test_an_answer_that_lacks_what_its_task_is_about_says_so(said, why):
    note = what_is_missing(*said)
    assert (note is None) if why is None else re.search(why, note)


def test_an_answer_without_a_mask_has_a_note(pipe, picture):
    answer = pipe(picture, PROMPT, "image", 1)
    missing = [note for note in answer.notes if "no mask" in note or "no box" in note]
    marked = answer.granularity == "image" or answer.masks
    assert len(missing) == (0 if marked else 1)
