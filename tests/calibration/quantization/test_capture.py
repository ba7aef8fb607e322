"""Capture through the chain of a tiny bundle, and int8 graphs made from what was seen."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from geomag_edge.calibration.quantization.capture import (
    ObservedSession,
    Statistics,
    budget_turns,
    capture,
    graph_digests,
    settings,
)
from geomag_edge.calibration.quantization.formats.smooth import smooth
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.qdq import quantize_linears
from geomag_edge.calibration.sets.calibrating import open_calibration_set
from geomag_edge.errors import CalibrationError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.ort import OrtEngine, OrtSession


@pytest.fixture(scope="module")
def data():
    return open_calibration_set("scenes:1:2:96", 12)


@pytest.fixture(scope="module")
def captured(bundle, data):
    return capture(Bundle.open(bundle), data, threads=1)


def test_every_linear_layer_of_every_graph_is_seen(bundle, captured):
    opened = Bundle.open(bundle)
    for name in CHAIN:
        scales = captured.scales.graph(name)
        wanted = {linear.tensor for linear in find_linears(ir.load(opened.graph(name, "fp32")))}
        assert set(scales.tensors) == set(scales.channels) == wanted
        assert not wanted or captured.calls[name]
    assert captured.scales.notes == []


def test_prefill_and_decode_steps_both_count(captured):
    assert captured.calls["llm"] > len(captured.asked)
    hidden = captured.scales.graph("llm")
    assert all(scale.seen > 0 for scale in hidden.tensors.values())


def test_budgets_take_turns(bundle, captured):
    routed, small, again, large = budget_turns(Bundle.open(bundle).manifest)
    assert routed is again is None
    assert small.visual_tokens < large.visual_tokens
    assert {str(small), str(large)} <= {budget for _, _, budget in captured.asked}


def test_what_was_seen_is_the_same_on_every_run(bundle, data, captured):
    again = capture(Bundle.open(bundle), data, threads=1).scales
    assert again.data == captured.scales.data
    for name, graph in captured.scales.graphs.items():
        assert again.graph(name).tensors == graph.tensors


def test_the_same_set_settings_and_graphs_fit(bundle, data, captured):
    digests = graph_digests(Bundle.open(bundle))
    assert captured.scales.fits(data.digest, settings(), digests)
    assert set(digests) == set(CHAIN)


@pytest.mark.parametrize("graph", CHAIN)
def test_observing_changes_no_output(bundle, graph):
    opened = Bundle.open(bundle)
    path = opened.graph(graph, "fp32")
    plain = OrtSession(path, 1)
    feeds = feeds_for(opened, graph)
    watched = {x.tensor: Statistics(x.channel_axis) for x in find_linears(ir.load(path))}
    observed = ObservedSession(graph, path, watched, Counter(), 1)
    a, b = plain.run(feeds), observed.run(feeds)
    assert list(a) == list(b)
    for name, value in a.items():
        assert np.allclose(value, b[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("graph", ["encoder", "llm", "mask_head", "projector", "psc_select"])
def test_int8_graphs_of_every_kind_answer_nearly_the_same(bundle, captured, graph, tmp_path):
    opened = Bundle.open(bundle)
    model = ir.load(opened.graph(graph, "fp32"))
    scales = smooth(model, captured.scales.graph(graph))
    done = quantize_linears(model, scales)
    assert done
    ir.save(model, tmp_path / "g.onnx", external_data="g.onnx.data")
    feeds = feeds_for(opened, graph)
    wide = OrtEngine(opened, "fp32", 1).session(graph).run(feeds)
    narrow = OrtSession(tmp_path / "g.onnx", 1).run(feeds)
    for name, value in wide.items():
        if name in ("boxes", "scores"):
            continue  # a choice between windows, not a value
        a, b = value.ravel().astype(np.float64), narrow[name].ravel().astype(np.float64)
        assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.98


def test_values_that_are_not_finite_name_the_graph_and_the_tensor(bundle):
    opened = Bundle.open(bundle)
    path = opened.graph("projector", "fp32")
    watched = {x.tensor: Statistics(x.channel_axis) for x in find_linears(ir.load(path))}
    feeds = feeds_for(opened, "projector")
    feeds["tokens"] = np.full_like(feeds["tokens"], np.nan)
    with pytest.raises(
        CalibrationError, match="graph projector gave values that are not finite at"
    ):
        ObservedSession("projector", path, watched, Counter(), 1).run(feeds)


def feeds_for(bundle, graph):
    """Inputs of a graph from the bundle's own reference."""
    from geomag_edge.runtime.engines.reference import FILES, load_reference

    samples = load_reference(*(bundle.file(f"reference/{name}") for name in FILES))
    return next(
        dict(call.inputs) for sample in samples for call in sample.calls if call.graph == graph
    )
