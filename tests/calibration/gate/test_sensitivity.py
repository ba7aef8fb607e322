"""The search keeps narrow what gains time and what the gate lets pass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.calibration.evaluation.report import Report
from geomag_edge.calibration.gate.gate import Gate
from geomag_edge.calibration.gate.sensitivity import FirstQuestions, Layer, layer_gains, search
from geomag_edge.calibration.sets.items import Item, Picture
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.reference import FILES, load_reference

QUESTIONS = 100


class Answers:
    """A probe whose answers change by so many for every narrow layer."""

    def __init__(self, record, cost):
        self.record, self.cost, self.asked = record, cost, []

    def ask(self, narrow):
        self.asked.append(set(narrow))
        changed = sum(self.cost[key] for key in narrow)
        texts = ["no"] * changed + ["it [SEG]"] * (QUESTIONS - changed)
        records = [self.record(i, f"p{i // 10}", text=t) for i, t in enumerate(texts)]
        return Report("set", "b", "", "ort-cpu", "int8", {}, None, records=records)


def layer(node, changed, gain_ms):
    return Layer("encoder", node, 0.01, 0.0, changed / QUESTIONS, gain_ms)


def searched(record, layers, costs=None):
    cost = {(x.graph, x.node): round(x.changed * QUESTIONS) for x in layers}
    probe = Answers(record, cost if costs is None else costs)
    found = search(layers, probe, probe.ask(()), Gate(), "ort-cpu")
    return found, probe


def test_a_layer_that_costs_time_stays_wide_however_harmless(record):
    layers = [layer("fast", 0, 1.0), layer("slow", 0, -0.1), layer("same", 0, 0.0)]
    found, probe = searched(record, layers)
    assert found.wide == [("encoder", "slow"), ("encoder", "same")]
    assert found.verdict.ok
    assert all(("encoder", "slow") not in asked for asked in probe.asked)


def test_the_dearest_for_their_time_are_given_up_until_the_gate_is_content(record):
    layers = [layer("cheap", 0, 1.0), layer("dear", 3, 0.5), layer("worth it", 1, 9.0)]
    found, _ = searched(record, layers)
    assert found.wide == [("encoder", "dear")]
    assert found.verdict.ok
    assert found.verdict.agreement == 0.99
    chosen = next(point for point in found.curve if point.layers == 2)
    assert (chosen.gain_ms, chosen.agreement) == (10.0, 0.99)
    assert found.curve[-1].agreement == 0.96  # all of them
    assert found.curve[0].gain_ms == 0
    assert found.to_json()["wide"] == [("encoder", "dear")]


def test_a_model_that_bears_nothing_keeps_nothing_narrow(record):
    found, _ = searched(record, [layer(str(i), 5, 1.0) for i in range(7)])
    assert len(found.wide) == 7
    assert found.verdict.ok


def test_what_narrow_weights_lose_is_not_blamed_on_the_layers(record):
    layers = [layer("cheap", 0, 1.0), layer("dear", 3, 0.5)]
    probe = Answers(record, {(x.graph, x.node): round(x.changed * QUESTIONS) for x in layers})
    float32 = Report("set", "b", "", "ort-cpu", "fp32", {}, None, records=[
        record(i, f"p{i // 10}", text="other" if i > 90 else "it [SEG]") for i in range(QUESTIONS)
    ])  # fmt: skip
    found = search(layers, probe, float32, Gate(), "ort-cpu")
    assert found.wide == [("encoder", "dear")]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-1, 5)), min_size=1, max_size=12))
def test_what_is_chosen_passes_and_gains(drawn):
    from geomag_edge.calibration.evaluation.records import Record

    def record(id, picture, text):
        return Record(
            id=str(id), picture=picture, level="pixel", kind="refer", prompt=f"{id}", expected="",
            image_px=512, size_px=10.0, text=text, granularity="pixel", visual_tokens=20, ms=1.0,
            intersection_px=5, union_px=10, iou=0.5,
        )  # fmt: skip

    layers = [layer(str(i), changed, gain) for i, (changed, gain) in enumerate(drawn)]
    found, _ = searched(record, layers)
    narrow = [x for x in layers if (x.graph, x.node) not in set(found.wide)]
    assert all(x.gain_ms > 0 for x in narrow)
    assert sum(round(x.changed * QUESTIONS) for x in narrow) <= 1
    assert found.verdict.ok


def test_a_layers_price_is_its_loss_for_a_millisecond():
    assert layer("a", 1, 2.0).loss == pytest.approx(1.01)
    assert layer("a", 1, 2.0).price == pytest.approx(0.505)
    assert layer("a", 0, -1.0).price > 1e3
    gained = Layer("llm", "b", 0.0, -2.0, 0.0, 1.0)
    assert gained.loss == 0  # a gain by chance pays for nothing


def test_gains_are_timed_where_layers_can_be(bundle):
    opened = Bundle.open(bundle)
    samples = load_reference(*(opened.file(f"reference/{name}") for name in FILES))
    with pytest.raises(InputError, match=r"'tensorrt'.*ort-cpu or openvino"):
        layer_gains(opened, "fp32", samples, "tensorrt", 1)


class Set:
    """Pictures of three questions each."""

    name = "three"

    def __len__(self):
        return 4

    def pictures(self):
        for i in range(4):
            items = list(Item(f"{i}.{j}", "image", "presence", "a tree?", "yes") for j in range(3))
            yield Picture(f"p{i}", np.zeros((8, 8, 3), np.uint8), items)


@given(st.integers(1, 20))
def test_the_first_questions_are_as_many_as_asked_for(count):
    few = FirstQuestions(Set(), count)
    ids = [item.id for picture in few.pictures() for item in picture.items]
    assert ids == [f"{i}.{j}" for i in range(4) for j in range(3)][:count]
    assert len(few) == len(list(few.pictures()))
