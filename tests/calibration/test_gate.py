"""The gate lets a precision pass that answers as float32 does, and no other."""

import pytest

from geomag_edge.calibration.gate import MIN_QUESTIONS, Gate, judge, same_answer
from geomag_edge.calibration.report import Report
from geomag_edge.errors import DatasetError, InputError


@pytest.fixture
def make_report(record):
    """(ious, texts) -> a report of one question each, ten questions a picture."""

    def make(ious, texts=None, precision="int8"):
        texts = texts or ["it [SEG]"] * len(ious)
        records = [
            record(i, f"p{i // 10}", iou=iou, text=text, intersection_px=int(100 * iou),
                   union_px=100)
            for i, (iou, text) in enumerate(zip(ious, texts, strict=True))
        ]  # fmt: skip
        return Report("set", "b", "", "ort-cpu", precision, {}, None, records=records)

    return make


def test_equal_answers_pass(make_report):
    verdict = judge(make_report([0.5] * 100), make_report([0.5] * 100), Gate())
    assert verdict.ok
    assert (verdict.drop, verdict.agreement, verdict.reasons) == (0.0, 1.0, [])


def test_a_drop_of_the_mean_iou_beyond_the_limit_is_refused_with_its_size(make_report):
    verdict = judge(make_report([0.49] * 100), make_report([0.5] * 100), Gate())
    assert not verdict.ok
    assert verdict.drop == pytest.approx(1.0)
    assert verdict.reasons == ["mIoU falls by 1.00 points, allowed are 0.5"]
    assert judge(make_report([0.49] * 100), make_report([0.5] * 100), Gate(1.5)).ok


def test_a_gain_is_no_reason_to_refuse(make_report):
    assert judge(make_report([0.9] * 100), make_report([0.5] * 100), Gate()).ok


def test_changed_words_are_counted_and_shown(make_report):
    texts = ["it [SEG]"] * 98 + ["no", "no"]
    verdict = judge(make_report([0.5] * 100, texts), make_report([0.5] * 100), Gate())
    assert not verdict.ok
    assert verdict.agreement == 0.98
    assert [c["is"] for c in verdict.changed] == ["no", "no"]
    assert "98.0% of the answers" in verdict.reasons[0]
    assert judge(
        make_report([0.5] * 100, texts), make_report([0.5] * 100), Gate(min_agreement=0.98)
    ).ok


def test_too_few_questions_decide_nothing(make_report):
    few = [0.5] * (MIN_QUESTIONS - 1)
    with pytest.raises(DatasetError, match="too few"):
        judge(make_report(few), make_report(few), Gate())


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("a ship", "a ship", True),
        ("a ship", "a plane", False),
        ("a ship <box>1:100,100,300,300</box>", "a ship <box>1:100,100,303,301</box>", True),
        ("a ship <box>1:100,100,300,300</box>", "a ship <box>2:100,100,300,300</box>", False),
        ("a ship <box>1:100,100,300,300</box>", "a ship <box>1:120,100,320,300</box>", False),
        ("a ship <box>1:100,100,300,300</box>", "a plane <box>1:100,100,300,300</box>", False),
        ("a ship <box>1:300,300,100,100</box>", "a ship <box>1:300,300,100,101</box>", False),
        ("two <box>0:0,0,9,9</box>", "two <box>0:0,0,9,9</box><box>0:0,0,9,9</box>", False),
    ],
)
def test_answers_are_the_same_if_their_words_are_and_their_boxes_nearly(one, two, same):
    assert same_answer(one, two) is same
    assert same_answer(two, one) is same


@pytest.mark.parametrize(("drop", "agreement"), [(-1, 0.9), (101, 0.9), (1, -0.1), (1, 1.1)])
def test_a_gate_that_makes_no_sense_is_refused(drop, agreement):
    with pytest.raises(InputError, match="give"):
        Gate(drop, agreement)
