"""A deadline while a query runs: late stages cost crops and words, never the mask."""

import dataclasses

import numpy as np
import pytest

from geomag_edge import Pipeline
from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import BudgetError
from geomag_edge.runtime.chain.deadline import Deadline
from geomag_edge.runtime.chain.scene_session import SceneSession
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.planning.latency import LatencyModel
from geomag_edge.runtime.planning.planner import Planner

PROMPT = "segment the ships near the pier"
FREE = LatencyModel((0.0,), (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), (0.0,), 1.0, "made up")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def pass_ms(self, ms):
        self.seconds += ms / 1e3


@pytest.fixture(scope="module")
def pipe(bundle):
    with Pipeline.load(bundle, engine="ort-cpu") as pipe:
        yield pipe


class FreeCuts(Deadline):
    """Cuts cost what the made-up model says, not what they took on a busy machine."""

    def saw_crop(self, ms):
        super().saw_crop(0.0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ask(pipe, picture, clock):
    """Asks with a made-up model, a made-up clock, and a number of forced words."""

    def asked(latency_ms, spent_ms=0.0, tokens=6, **costs):
        planner = Planner(pipe.bundle.manifest, dataclasses.replace(FREE, **costs), None)
        deadline = FreeCuts(planner, latency_ms, now=clock)
        clock.pass_ms(spent_ms)
        with pipe.open(picture) as session:
            return session.ask(PROMPT, None, tokens, "[SEG]", deadline=deadline)

    return asked


def test_where_nothing_costs_anything_the_answer_is_that_of_the_largest_budget(pipe, ask, picture):
    got = ask(50)
    budgets = Planner(pipe.bundle.manifest, FREE, None).budgets(got.granularity)
    most = max(budgets, key=lambda b: b.visual_tokens)
    expected = pipe(picture, PROMPT, most, 6, "[SEG]")
    assert got.budget == most
    assert got.token_ids == expected.token_ids
    np.testing.assert_array_equal(got.masks[0], expected.masks[0])
    assert got.deadline["kept"]
    assert got.deadline["fits"]
    assert (got.deadline["dropped_crops"], got.deadline["shortened"]) == (0, False)


def test_the_time_that_is_left_decides_the_budget(ask):
    costs = {"encode": (0.0, 10.0)}
    tokens = [ask(ms, **costs).budget.visual_tokens for ms in (12, 25, 60)]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[-1]
    late = ask(60, spent_ms=59, **costs)
    assert late.budget.crops == 0


def test_words_end_in_time_and_the_mask_is_still_there(ask):
    got = ask(100, spent_ms=99, tokens=6, step=(5.0,), mask=(0.5,))
    assert got.stopped == "deadline"
    assert got.deadline["shortened"]
    assert len(got.masks) == 1  # its [SEG] was forced before


def test_the_cheapest_budget_runs_where_none_fits(pipe, ask):
    got = ask(1, encode=(100.0,), prefill=(0.0, 1.0))
    assert not got.deadline["fits"]
    assert got.budget.visual_tokens <= min(
        b.visual_tokens for b in Planner(pipe.bundle.manifest, FREE, None).budgets(got.granularity)
    )


def pace(pipe, clock, latency_ms, **costs):
    model = dataclasses.replace(FREE, **costs)
    deadline = Deadline(Planner(pipe.bundle.manifest, model, None), latency_ms, now=clock)
    deadline.plan("pixel", 1, 20)
    return deadline


def test_crops_are_dropped_one_by_one_as_time_runs_out(pipe, clock):
    deadline = pace(pipe, clock, 100, encode=(0.0, 10.0))
    planned = deadline.planned.crops
    assert planned > 1
    assert deadline.views(planned, False, 0) == planned
    clock.pass_ms(100 - 10 * planned + 5)
    assert deadline.views(planned, False, 0) == planned - 1
    clock.pass_ms(10 * planned)
    assert deadline.views(planned, False, 0) == 0


def test_a_slow_file_makes_every_further_cut_dear(pipe, clock):
    deadline = pace(pipe, clock, 100, crop=(0.0, 1.0))
    assert deadline.views(2, False, 0) == 2
    deadline.saw_crop(60)
    assert deadline.views(2, False, 0) == 1


def test_tokens_shrink_before_the_prompt_is_read(pipe, clock):
    deadline = pace(pipe, clock, 1000, prefill=(0.0, 1.0))
    full = deadline.planned
    assert deadline.tokens(full.crops) == full
    clock.pass_ms(1000 - 20 - full.visual_tokens + 1)
    fewer = deadline.tokens(full.crops)
    assert fewer.crops == full.crops - 1
    assert fewer.global_grid == full.global_grid
    clock.pass_ms(full.visual_tokens)
    assert deadline.tokens(full.crops) == TokenBudget(1)


def test_reports_planned_against_actual(pipe, clock):
    deadline = pace(pipe, clock, 100, encode=(0.0, 10.0))
    clock.pass_ms(120)
    report = deadline.closed(deadline.planned, "end")
    assert (report["kept"], report["actual_ms"], report["latency_ms"]) == (False, 120.0, 100)
    assert 0 < report["planned_ms"] <= 100
    assert report["planned_budget"] == str(deadline.planned)


def test_a_budget_and_a_time_exclude_each_other(pipe, picture):
    with pytest.raises(BudgetError, match="exclude each other"):
        pipe(picture, PROMPT, "pixel", latency_ms=50)
    with pytest.raises(BudgetError, match="not possible"):
        Pipeline.load(pipe.bundle, latency_ms=-1)


def test_a_session_of_a_pipeline_takes_a_time_as_the_pipeline_does(pipe, picture, monkeypatch):
    planner = Planner(pipe.bundle.manifest, FREE, None)
    monkeypatch.setattr(pipe, "planner", lambda progress=None: planner)
    with pipe.open(picture) as session:
        got = session.ask(PROMPT, max_new_tokens=4, latency_ms=60_000)
        assert got.deadline["latency_ms"] == 60_000
        with pytest.raises(BudgetError, match="exclude each other"):
            session.ask(PROMPT, "pixel", latency_ms=60_000)
        with pytest.raises(BudgetError, match="beside a deadline"):
            session.ask(PROMPT, deadline=Deadline(planner, 60_000), latency_ms=60_000)


def test_a_session_without_a_pipeline_says_where_times_are_planned(pipe, picture):
    session = SceneSession(pipe.chain, Scene.open(picture))
    with session, pytest.raises(BudgetError, match=r"Pipeline\.open"):
        session.ask(PROMPT, latency_ms=60_000)
