"""From a time to a budget: the best expected answer that fits, and what it is expected to lose."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.errors import BudgetError, BundleError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.planning.frontier import Frontier, Point, candidates, frontier_of
from geomag_edge.runtime.planning.latency import LatencyModel
from geomag_edge.runtime.planning.planner import Planner

MODEL = LatencyModel(
    crop=(0.0, 1.0), encode=(2.0, 10.0), select=(0.5,), project=(0.1,), prefill=(1.0, 0.1),
    step=(2.0,), mask=(1.0, 2.0), spread=1.2, source="made up",
)  # fmt: skip


def frontier(**worth):
    """A frontier of the pixel level: `b8="0.5"` says what the budget 8 is worth."""
    points = tuple(Point(TokenBudget(int(n[1:])), v, None, None) for n, v in worth.items())
    return Frontier("a set", "ort-cpu", "fp32", {"pixel": 9}, {"pixel": 5}, {"pixel": points})


@pytest.fixture(scope="module")
def manifest(bundle):
    return Bundle.open(bundle).manifest


@given(latency=st.floats(1, 1000), levels=st.integers(1, 3), level=st.sampled_from(LEVELS))
def test_what_is_chosen_fits_and_nothing_with_more_tokens_would(manifest, latency, levels, level):
    plan = Planner(manifest, MODEL, None).plan(level, latency, levels)
    if plan.fits:
        assert plan.chosen.safe_ms <= latency
        more = [o for o in plan.options if o.safe_ms <= latency]
        tokens = plan.chosen.budget.visual_tokens
        assert tokens == max(o.budget.visual_tokens for o in more)
    else:
        assert plan.chosen is plan.options[0]
        assert all(o.safe_ms > latency for o in plan.options)
    assert plan.loss is None  # nothing was measured


def test_measured_worth_counts_more_than_tokens(manifest):
    planner = Planner(manifest, MODEL, frontier(b1=0.2, b2=0.6, b4=0.5))
    plan = planner.plan("pixel", 1000, 1)
    assert (str(plan.chosen.budget), plan.loss, plan.metric) == ("2", 0.0, "mIoU")
    costs = {str(o.budget): o.safe_ms for o in plan.options}
    tight = planner.plan("pixel", (costs["1"] + costs["2"]) / 2, 1)
    assert (str(tight.chosen.budget), tight.fits) == ("1", True)
    assert tight.loss == pytest.approx(0.4)


def test_of_equal_worth_the_cheaper_is_taken(manifest):
    planner = Planner(manifest, MODEL, frontier(b1=0.5, b4=0.5))
    assert str(planner.plan("pixel", 1000, 1).chosen.budget) == "1"


@pytest.mark.parametrize("latency", [0, -3, float("inf"), float("nan")])
def test_no_time_is_no_plan(manifest, latency):
    with pytest.raises(BudgetError, match="not possible"):
        Planner(manifest, MODEL, None).plan("pixel", latency, 1)


def test_candidates_run_from_a_glance_to_the_level_s_own(manifest):
    for level, budgets in candidates(manifest.budgets).items():
        assert manifest.budgets[level] in budgets
        tokens = [b.visual_tokens for b in budgets]
        assert tokens == sorted(tokens)
        assert len(set(budgets)) == len(budgets)
        assert any(not b.crops for b in budgets)


def test_a_frontier_goes_through_its_file(bundle, tmp_path):
    made = frontier(b1=0.25, b8=0.5)
    assert Frontier.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert frontier_of(Bundle.open(bundle)) is None
    with pytest.raises(BundleError, match="format version"):
        Frontier.from_json(made.to_json() | {"format_version": 9})
    with pytest.raises(BundleError, match="damaged"):
        Frontier.from_json(made.to_json() | {"points": {"pixel": [{"budget": {}}]}})
