"""Timing: forms in turn, percentiles that were measured, ratios with an interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.benchmarks.timing import (
    interleaved,
    medians,
    percentiles,
    ratio,
    ratios,
    spreads,
    stage_medians,
)

TIMES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40)


def test_forms_run_in_turn_and_warm_up_untimed():
    order = []
    taken = interleaved({n: lambda n=n: order.append(n) for n in "ab"}, rounds=2, warmup=1)
    assert order == list("ab" * 3)
    assert {n: len(t["wall_ms"]) for n, t in taken.items()} == {"a": 2, "b": 2}
    assert all(ms >= 0 for t in taken.values() for ms in [*t["wall_ms"], *t["cpu_ms"]])


@given(TIMES)
def test_percentiles_are_measured_values_in_order(values):
    found = percentiles(values)
    assert found["p50"] <= found["p90"] + 1e-9
    assert found["p90"] <= found["p99"] <= max(values)
    assert found["p90"] in values
    assert found["p99"] in values


@given(TIMES, st.floats(0.1, 10))
def test_a_form_that_takes_k_times_as_long_has_ratio_k(values, factor):
    found = ratio([v * factor for v in values], values)
    for name in ("ratio", "low", "high"):
        assert found[name] == pytest.approx(factor, rel=1e-6)


def test_the_interval_holds_the_true_ratio_of_noisy_rounds():
    rng = np.random.default_rng(1)
    slow, fast = 12 * rng.lognormal(0, 0.1, 60), 10 * rng.lognormal(0, 0.1, 60)
    found = ratio(slow.tolist(), fast.tolist(), paired=False)
    assert found["low"] < 1.2 < found["high"]
    assert found["low"] < found["ratio"] < found["high"]


def test_forms_are_summed_up_by_clock():
    slow, fast = ({"wall_ms": [k, 2 * k, 9 * k], "cpu_ms": [k, k, k]} for k in (6.0, 2.0))
    taken = {"slow": slow, "fast": fast}
    assert medians(taken) == {"slow": 12, "fast": 4}
    assert medians(taken, "cpu_ms") == {"slow": 6, "fast": 2}
    assert spreads(taken)["fast"]["wall_ms"] == percentiles([2, 4, 18])
    assert {clock: found["ratio"] for clock, found in ratios(slow, fast).items()} == {
        "wall_ms": 3,
        "cpu_ms": 3,
    }
    assert stage_medians([{"read": 1.0}, {"read": 5.0}, {"read": 2.0}]) == {"read": 2}
