"""Precisions run together only where what their gates saw them lose leaves room for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.runtime.engines.auto.mixture import Loss, fits, loss_of, mixtures


def verdict(changed, points, ok=True, limits=(0.01, 0.5), boxes=0.0):
    return {
        "ok": ok,
        "agreement": 1 - changed,
        "masks": None if points is None else {"points": points},
        "boxes": {"points": boxes},
        "judged": ["mIoU", "box mIoU"] if boxes else ["mIoU"],
        "gate": {"min_agreement": 1 - limits[0], "max_miou_drop": limits[1]},
    }


def judged(changed, points, **kw):
    return {"gate": {"ort-cpu": verdict(changed, points, **kw)}}


def test_a_loss_is_the_worst_of_all_engines_and_a_gain_is_none():
    two = {"gate": {"a": verdict(0.002, -0.3), "b": verdict(0.004, 0.1, limits=(0.02, 0.4))}}
    assert loss_of(two) == Loss(*(pytest.approx(v) for v in (0.004, 0.1, 0.0, 0.01, 0.4)))
    assert loss_of(judged(0.0, None)).points == 0


def without(key):
    report = judged(0.0, 0.0)
    del report["gate"]["ort-cpu"][key]
    return report


ODD = [{"gate": None}, {"gate": []}, {"gate": {"ort-cpu": 3}}, {"gate": {"ort-cpu": None}},
       *(without(key) for key in ("agreement", "masks", "gate", "ok")),
       judged(float("nan"), 0.0), judged(0.0, float("inf")),
       {"gate": {"ort-cpu": verdict(0, 0) | {"masks": {"points": None}}}}]  # fmt: skip
"""Verdicts of earlier versions, or of nobody."""


@pytest.mark.parametrize("report", [{}, {"gate": {}}, judged(0.0, 0.0, ok=False), *ODD])
def test_what_no_gate_let_pass_has_no_loss_to_count_with(report):
    assert loss_of(report) is None


def test_two_precisions_that_each_use_their_gate_up_are_not_mixed():
    """int8 with 2 of 288 answers and int4 with 1: the mixture could be one short."""
    accuracy = {"int8": judged(2 / 288, 0.2), "int4-llm": judged(1 / 288, 0.1)}
    found = mixtures(accuracy, ["fp32", "int8", "int4-llm"])
    assert found == [{"fp32", "int8"}, {"fp32", "int4-llm"}]
    accuracy["int8"] = judged(1 / 288, 0.2)
    assert mixtures(accuracy, ["fp32", "int8", "int4-llm"]) == [{"fp32", "int8", "int4-llm"}]


def test_masks_that_would_fall_too_far_together_keep_precisions_apart():
    accuracy = {"int8": judged(0, 0.3), "fp16": judged(0, 0.3)}
    assert mixtures(accuracy, ["fp32", "fp16", "int8"]) == [{"fp32", "fp16"}, {"fp32", "int8"}]


def test_boxes_that_would_fall_too_far_together_keep_precisions_apart():
    accuracy = {"int8": judged(0, 0, boxes=0.4), "fp16": judged(0, 0, boxes=0.4)}
    assert mixtures(accuracy, ["fp32", "fp16", "int8"]) == [{"fp32", "fp16"}, {"fp32", "int8"}]


def test_the_strictest_gate_counts():
    accuracy = {"a": judged(0.01, 0.1, limits=(0.05, 9)), "b": judged(0.004, 0.1)}
    assert mixtures(accuracy, ["fp32", "a", "b"]) == [{"fp32", "a"}, {"fp32", "b"}]


def test_a_precision_that_nobody_judged_runs_only_where_there_is_no_other():
    assert mixtures({}, ["fp32", "int8"]) == [{"fp32"}]
    assert mixtures({}, ["int8"]) == [{"int8"}]
    assert mixtures({"int8": judged(0.0, 0.0)}, ["int8"]) == [{"int8"}]


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(st.floats(0, 0.02), st.floats(0, 1))))
def test_every_set_leaves_room_and_none_lies_in_another(losses):
    accuracy = {name: judged(*loss) for name, loss in losses.items()}
    found = mixtures(accuracy, ["fp32", *losses])
    assert all("fp32" in one for one in found)
    assert not any(one < other for one in found for other in found)
    for one in found:
        names = one - {"fp32"}
        assert len(names) <= 1 or fits(loss_of(accuracy[name]) for name in names)
    assert {name for one in found for name in one} == {"fp32", *losses}


def test_a_verdict_of_before_counts_its_boxes_beside_others_and_not_alone():
    """It does not say whether there were enough of them to be judged."""
    old = judged(0.0, 0.0, boxes=1.2)
    del old["gate"]["ort-cpu"]["judged"]
    accuracy = {"int8": old, "fp16": judged(0.0, 0.0)}
    assert mixtures(accuracy, ["fp32", "int8"]) == [{"fp32", "int8"}]
    assert mixtures(accuracy, ["fp32", "fp16", "int8"]) == [{"fp32", "fp16"}, {"fp32", "int8"}]
