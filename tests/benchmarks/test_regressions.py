"""Two runs compared: a slowdown of 20 % in any stage is seen, noise is not."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.benchmarks.queries import DERIVED, STAGES
from geomag_edge.benchmarks.regressions import changes, differences
from geomag_edge.benchmarks.timing import percentiles
from geomag_edge.cli.commands.bench import comparison_text
from geomag_edge.errors import InputError


def run(seed, **factors):
    """A made report of 15 rounds with 3 % noise; `factors` slow stages down."""
    rng = np.random.default_rng(seed)
    stages = {}
    for i, stage in enumerate((*STAGES, *DERIVED)):
        rounds = ((i + 1) * factors.get(stage, 1) * rng.lognormal(0, 0.03, 15)).tolist()
        stages[stage] = percentiles(rounds) | {"rounds": rounds}
    case = {
        "engine": "ort-cpu", "precision": "fp32", "budget": "8", "image_px": 512,
        "stages_ms": stages,
    }  # fmt: skip
    host = {"cpu": "a", "cores": 2, "threads": 1, "governor": None, "power_mode": None}
    return {
        "cases": [case], "machine": host | {"versions": {"numpy": "2"}}, "checkpoint_sha256": "x",
    }  # fmt: skip


@pytest.mark.parametrize("stage", [*STAGES, *DERIVED])
def test_a_stage_that_got_20_percent_slower_is_named(stage):
    found = changes(run(1), run(2, **{stage: 1.2}))
    assert [c.stage for c in found if c.verdict == "slower"] == [stage]
    assert not any(c.verdict == "faster" for c in found)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_noise_alone_is_no_change(seed):
    assert {c.verdict for c in changes(run(seed), run(seed + 1))} == {"same"}


def test_a_slowdown_that_noise_may_have_made_is_shown_as_such():
    before, after = run(1), run(1)
    for report, factor in ((before, 1.0), (after, 1.2)):
        rounds = [factor * ms for ms in (8, 9, 10, 11, 14, 18, 30)]
        report["cases"][0]["stages_ms"]["encode"] = percentiles(rounds) | {"rounds": rounds}
    found = changes(before, after)
    assert {c.stage: c.verdict for c in found if c.verdict != "same"} == {"encode": "slower?"}
    text = "\n".join(comparison_text(found, []))
    assert "encode" in text
    assert "1 too noisy to tell" in text


def test_a_gain_is_seen_the_other_way_round():
    found = changes(run(1, encode=1.3), run(2))
    assert [(c.stage, c.verdict) for c in found if c.verdict != "same"] == [("encode", "faster")]


def test_a_few_microseconds_are_no_change():
    before, after = run(1), run(2)
    for report, ms in ((before, 0.004), (after, 0.012)):
        report["cases"][0]["stages_ms"]["crop"] = {"p50": ms, "rounds": [ms] * 15}
    crop = next(c for c in changes(before, after) if c.stage == "crop")
    assert (round(crop.ratio), crop.verdict) == (3, "same")


def test_few_rounds_are_said_to_prove_little():
    before, after = run(1), run(2)
    assert differences(before, after) == []
    total = after["cases"][0]["stages_ms"]["total"]
    total["rounds"] = total["rounds"][:2]
    assert "2 rounds are too few" in differences(before, after)[0]


def test_runs_without_a_common_case_are_refused():
    other = copy.deepcopy(run(1))
    other["cases"][0]["budget"] = "4"
    with pytest.raises(InputError, match="no case in common"):
        changes(run(1), other)


def test_says_what_else_differs():
    other = run(1)
    other["machine"] |= {"cpu": "b", "versions": {"numpy": "3", "torch": "2"}}
    assert differences(run(1), run(1)) == []
    assert differences(run(1), other) == ["cpu: a -> b", "numpy: 2 -> 3", "torch: None -> 2"]
