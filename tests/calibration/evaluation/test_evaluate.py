"""Evaluation against pipelines whose worth is known."""

import numpy as np
import pytest

from geomag_edge.calibration import evaluate, open_dataset
from geomag_edge.calibration.sets.rendered import RenderedSet
from geomag_edge.errors import DatasetError

PERFECT = ("mIoU", "mIoU present", "cIoU", "box IoU@0.5", "box mIoU", "answer", "absent", "router")


@pytest.fixture(scope="module")
def rendered():
    """Scenes small enough to be quick, with enough questions for every kind."""
    return RenderedSet(seed=3, count=4, size_px=192, per_level=8)


def test_a_perfect_oracle_gets_1_everywhere(oracle_pipe, rendered):
    report = evaluate(oracle_pipe(rendered), rendered)
    for estimate in report.estimates:
        if (estimate.metric, estimate.group) == ("cIoU", "kind: pixel absent"):
            assert estimate.value is None  # no pixel on either side
        elif estimate.metric in PERFECT:
            assert estimate.value == 1.0, estimate
            assert (estimate.low, estimate.high) in ((1.0, 1.0), (None, None)), estimate
    assert report["mIoU"].questions == report["answer", "level: image"].questions == 32
    assert report["visual tokens"].value == 4 * 4 + 3 * 2 * 2


def test_a_silent_pipeline_gets_only_what_silence_is_worth(silent_pipe, rendered):
    report = evaluate(silent_pipe, rendered)
    absent = [r for r in report.records if r.absent is not None]
    pixels = [r for r in report.records if r.level == "pixel"]
    assert len(absent) > 2
    for metric in ("mIoU present", "cIoU", "box IoU@0.5", "answer"):
        assert report[metric].value == 0.0
    assert report["absent"].value == 1.0
    assert report["mIoU"].value == pytest.approx(
        sum(r.absent is not None for r in pixels) / len(pixels)
    )
    assert report["router"].value == pytest.approx(1 / 3)  # it takes all for image questions
    assert report["visual tokens"].value == 16.0


def test_each_picture_is_opened_once_and_named_as_its_questions_begin(silent_pipe, rendered):
    named = []
    report = evaluate(silent_pipe, rendered, progress=named.append)
    assert silent_pipe.opened == len(named) == 4
    assert [r.picture for r in report.records[:25]] == [named[0]] * 24 + [named[1]]


def test_a_prompt_about_a_box_carries_the_box_as_markup(silent_pipe, rendered):
    report = evaluate(silent_pipe, rendered)
    for r in report.records:
        assert ("<box>0:" in r.prompt) == (r.kind == "describe_box")


def test_sizes_are_those_in_the_global_view(oracle_pipe, make_folder):
    mask = np.zeros((40, 60), np.uint8)
    mask[5:10, 5:20] = 1  # longer side 15 of 60 px; the fake's view has 128 px
    folder = make_folder(
        [{"image": "images/a.png", "level": "pixel", "prompt": "it", "mask": "masks/a.png"}],
        {"a.png": mask},
    )
    dataset = open_dataset(folder)
    [record] = evaluate(oracle_pipe(dataset), dataset).records
    assert record.size_px == 15 * 128 / 60
    assert record.image_px == 60
    assert "size: 16-64 px" in record.groups()
    assert (record.intersection_px, record.union_px, record.iou) == (75, 75, 1.0)


def test_one_picture_gives_numbers_without_intervals(oracle_pipe):
    dataset = open_dataset("scenes:1:1:128")
    report = evaluate(oracle_pipe(dataset), dataset)
    assert {(e.low, e.high) for e in report.estimates} == {(None, None)}


def test_the_limit_cuts_the_questions_and_not_their_order(pixel_pipe):
    whole = evaluate(pixel_pipe, open_dataset("scenes:2:2:128"))
    part = evaluate(pixel_pipe, open_dataset("scenes:2:2:128", limit=14))
    assert len(whole.records) == 24
    assert part.records == whole.records[:14]


def test_the_report_says_what_ran(silent_pipe):
    report = evaluate(silent_pipe, open_dataset("scenes:2:1:128", limit=2), budget="12")
    assert (report.dataset, report.engine, report.precision) == ("scenes:2:1:128", "fake", "fp32")
    assert report.providers == {"llm": "Fake"}
    assert report.budget == "12"
    assert report.latency_ms == {"encode": 2.0, "total": 5.0}
    with pytest.raises(KeyError, match="no mIoU for all"):
        report["mIoU"]  # no pixel question among the first two


def test_a_set_without_questions_is_refused(silent_pipe):
    class Empty:
        name = "nothing"

        def pictures(self):
            return iter(())

    with pytest.raises(DatasetError, match="nothing has no questions"):
        evaluate(silent_pipe, Empty())
