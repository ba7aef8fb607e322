"""Histograms and calibrators: what they must hold for any data, and what is known exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geomag_edge.calibration.quantization.ranges import BINS, METHODS, SAMPLE, Histogram
from geomag_edge.errors import CalibrationError

MAGNITUDES = st.floats(0, 2.0**100, width=32)
BATCHES = st.lists(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=20), elements=MAGNITUDES),
    min_size=1,
    max_size=5,
)


def histogram(*batches):
    made = Histogram()
    for batch in batches:
        made.add(np.asarray(batch, np.float32))
    return made


def long_tailed(seed=0, count=200_000):
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_normal(count) ** 3).astype(np.float32)


@given(BATCHES)
@settings(max_examples=40)
def test_every_threshold_is_finite_above_zero_and_within_what_was_seen(batches):
    made = histogram(*batches)
    thresholds = made.thresholds()
    assert list(thresholds) == list(METHODS)
    top = max(float(batch.max()) for batch in batches)
    assert made.absmax == top
    for value in thresholds.values():
        assert np.isfinite(value)
        assert 0 < value <= (top or 1.0)
    if top:
        assert thresholds["minmax"] == top


@given(BATCHES, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_the_data_makes_no_difference(batches, random):
    shuffled = list(batches)
    random.shuffle(shuffled)
    a, b = histogram(*batches), histogram(*shuffled)
    assert (a.range, a.absmax, a.seen) == (b.range, b.absmax, b.seen)
    assert np.array_equal(a.counts, b.counts)
    assert a.thresholds() == b.thresholds()


@given(BATCHES)
@settings(max_examples=40)
def test_every_value_is_counted_once(batches):
    made = histogram(*batches)
    assert made.seen == sum(batch.size for batch in batches)
    if made.absmax:
        assert made.counts.sum() == made.seen


@given(st.integers(0, 9), st.floats(1e-12, 1e12))
@settings(max_examples=10)
def test_thresholds_scale_with_the_data(seed, factor):
    plain = histogram(long_tailed(seed, 50_000)).thresholds()
    scaled = histogram(long_tailed(seed, 50_000) * factor).thresholds()
    for method in METHODS:
        # Minima of entropy and of the squared error are flat: where bins fall decides among
        # thresholds that are as good (0.57 and 0.08 apart were seen in 120 draws).
        close = {"minmax": 1e-6, "entropy": 0.6, "mse": 0.1}.get(method, 0.05)
        assert scaled[method] / factor == pytest.approx(plain[method], rel=close)


@given(st.integers(-20, 20), st.integers(0, 9))
@settings(max_examples=10)
def test_a_power_of_two_scales_thresholds_exactly(power, seed):
    data = long_tailed(seed, 5_000)
    plain, scaled = histogram(data).thresholds(), histogram(data * 2.0**power).thresholds()
    assert scaled == {method: value * 2.0**power for method, value in plain.items()}


@pytest.mark.parametrize("value", [1e-6, 0.7, 1.0, 3.0, 1e9])
def test_a_constant_is_its_own_threshold(value):
    for found in histogram(np.full(1000, value)).thresholds().values():
        assert found == pytest.approx(value, rel=2 / BINS + 1e-6)


def test_zeros_are_held_by_any_scale():
    assert set(histogram(np.zeros((3, 4))).thresholds().values()) == {1.0}


def test_zeros_before_the_first_value_are_counted():
    made = histogram(np.zeros(10), [0.5, 1.0])
    assert made.counts[0] == 10
    assert made.counts.sum() == 12


def test_uniform_data_is_not_clipped():
    found = histogram(np.linspace(0, 2, 100_000)).thresholds()
    assert found["percentile"] == pytest.approx(2 * 0.9999, rel=1e-3)
    assert found["mse"] > 1.97
    assert found["entropy"] > 1.9


def test_long_tails_are_clipped_and_the_percentile_is_numpys():
    data = long_tailed()
    found = histogram(data).thresholds()
    assert found["mse"] < 0.85 * found["minmax"]
    assert found["entropy"] < 0.9 * found["minmax"]
    assert found["percentile"] == pytest.approx(np.percentile(data, 99.99), rel=0.02)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_mse_is_as_good_as_the_best_threshold_by_brute_force(power):
    data = np.abs(np.random.default_rng(1).standard_normal(50_000) ** power).astype(np.float32)

    def loss(threshold):
        step = threshold / 127
        return np.square(np.minimum(np.rint(data / step), 127) * step - data).mean()

    best = min(loss(t) for t in np.linspace(data.max() / 40, data.max(), 400))
    assert loss(histogram(data).thresholds()["mse"]) < 1.05 * best


def test_one_large_value_among_many_runs_widens_the_range_and_loses_nothing():
    made = histogram(*[np.full(100, 0.001)] * 50, [1000.0])
    assert made.absmax == 1000
    assert made.counts.sum() == 5001


def test_a_large_tensor_is_sampled_by_whole_rows():
    values = np.ones((SAMPLE // 16, 64), np.float32)
    values[:, 1] = 8.0  # a loud channel that a stride of 4 over all values would never meet
    made = histogram(values)
    assert made.seen == values.size
    assert SAMPLE <= made.counts.sum() < 2 * SAMPLE
    assert made.counts[BINS // 8 * 8 - 1] == made.counts.sum() // 64


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(CalibrationError, match="not finite"):
        histogram([1.0, bad])
