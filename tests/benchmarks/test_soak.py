"""The soak notices an answer that differs and what grows, and counts what was refused."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from geomag_edge.benchmarks.speed.soak import Asked, growth, measure
from geomag_edge.errors import ImageError


@pytest.mark.parametrize(
    ("taken", "grown"),
    [
        ([100.0] * 50, 0),
        ([50.0] * 10 + [100.0] * 40, 0),  # the warm-up does not count
        ([100.0] * 40 + [103.0] * 10, 0.03),
        ([100.0] * 40 + [100.0] * 9 + [900.0], 0),  # nor does one peak
        ([7.0], 0),
        ([0.0] * 20, 0),
    ],
)
def test_growth_is_that_after_the_warm_up(taken, grown):
    assert growth(taken)["growth"] == pytest.approx(grown)


@dataclasses.dataclass
class Pipe:
    """Answers with the prompt; from some query on with something else."""

    wrong_from: int
    asked: int = 0

    def __call__(self, image, prompt, budget, words, prefix):
        self.asked += 1
        if image is None:
            raise ImageError("no image")
        return SimpleNamespace(
            crop_boxes=np.zeros((0, 4)), relevance=np.zeros((2, 2)), boxes=[], notes=[],
            masks=[np.full((2, 2), self.asked >= self.wrong_from)], text=prompt,
            granularity="pixel", budget=budget,
        )  # fmt: skip


@pytest.mark.parametrize(("wrong_from", "good"), [(10**6, True), (40, False)])
def test_an_answer_that_differs_by_a_pixel_is_counted(wrong_from, good):
    pool = [Asked(None, "what?", "1", 1, ""), Asked("a", "one", "1", 1, ""),
            Asked("b", "two", "1", 1, "")]  # fmt: skip
    found = measure(Pipe(wrong_from), pool, queries=100, threads=3, seed=1)
    assert found["queries"] == 100
    assert 0 < found["refused"] < 100
    assert (found["different"] == 0) is good
    assert found["good"] is (good and all(u["growth"] <= 0.01 for u in found["usage"].values()))
