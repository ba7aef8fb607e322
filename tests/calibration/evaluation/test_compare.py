"""Reports: written, read back, and compared question by question."""

import json
import os

import pytest

from geomag_edge.calibration import Report, compare, read_report, write_report
from geomag_edge.errors import DatasetError, OutputError


@pytest.fixture
def make_report(record):
    """(ious by picture, **changes) -> a report with one question a value."""

    def make(values, text="it [SEG]", **changes):
        records = [
            record(f"{picture}{k}", picture, iou=iou, text=text)
            for picture, ious in values.items()
            for k, iou in enumerate(ious)
        ]
        fields = {
            "dataset": "set", "bundle": "b", "checkpoint": "", "engine": "e", "precision": "fp32",
            "providers": {}, "budget": None,
        }  # fmt: skip
        return Report(records=records, **(fields | changes))

    return make


VALUES = {"a": [0.2, 0.9], "b": [0.5], "c": [1.0, 0.0, 0.4]}


def test_the_interval_between_equal_reports_is_nothing_around_zero(make_report):
    made = compare(make_report(VALUES), make_report(VALUES))
    assert made.identical == 1.0
    for d in made.differences:
        assert d.difference == 0.0
        assert d.low is None or d.low <= 0.0 <= d.high
    assert (made["mIoU"].low, made["mIoU"].high) == (0.0, 0.0)


def test_a_constant_shift_is_found_with_no_doubt(make_report):
    shifted = {k: [v - 0.1 for v in vs] for k, vs in VALUES.items()}
    d = compare(make_report(VALUES), make_report(shifted))["mIoU"]
    assert (d.difference, d.low, d.high) == pytest.approx((0.1, 0.1, 0.1))
    assert d.value - d.other == pytest.approx(d.difference)
    assert d.questions == 6


def test_pairing_makes_the_interval_narrower_than_either_reports_own(make_report):
    values = {"a": [0.1, 0.2], "b": [0.9], "c": [0.4, 0.5, 0.6]}
    noisy = {k: [v + 0.01 * i for i, v in enumerate(vs)] for k, vs in values.items()}
    one, two = make_report(noisy), make_report(values)
    d = compare(one, two)["mIoU"]
    assert d.high - d.low < 0.1 * (two["mIoU"].high - two["mIoU"].low)


def test_the_difference_changes_its_sign_with_the_order(make_report):
    other = {"a": [0.1, 0.1], "b": [0.9], "c": [0.2, 0.3, 0.4]}
    there, back = (
        compare(*pair)["mIoU"]
        for pair in (
            (make_report(VALUES), make_report(other)),
            (make_report(other), make_report(VALUES)),
        )
    )
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_the_share_of_identical_answers_counts_every_character(make_report, record):
    one, two = make_report(VALUES), make_report(VALUES)
    two.records[0] = record("a0", "a", iou=0.2, text="It [SEG]")
    assert compare(one, two).identical == pytest.approx(5 / 6)


def test_only_common_questions_are_compared_and_the_others_are_counted(make_report):
    made = compare(make_report(VALUES), make_report({"a": [0.2], "c": [1.0], "d": [0.0]}))
    assert (made.questions, made.only_here, made.only_there) == (2, 4, 1)
    assert made["mIoU"].difference == 0.0


def test_pictures_and_sizes_are_those_of_the_first_report(make_report, record):
    """A folder names its pictures by file, and another model has another view."""
    renamed = make_report(VALUES)
    renamed.records = [
        record(r.id, f"images/{r.picture}.tif", iou=r.iou, size_px=80.0) for r in renamed.records
    ]
    made = compare(make_report(VALUES), renamed)
    assert {d.group for d in made.differences if d.group.startswith("size")} == {"size: <16 px"}
    assert made["mIoU"].low == made["mIoU"].high == 0.0


def test_reports_of_other_sets_are_refused(make_report, record):
    one, two = make_report(VALUES), make_report(VALUES)
    two.records[0] = record("a0", "a", prompt="something else")
    with pytest.raises(DatasetError, match="different sets: question 'a0'"):
        compare(one, two)
    with pytest.raises(DatasetError, match="no question in common"):
        compare(one, make_report({"z": [1.0]}))


def test_a_report_reads_back_as_it_was(make_report, tmp_path):
    report = make_report(VALUES, budget="16", untrained=["all"], latency_ms={"total": 3.0})
    write_report(tmp_path / "r.json", report.to_json())
    again = read_report(tmp_path / "r.json")
    assert again == report
    assert again.estimates == report.estimates
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_report_on_paper_has_a_row_for_every_metric_and_group(make_report):
    data = make_report(VALUES).to_json()
    rows = {(m["metric"], m["group"]) for m in data["metrics"]}
    for group in ("all", "level: pixel", "kind: pixel refer", "size: <16 px", "image: <= 512 px"):
        assert ("mIoU", group) in rows
    assert (data["questions"], data["pictures"]) == (6, 3)
    json.dumps(data, allow_nan=False)


def test_an_interrupted_write_keeps_the_older_report(make_report, tmp_path, monkeypatch):
    write_report(tmp_path / "r.json", {"old": 1})

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)  # all is written, nothing is in its place yet
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "r.json", make_report(VALUES).to_json())
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert json.loads((tmp_path / "r.json").read_text()) == {"old": 1}


@pytest.mark.parametrize(
    ("place", "message"), [("", "is a folder"), ("no/r.json", "does not exist")]
)
def test_places_where_no_report_can_go(tmp_path, place, message):
    with pytest.raises(OutputError, match=message):
        write_report(tmp_path / place, {})


def spoiled(**changes):
    return lambda data: data | changes


def with_record(**changes):
    return lambda data: data | {"records": [data["records"][0] | changes]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: [], "not a report"),
        (spoiled(format="else"), "not a report"),
        (spoiled(format_version=9), "format version 9"),
        (lambda d: {k: v for k, v in d.items() if k != "engine"}, "damaged: KeyError at 'engine'"),
        (spoiled(providers=3), "damaged"),
        (spoiled(records=3), "damaged"),
        (spoiled(records=[3]), "damaged"),
        (spoiled(records=[]), "no records"),
        (with_record(iou="high"), "iou is 'high'"),
        (with_record(level="pixels"), "level is 'pixels'"),
        (with_record(more=1), "a record is damaged"),
    ],
)
def test_files_that_are_no_report(make_report, tmp_path, spoil, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(spoil(make_report(VALUES).to_json())))
    with pytest.raises(DatasetError, match=message):
        read_report(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_json(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot use .*r\.json"):
        read_report(tmp_path / "r.json")
    with pytest.raises(DatasetError, match=r"cannot read .*none\.json"):
        read_report(tmp_path / "none.json")
