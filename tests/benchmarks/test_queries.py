"""Queries timed for real on a tiny bundle: stages add up, and what ran is what was asked."""

import json

import pytest

from geomag_edge import Pipeline
from geomag_edge.benchmarks import queries
from geomag_edge.benchmarks.machine import machine
from geomag_edge.benchmarks.page import page
from geomag_edge.benchmarks.queries import DERIVED, STAGES, Ask, Inside
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.scenes import render_scene, write_scene

ASK = Ask("where are the ships?", "[SEG]", 4)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(render_scene(3, 256), tmp_path_factory.mktemp("scene") / "scene.tif")


@pytest.fixture(scope="module")
def cases(bundle, scene):
    opened = Bundle.open(bundle)
    with Pipeline.load(opened, "ort-cpu", threads=1) as pipe:
        pipes = {("ort-cpu", "fp32"): pipe}
        return queries.measure(opened, pipes, {256: scene}, ["2", "4+2x3"], ASK, 2)


@pytest.fixture(scope="module")
def report(bundle, cases):
    opened = Bundle.open(bundle)
    made = queries.report(
        opened, cases, ASK, 2, "geomag-edge bench b", machine(1), {("ort-cpu", "fp32"): 9.0}
    )
    return json.loads(json.dumps(made))


def test_every_case_has_its_rounds_and_its_answer(cases):
    assert [(c.budget, c.image_px, len(c.rounds)) for c in cases] == [
        ("2", 256, 2),
        ("4+2x3", 256, 2),
    ]
    assert [c.last.budget.visual_tokens for c in cases] == [4, 34]
    assert all(c.last.masks for c in cases)


def test_the_stages_add_up_to_the_whole(cases):
    for case in cases:
        for ms in case.rounds:
            assert sum(ms[stage] for stage in STAGES) == pytest.approx(ms["total"])
            assert all(ms[stage] >= 0 for stage in STAGES)
            assert 0 <= ms["outside"] < ms["total"]
            assert ms["first_token"] < ms["total"]


def test_the_report_holds_what_it_takes_to_repeat_and_to_compare(report):
    assert report["format"] == "geomag-edge bench"
    assert report["machine"]["versions"]["onnxruntime"]
    for case in report["cases"]:
        assert set(case["stages_ms"]) == {*STAGES, *DERIVED}
        assert len(case["stages_ms"]["total"]["rounds"]) == 2
        assert case["providers"]["llm"] == "CPUExecutionProvider"
        assert case["query_peak_mb"] >= 0


def test_time_in_the_graphs_is_counted(bundle, scene, tmp_path):
    with Pipeline.load(bundle, "ort-cpu", threads=1) as pipe:
        inside = Inside(pipe)
        ms, _ = queries.query(pipe, inside, scene, ASK, "2", tmp_path)
        graphs = sum(ms[s] for s in ("encode", "select", "project", "prefill", "decode", "mask"))
        assert 0 < inside.seconds * 1e3 <= graphs


def test_the_page_is_one_file_that_fetches_nothing(report):
    html = page(report)
    assert html.count("<svg") == 2
    for text in ("geomag-edge bench b", "4+2x3", "first token", "onnxruntime"):
        assert text in html
    assert "<script" not in html
    assert "src=" not in html


def test_names_are_escaped(report):
    html = page(report | {"prompt": "<b>ships</b>"})
    assert "<b>ships" not in html
    assert "&lt;b&gt;ships" in html


def test_nothing_to_measure_is_said(bundle, scene):
    with pytest.raises(InputError, match="nothing to measure"):
        queries.measure(Bundle.open(bundle), {}, {256: scene}, ["2"], ASK, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot read"),
        ("[]", "not a report"),
        ('{"format": "geomag-edge bench", "format_version": 99}', "format version 99"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, said):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        queries.read_report(path)
