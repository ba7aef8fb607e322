"""The latency model: fits that never get cheaper with more work, stages that add up."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from geomag_edge.budgets import TokenBudget
from geomag_edge.runtime.planning.latency import STAGES, LatencyModel, at, fitted, looks
from geomag_edge.views import choose_crops

POINTS = st.lists(
    st.tuples(st.integers(1, 1000), st.floats(0.01, 1e4)), min_size=1, max_size=6,
    unique_by=lambda p: p[0],
)  # fmt: skip


def model(**changes):
    lines = {
        "crop": (0.0, 1.0), "encode": (2.0, 10.0), "select": (0.5,), "project": (0.1, 0.001),
        "prefill": (1.0, 0.1, 0.001), "step": (2.0, 0.01), "mask": (1.0, 2.0),
    }  # fmt: skip
    return LatencyModel(**(lines | {"spread": 1.5, "source": "made up"} | changes))


@given(POINTS, st.integers(0, 2))
def test_more_work_never_costs_less(points, degree):
    line = fitted([x for x, _ in points], [ms for _, ms in points], degree)
    values = [at(line, x) for x in range(0, 2000, 50)]
    assert values == sorted(values)
    assert values[0] >= 0


@given(
    st.tuples(st.floats(0.1, 100), st.floats(0.01, 1), st.floats(1e-5, 1e-2)),
    st.lists(st.integers(1, 1000), min_size=3, max_size=5, unique=True),
)
def test_a_polynomial_is_found_again(line, x):
    assume(max(x) - min(x) > 10)
    found = fitted(x, [at(line, n) for n in x], 2)
    for n in x:
        assert at(found, n) == pytest.approx(at(line, n), rel=1e-3)


def test_one_point_gives_one_term():
    assert fitted([7], [3.0], 2) == (pytest.approx(3.0), 0.0, 0.0)


@given(st.integers(0, 12), st.integers(1, 4))
def test_calls_of_the_encoder_are_those_of_the_pyramid(crops, levels):
    import numpy as np

    calls = [1]
    boxes = np.array([[i * 10.0, 0, i * 10 + 5, 5] for i in range(40)], np.float32)
    scores = np.linspace(1, 0.5, 40, dtype=np.float32)
    seen = []

    def look_again(chosen):
        seen.append(len(chosen))
        shift = np.array([0, 10.0 * len(seen), 0, 10.0 * len(seen)], np.float32)
        return [(boxes + shift, scores)]

    found, _ = choose_crops((boxes, scores), crops, levels, 0.3, look_again)
    last = len(found) - sum(seen)
    assert looks(crops, levels) == calls + seen + ([last] if last else [])


def test_a_query_is_the_sum_of_its_calls():
    found = model().query(TokenBudget(8, 4, 4), levels=2, text_tokens=22, answer_tokens=11)
    assert tuple(found) == STAGES
    assert found["crop"] == 1 + 2 + 2
    assert found["encode"] == 3 * 2 + 5 * 10
    assert found["select"] == 0.5 * 3
    assert found["prefill"] == pytest.approx(1 + 0.1 * 150 + 0.001 * 150**2)
    assert found["decode"] == pytest.approx(10 * (2 + 0.01 * 155.5))
    assert found["mask"] == 1 + 2 * 5


def test_goes_through_json():
    import json

    assert LatencyModel.from_json(json.loads(json.dumps(model().to_json()))) == model()
    for damaged in ({}, model().to_json() | {"encode": "x"}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            LatencyModel.from_json(damaged)
