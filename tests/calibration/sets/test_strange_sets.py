"""Sets from strangers: any field of a question may be anything, and names stay inside the set."""

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from geomag_edge.calibration.evaluation.records import Record
from geomag_edge.calibration.evaluation.report import Report
from geomag_edge.calibration.sets.calibrating import MIN_QUESTIONS, open_calibration_set
from geomag_edge.calibration.sets.datasets import open_dataset
from geomag_edge.calibration.sets.folder import FIELDS
from geomag_edge.errors import DatasetError, GeoMagError

ODD = [
    None, True, 0, -1, 1.5, 2**62, 10**18, 1e300, -1e300, 1e-320, "", "x" * 30_000, "nan", "../a",
    "/etc/passwd", "a.png\0", "a" * 300, "pixel", "describe_box", [], {}, [[]], [None], ["1"] * 4,
    [[0, 0, 1, 1]], [[0, 0, 1e300, 1]], [["0", "0", "nan", "1"]], [[5, 5, 1, 1]], [[0] * 5],
    [10**18], [True], {"x": 1}, "\x1b[31m", "\u202e", " ", "NETCDF:a.png:x", "images",
]  # fmt: skip
values = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=9), x, max_size=4),
    max_leaves=6,
)
ASKED = [
    {"image": "images/a.png", "level": "image", "prompt": "what?", "answer": "a ship"},
    {"image": "images/a.png", "level": "region", "prompt": "what?", "answer": "a ship",
     "kind": "describe_box", "boxes": [[1, 2, 30, 20]]},
    {"image": "images/a.png", "level": "pixel", "prompt": "ships", "mask": "masks/a.png",
     "mask_ids": [1]},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for name, array in (("images", np.full((40, 60, 3), 9, np.uint8)),
                        ("masks", np.eye(40, 60, dtype=np.uint8))):  # fmt: skip
        (root / name).mkdir()
        Image.fromarray(array).save(root / name / "a.png")
    return root


def write(folder, *questions):
    lines = [q if isinstance(q, str) else json.dumps(q) for q in questions]
    (folder / "questions.jsonl").write_text("\n".join(lines))


def said_of(read, folder):
    """What is wrong with a set, in a short line; nothing where it can be read."""
    refusal = None
    try:
        read(folder)
    except GeoMagError as e:
        refusal = e
    said = str(refusal or "").replace(str(folder), "set")
    assert len(said) < 300
    assert refusal is None or refusal.exit_code == 2
    return said


def read_all(folder):
    for picture in open_dataset(folder).pictures():
        for item in picture.items:
            item.longer_side_px()


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ASKED), st.sampled_from([*FIELDS, "x"]), values)
def test_any_field_of_a_question_may_be_anything(folder, question, field, value):
    write(folder, question | {field: value})
    said_of(read_all, folder)
    write(folder, *[ASKED[0]] * MIN_QUESTIONS, question | {field: value})
    said_of(open_calibration_set, folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "images/../../a.png", "", "a\0.png",
                                  "a" * 256, "a/" * 600, "NETCDF:images/a.png:x",
                                  "http://127.0.0.1:9/a.png", "/vsicurl/http://127.0.0.1:9/a.png",
                                  "<VRTDataset/>", "images"])  # fmt: skip
@pytest.mark.parametrize("field", ["image", "mask"])
def test_a_name_is_that_of_a_file_in_the_set(folder, monkeypatch, name, field):
    """From wherever the set is looked at: a relative one must not make GDAL's names of it."""
    monkeypatch.chdir(folder)
    question = ASKED[2] | {field: name}
    write(folder, *[question] * MIN_QUESTIONS)
    assert said_of(open_dataset, ".")
    if field == "image":
        assert said_of(open_calibration_set, "questions.jsonl")


LINES = {
    "a number of 5,000 digits": '{"image": ' + "9" * 5000 + "}",
    "a name twice": '{"image": "images/a.png", "image": "images/a.png", "prompt": "x"}',
    "a line of a megabyte": json.dumps(ASKED[0] | {"prompt": "x" * 1_100_000}),
    "a long prompt": json.dumps(ASKED[0] | {"prompt": "x" * 30_000}),
    "half a pair": '{"image": "images/a.png", "prompt": "\\ud800"}',
    "infinite": '{"image": "images/a.png", "prompt": "x", "boxes": [[0, 0, 1e999, 1]]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("read", [open_dataset, open_calibration_set])
@pytest.mark.parametrize("case", LINES)
def test_a_line_out_of_bounds_is_named(folder, read, case):
    write(folder, *[ASKED[0]] * MIN_QUESTIONS, LINES[case])
    assert "line 9" in said_of(read, folder)


@pytest.mark.parametrize("read", [open_dataset, open_calibration_set])
def test_a_set_of_newlines_ends(folder, read):
    (folder / "questions.jsonl").write_bytes(b"\n" * 600_000)
    assert "more than 500000 lines" in said_of(read, folder)


@pytest.mark.parametrize("read", [open_dataset, open_calibration_set])
def test_a_set_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "questions.jsonl")
    assert said_of(read, tmp_path)


@pytest.mark.parametrize("spec", ["scenes:", "scenes:x", "scenes:1", "scenes:1:0", "scenes:1:1:1",
                                  "scenes:1:1:99999", "scenes:-1:5", "scenes:1:2:3:4",
                                  "scenes:" + "9" * 5000, "scenes:1e9:1", "scenes:\0"])  # fmt: skip
@pytest.mark.parametrize("read", [open_dataset, open_calibration_set])
def test_scenes_that_cannot_be_are_refused(spec, read):
    with pytest.raises(DatasetError) as e:
        read(spec)
    assert len(str(e.value)) < 300


def test_a_report_of_thousands_of_kinds_is_refused():
    """Each is a group with intervals: a matrix of all of them against all pictures."""
    record = Record("1", "a", "image", "x", "p", "e", 9, None, "t", "image", 1, 1.0).to_json()
    head = {"format": "geomag-edge evaluation", "format_version": 1, "providers": {},
            "budget": None, "untrained": [], "latency_ms": {}} | dict.fromkeys(
                ("dataset", "bundle", "checkpoint", "engine", "precision"), "x")  # fmt: skip
    records = [record | {"id": str(i), "kind": str(i)} for i in range(300)]
    with pytest.raises(DatasetError, match="300 kinds"):
        Report.from_json(head | {"records": records})
