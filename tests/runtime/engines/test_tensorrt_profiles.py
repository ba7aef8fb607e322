"""Profiles from token budgets: every size that the chain can ask for has exactly one place."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.errors import BudgetError, EngineError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Manifest
from geomag_edge.runtime.engines.tensorrt.profiles import (
    Profile,
    limits_of,
    plans_of,
    profiles_of,
    up_to,
)
from geomag_edge.runtime.engines.tensorrt.record import BuildRecord, EngineFile
from geomag_edge.targets import find_target

GOLDEN = Path(__file__).parents[2] / "spine" / "golden" / "bundle.json"


@pytest.fixture(scope="module")
def manifest():
    return Manifest.from_json(json.loads(GOLDEN.read_text()))


budgets = st.builds(
    lambda g, k, c: TokenBudget(g, k, c if k else 0),
    st.integers(1, 24), st.integers(0, 8), st.integers(1, 24),
)  # fmt: skip
tables = st.fixed_dictionaries({level: budgets for level in LEVELS})
contexts = st.integers(2, 9000)


def changed(manifest, table, context=8192):
    crops = max(1, *(b.crops for b in table.values()))
    return dataclasses.replace(
        manifest,
        budgets=table,
        psc=dataclasses.replace(manifest.psc, max_crops=crops),
        prompt=dataclasses.replace(manifest.prompt, context=context),
    )


@given(tables, contexts)
def test_spans_are_in_order_and_inside_the_limits(manifest, table, context):
    manifest = changed(manifest, table, context)
    limits = limits_of(manifest)
    assert limits.capacity <= context
    for many in (True, False):
        profiles = profiles_of(manifest, many)
        assert list(profiles) == list(CHAIN)
        for graph in profiles.values():
            for profile in graph:
                for low, usual, most in profile.axes.values():
                    assert low <= usual <= most


@given(tables, contexts, st.data())
def test_every_prompt_length_has_exactly_one_prefill_profile(manifest, table, context, data):
    manifest = changed(manifest, table, context)
    limits = limits_of(manifest)
    length = data.draw(st.integers(1, limits.prompt))
    for many in (True, False):
        holding = [
            p for p in profiles_of(manifest, many)["llm"]
            if p.name != "decode" and p.holds({"T": length, "N": 0})
        ]  # fmt: skip
        assert len(holding) == 1


@given(tables, st.data())
def test_every_past_that_fits_the_cache_decodes(manifest, table, data):
    manifest = changed(manifest, table)
    limits = limits_of(manifest)
    past = data.draw(st.integers(1, limits.capacity - 1))
    decode = profiles_of(manifest)["llm"][0]
    assert decode.holds({"B": 1, "T": 1, "N": past, "N+T": past + 1})
    assert not decode.holds({"N": limits.capacity})


@given(tables, st.data())
def test_with_a_fixed_cache_the_number_of_new_tokens_alone_chooses(manifest, table, data):
    manifest = changed(manifest, table)
    profiles = profiles_of(manifest, cache="fixed")
    assert {k: v for k, v in profiles.items() if k != "llm"} == {
        k: v for k, v in profiles_of(manifest).items() if k != "llm"
    }
    decode, *prefill = profiles["llm"]
    assert decode.axes == {"B": (1, 1, 1), "T": (1, 1, 1)}
    length = data.draw(st.integers(1, limits_of(manifest).prompt))
    assert sum(p.holds({"B": 1, "T": length}) for p in prefill) == 1


@given(tables, st.data())
def test_every_number_of_views_up_to_the_budgets_has_exactly_one_profile(manifest, table, data):
    manifest = changed(manifest, table)
    views = data.draw(st.integers(1, limits_of(manifest).views))
    assert sum(p.holds({"n": views}) for p in profiles_of(manifest)["encoder"]) == 1


@given(tables)
def test_the_budgets_own_sizes_are_inside(manifest, table):
    manifest = changed(manifest, table)
    profiles = profiles_of(manifest)
    for budget in table.values():
        length = budget.visual_tokens + 20
        assert any(p.holds({"T": length, "N": 0}) for p in profiles["llm"])
        assert profiles["mask_head"][0].holds({"n": 1 + budget.crops, "m": 1})


def test_levels_that_cost_the_same_share_a_profile(manifest):
    same = TokenBudget(3, 2, 2)
    table = {"image": TokenBudget(3), "region": same, "pixel": same}
    names = [p.name for p in profiles_of(changed(manifest, table))["llm"]]
    assert names == ["decode", "prefill-9", "prefill-17"]


def test_a_model_of_one_crop_has_no_profile_for_groups(manifest):
    table = dict.fromkeys(LEVELS, TokenBudget(3, 1, 2))
    assert [p.name for p in profiles_of(changed(manifest, table))["encoder"]] == ["whole"]


def test_shapes_follow_the_axes_and_keep_what_is_fixed():
    profile = Profile("p", {"n": (1, 2, 4), "N": (0, 0, 0)})
    shapes = profile.shapes(
        {
            "views": (("n", 3, "S", "S"), (-1, 3, 64, 64)),
            "past": ((1, "N"), (1, -1)),
            "fixed": ((4,), (4,)),
        }
    )
    assert shapes == {
        "views": ([1, 3, 64, 64], [2, 3, 64, 64], [4, 3, 64, 64]),
        "past": ([1, 0], [1, 0], [1, 0]),
    }


def test_a_target_of_single_profiles_gets_an_engine_each_and_one_prefill(manifest):
    stems = [p.stem for p in plans_of(manifest, find_target("jetpack6"))]
    largest = max(b.visual_tokens for b in manifest.budgets.values())
    assert stems == [
        "encoder.whole", "encoder.crops", "psc_select", "projector", "embed", "llm.decode",
        f"llm.prefill-{largest}", "mask_head",
    ]  # fmt: skip
    assert all(len(p.profiles) == 1 for p in plans_of(manifest, find_target("jetpack6")))
    many = plans_of(manifest, find_target("tensorrt-rtx"))
    assert [p.stem for p in many] == list(CHAIN)


@given(tables, st.sampled_from(LEVELS))
def test_fewer_budgets_never_need_more(manifest, table, level):
    manifest = changed(manifest, table)
    small = up_to(manifest, level)
    assert level in small.budgets
    for name, most in limits_of(small).to_json().items():
        assert most <= limits_of(manifest).to_json()[name]


def test_an_unknown_level_is_refused(manifest):
    with pytest.raises(BudgetError, match="unknown level 'video'"):
        up_to(manifest, "video")


def record_of(manifest, target="jetpack6"):
    files = {}
    for plan in plans_of(manifest, find_target(target)):
        file = EngineFile(
            f"engines/x/fp16/{plan.stem}.engine", "0", 1, {}, plan.profiles,
            tuple({} for _ in plan.profiles), [], [], None, {}, [], 0.0,
        )  # fmt: skip
        files.setdefault(plan.graph, []).append(file)
    return BuildRecord(
        target, "fp16", "tensorrt", "10.3.0", {}, ["8.7"], {}, limits_of(manifest), files
    )


@pytest.mark.parametrize("target", ["jetpack6", "tensorrt-rtx"])
def test_a_record_finds_the_engine_and_profile_of_a_size(manifest, target):
    record = record_of(manifest, target)
    file, index = record.pick("llm", {"T": 1, "N": 7})
    assert file.profiles[index].name == "decode"
    file, index = record.pick("llm", {"T": 12, "N": 0})
    assert file.profiles[index].name.startswith("prefill-")
    file, index = record.pick("encoder", {"n": 2})
    assert file.profiles[index].name == "crops"


def test_a_size_that_nothing_was_built_for_is_refused_with_what_there_is(manifest):
    record = record_of(manifest)
    most = record.limits.prompt
    with pytest.raises(EngineError, match=rf"T 1\.\.{most}.*this asks for T = {most + 1}, N = 0"):
        record.pick("llm", {"T": most + 1, "N": 0})
    with pytest.raises(EngineError, match="no engine of psc"):
        record.pick("psc", {})


def test_a_record_survives_its_file(manifest):
    record = record_of(manifest)
    assert BuildRecord.from_json(record.to_json()) == record
