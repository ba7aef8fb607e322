"""Intervals: the draws, the ratios, and where an interval makes no sense."""

import numpy as np
import pytest

from geomag_edge.calibration.evaluation import bootstrap
from geomag_edge.calibration.evaluation.records import Sums


def test_each_resample_draws_as_many_pictures_as_there_are():
    chunks = list(bootstrap.draws(7, 250))
    counts = np.concatenate(chunks)
    assert counts.shape == (250, 7)
    assert (counts.sum(1) == 7).all()
    assert counts.min() >= 0


def test_draws_are_the_same_on_every_run():
    for one, two in zip(bootstrap.draws(5), bootstrap.draws(5), strict=True):
        np.testing.assert_array_equal(one, two)


def test_resampled_ratios_are_those_of_repeated_pictures():
    rng = np.random.default_rng(1)
    above, below = rng.random((6, 3)), rng.integers(0, 4, (6, 3)).astype(float)
    got = bootstrap.resampled(above, below)
    counts = np.concatenate(list(bootstrap.draws(6)))
    for draw, row in zip(counts[:50].astype(int), got, strict=False):
        rows = np.repeat(np.arange(6), draw)
        total = below[rows].sum(0)
        expected = np.where(total > 0, above[rows].sum(0) / np.maximum(total, 1e-9), np.nan)
        np.testing.assert_allclose(row, expected)


def test_the_interval_of_a_mean_is_near_the_normal_one():
    rng = np.random.default_rng(0)
    values = rng.random((400, 1))
    samples = bootstrap.resampled(values, np.ones((400, 1)))
    [(low, high)] = bootstrap.intervals(samples, np.array([400]))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.2 * half)


def test_one_picture_has_no_interval():
    ones = np.ones((1, 1))
    assert bootstrap.intervals(bootstrap.resampled(ones, ones), np.array([1])) == [None]


def test_a_group_in_few_pictures_ignores_resamples_without_it():
    below = np.zeros((10, 1))
    below[:2] = 1
    samples = bootstrap.resampled(below * [[0.5]], below)
    assert np.isnan(samples).any()
    assert bootstrap.intervals(samples, np.array([2])) == [(0.5, 0.5)]


def test_pictures_are_resampled_whole(record):
    """Ten questions about one picture tell no more than one: the interval stays as wide."""
    few = [record(i, "ab"[i], iou=float(i)) for i in range(2)]
    many = [record(10 * i + k, "ab"[i], iou=float(i)) for i in range(2) for k in range(10)]
    widths = []
    for records in (few, many):
        sums = Sums.of(records)
        c = sums.columns.index(("mIoU", "all"))
        samples = bootstrap.resampled(sums.above[:, [c]], sums.below[:, [c]])
        widths += bootstrap.intervals(samples, sums.pictures[[c]])
    assert widths == [(0.0, 1.0), (0.0, 1.0)]


def test_ciou_divides_all_intersections_by_all_unions(record):
    records = [
        record(1, "a", intersection_px=10, union_px=10, iou=1.0),
        record(2, "a", intersection_px=0, union_px=90, iou=0.0),
        record(3, "b", intersection_px=50, union_px=100, iou=0.5),
    ]
    sums = Sums.of(records)
    values = dict(zip(sums.columns, bootstrap.ratio(sums.above, sums.below), strict=True))
    assert values["cIoU", "all"] == pytest.approx(60 / 200)
    assert values["mIoU", "all"] == pytest.approx(0.5)
