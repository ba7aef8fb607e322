"""The machine's latency model: measured on a real bundle, remembered, not trusted blindly."""

import pytest

from geomag_edge import Pipeline
from geomag_edge.runtime.chain import probe
from geomag_edge.runtime.planning.latency import STAGES


@pytest.fixture(scope="module")
def pipe(bundle):
    with Pipeline.load(bundle, engine="ort-cpu", threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def model(pipe):
    return probe.measure(pipe)


def test_every_stage_costs_something_and_more_of_it_costs_no_less(model):
    for name in ("crop", "encode", "project", "prefill", "step", "mask"):
        line = getattr(model, name)
        assert sum(line) > 0
        assert all(c >= 0 for c in line)
    assert model.spread >= 1


def test_predicts_a_query_within_its_spread_of_the_real_one(pipe, model):
    image = probe.picture(512)
    for budget in ("1", "pixel"):
        ran = [pipe(image, probe.PROMPT, budget, 4, probe.PREFIX) for _ in range(5)]
        fastest = min(r.timings_ms["total"] for r in ran)
        found = model.query(ran[0].budget, 1, 30, ran[0].decode_steps + 1)
        assert set(found) == set(STAGES)
        assert 0.1 * sum(found.values()) < fastest < 10 * sum(found.values()) * model.spread


def test_a_model_is_measured_once_and_then_remembered(pipe, monkeypatch):
    asked = []
    monkeypatch.setattr(probe, "measure", lambda pipe, progress: asked.append(1) or MODEL)
    for _ in range(2):
        assert probe.model_of(pipe, threads=7) == MODEL
    assert asked == [1]
    probe.model_of(pipe, threads=7, anew=True)
    assert asked == [1, 1]
    path = probe.place(pipe, 7)
    path.write_text("{}")
    assert probe.model_of(pipe, threads=7) == MODEL
    assert asked == [1, 1, 1]


def test_what_the_times_depend_on_decides_where_they_are_kept(pipe):
    assert probe.place(pipe, 1) != probe.place(pipe, 2)
    assert probe.place(pipe, 1) == probe.place(pipe, 1)


MODEL = probe.LatencyModel((1.0,), (1.0,), (1.0,), (1.0,), (1.0,), (1.0,), (1.0,), 1.0, "made up")
