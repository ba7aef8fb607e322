"""The gate lets a precision pass that answers as float32 does, and no other."""

from dataclasses import replace

import pytest

from geomag_edge.calibration.evaluation.report import Report
from geomag_edge.calibration.gate.gate import MIN_BOXES, MIN_QUESTIONS, Gate, judge, same_words
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
    assert (verdict.masks.points, verdict.agreement, verdict.identical) == (0.0, 1.0, 1.0)
    assert verdict.reasons == []
    assert verdict.boxes is None


def test_a_drop_of_the_mean_iou_beyond_the_limit_is_refused_with_its_size(make_report):
    verdict = judge(make_report([0.49] * 100), make_report([0.5] * 100), Gate())
    assert not verdict.ok
    assert verdict.masks.points == pytest.approx(1.0)
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
    assert verdict.reasons == [
        "2 of 100 answers have other words or boxes than float32's "
        "(98.00% agree, needed are 99.00%)"
    ]
    assert judge(
        make_report([0.5] * 100, texts), make_report([0.5] * 100), Gate(min_agreement=0.98)
    ).ok


def test_too_few_questions_decide_nothing(make_report):
    few = [0.5] * (MIN_QUESTIONS - 1)
    with pytest.raises(DatasetError, match="too few"):
        judge(make_report(few), make_report(few), Gate())


def with_boxes(report, ious):
    """The first questions ask for boxes, which are worth `ious`."""
    first = [replace(r, level="region", kind="find_box", iou=None, intersection_px=None,
                     union_px=None, box=float(iou >= 0.5), box_iou=iou)
             for r, iou in zip(report.records, ious, strict=False)]  # fmt: skip
    return replace(report, records=[*first, *report.records[len(ious) :]])


def test_many_boxes_that_are_worth_less_are_refused_whatever_their_words(make_report):
    def boxes(iou, digit, count=MIN_BOXES):
        made = make_report([0.5] * count, [f"a ship <box>1:{digit},1,9,9</box>"] * count)
        return with_boxes(made, [iou] * count)

    verdict = judge(boxes(0.80, 3), boxes(0.81, 4), Gate())
    assert verdict.reasons == ["box mIoU falls by 1.00 points, allowed are 0.5"]
    assert (verdict.agreement, verdict.identical) == (1.0, 0.0)
    assert judge(boxes(0.81, 3), boxes(0.81, 4), Gate()).ok
    assert judge(boxes(0.80, 3, MIN_BOXES - 1), boxes(0.81, 4, MIN_BOXES - 1), Gate()).ok


def test_of_a_few_boxes_each_is_an_answer_found_or_not(make_report):
    plain = make_report([0.5] * 100, ["a ship [SEG]<box>1:1,1,9,9</box>"] * 100)
    found = with_boxes(plain, [0.7] * 10)
    one_lost, two_lost = (with_boxes(plain, [0.0] * n + [0.7] * (10 - n)) for n in (1, 2))
    assert judge(one_lost, found, Gate()).agreement == pytest.approx(0.99)
    assert judge(one_lost, found, Gate()).ok
    assert "2 of 100 answers" in judge(two_lost, found, Gate()).reasons[0]
    assert not judge(found, two_lost, Gate()).ok  # a box that fp32 misses is another answer, too


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("a ship", "a ship", True),
        ("a ship", "a plane", False),
        ("a ship <box>1:100,100,300,300</box>", "a ship <box>2:100,100,303,301</box>", True),
        ("a ship <box>1:100,100,300,300</box>", "a plane <box>1:100,100,300,300</box>", False),
        ("a ship <box>1:100,100,300,300</box>", "a ship", False),
        ("two <box>0:0,0,9,9</box>", "two <box>0:0,0,9,9</box><box>0:0,0,9,9</box>", False),
    ],
)
def test_words_are_compared_and_boxes_counted(one, two, same):
    assert same_words(one, two) is same
    assert same_words(two, one) is same


@pytest.mark.parametrize(("drop", "agreement"), [(-1, 0.9), (101, 0.9), (1, -0.1), (1, 1.1)])
def test_a_gate_that_makes_no_sense_is_refused(drop, agreement):
    with pytest.raises(InputError, match="give"):
        Gate(drop, agreement)
