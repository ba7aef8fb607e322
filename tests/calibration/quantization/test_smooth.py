"""Smoothing: exact in float, better in int8 where channels are loud, and only where it may."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.calibration.quantization.formats.smooth import find_groups, smooth
from geomag_edge.calibration.quantization.qdq import quantize_linears
from geomag_edge.calibration.quantization.ranges import METHODS, Histogram
from geomag_edge.calibration.quantization.scales import Channels, GraphScales, TensorScale

C, OUT = 24, 16
NORMS = ("LayerNormalization", "RMSNormalization", "Mul")


def block(norm, seed=0, loud=1.0, reader=None, shared_gain=False):
    """x [R,C] -> norm with gain -> two linear layers, one turned; `loud` of every 8th channel."""
    rng = np.random.default_rng(seed)
    gain = rng.uniform(0.5, 1.5, C).astype(np.float32)
    gain[::8] *= loud
    constants = {
        "gain": gain,
        "bias": rng.standard_normal(C).astype(np.float32) * gain,
        "a": rng.standard_normal((C, OUT)).astype(np.float32),
        "b": rng.standard_normal((OUT, C)).astype(np.float32),
    }
    inputs = {"LayerNormalization": ["x", "gain", "bias"]}.get(norm, ["x", "gain"])
    nodes = [
        helper.make_node(norm, inputs, ["normed"], "norm"),
        helper.make_node("MatMul", ["normed", "a"], ["ya"], "first"),
        helper.make_node("Gemm", ["normed", "b"], ["yb"], "second", transB=1),
    ]
    outputs = ["ya", "yb"]
    if reader:
        nodes.append(helper.make_node(reader, ["normed"], ["yc"], "reader"))
        outputs.append("yc")
    if shared_gain:
        nodes.append(helper.make_node("Mul", ["x", "gain"], ["yd"], "other"))
        outputs.append("yd")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "block", [value("x", TensorProto.FLOAT, ["R", C])],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return ir.from_proto(made)


def run(model, x, *names):
    proto = ir.to_proto(model)
    have = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names if n not in have
    )
    return ort.InferenceSession(proto.SerializeToString()).run(list(names) or None, {"x": x})


def rows(seed=0, count=400):
    return np.random.default_rng(seed).standard_normal((count, C)).astype(np.float32)


def seen(model, x):
    (normed,) = run(model, x, "normed")
    histogram = Histogram()
    histogram.add(np.abs(normed))
    channels = Channels(np.abs(normed).max(0), np.sqrt(np.square(normed).mean(0)))
    scale = TensorScale(histogram.thresholds(), histogram.seen)
    return GraphScales("", {"normed": scale}, {"normed": channels})


def loss(model, scales, x, true):
    assert quantize_linears(model, scales) == ["first", "second"]
    return sum(np.square(a - b).sum() for a, b in zip(run(model, x), true, strict=True))


@given(st.sampled_from(NORMS), st.integers(0, 99), st.floats(0.01, 100), st.floats(0, 1))
@settings(max_examples=15)
def test_smoothing_changes_nothing_in_float(norm, seed, loud, alpha):
    model, x = block(norm, seed, loud), rows(seed)
    before = run(model, x)
    smooth(model, seen(model, x), alpha)
    for a, b in zip(run(model, x), before, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("norm", NORMS)
def test_loud_channels_cost_less_after_smoothing(norm):
    x = rows()
    model = block(norm, loud=50)
    scales, true = seen(model, x), run(model, x)
    plain = loss(block(norm, loud=50), scales, x, true)
    smoothed = smooth(model, scales)
    assert smoothed.tensors["normed"].threshold("mse") != scales.tensors["normed"].threshold("mse")
    assert loss(model, smoothed, x, true) < 0.5 * plain


def test_what_gains_nothing_is_left_as_it_is():
    model, x = block("RMSNormalization"), rows()
    before, scales = ir.to_proto(model), seen(block("RMSNormalization"), x)
    assert smooth(model, scales) == scales
    assert ir.to_proto(model) == before


def test_the_new_channels_are_those_of_the_smoothed_graph():
    model, x = block("LayerNormalization", loud=30), rows()
    scales = smooth(model, seen(model, x), 0.5)
    (normed,) = run(model, x, "normed")
    now = scales.channels["normed"]
    assert np.allclose(np.abs(normed).max(0), now.absmax, rtol=1e-4)
    assert np.allclose(np.sqrt(np.square(normed).mean(0)), now.rms, rtol=1e-4)
    for method in METHODS:
        assert scales.tensors["normed"].threshold(method) >= 0.999 * np.abs(normed).max()


def test_an_activation_with_another_reader_is_not_touched():
    model, x = block("LayerNormalization", loud=50, reader="Relu"), rows()
    scales = seen(model, x)
    assert not list(find_groups(model, scales.channels))
    assert smooth(model, scales, 0.5) == scales


def test_an_activation_that_is_an_output_is_not_touched():
    model, x = block("LayerNormalization", loud=50), rows()
    scales = seen(model, x)
    model.graph.outputs.append(model.graph.node(0).outputs[0])
    assert smooth(model, scales, 0.5) == scales


def test_a_gain_that_others_read_keeps_its_value_for_them():
    model, x = block("RMSNormalization", loud=50, shared_gain=True), rows()
    before = run(model, x)
    smooth(model, seen(model, x), 0.5)
    for a, b in zip(run(model, x), before, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_silent_channels_do_no_harm():
    model, x = block("Mul", loud=0.0), rows()
    before = run(model, x)
    smooth(model, seen(model, x), 1.0)
    for a, b in zip(run(model, x), before, strict=True):
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def gated(seed=0, loud=1.0, reader=None):
    """x [R,C] -> (gate * sigmoid(gate)) * up -> down, as in an LLM's feed-forward block."""
    rng = np.random.default_rng(seed)
    up = rng.standard_normal((C, C)).astype(np.float32)
    up[:, ::8] *= loud
    down = rng.standard_normal((C, OUT)).astype(np.float32)
    constants = {"gate": rng.standard_normal((C, C)).astype(np.float32), "up": up, "down": down}
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["g"], "gate_proj"),
        helper.make_node("Sigmoid", ["g"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["g", "s"], ["silu"], "silu"),
        helper.make_node("MatMul", ["x", "up"], ["u"], "up_proj"),
        helper.make_node("Mul", ["silu", "u"], ["normed"], "product"),
        helper.make_node("MatMul", ["normed", "down"], ["y"], "down_proj"),
    ]
    outputs = ["y"]
    if reader:
        nodes.append(helper.make_node("Relu", [reader], ["other"], "reader"))
        outputs.append("other")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "gated", [value("x", TensorProto.FLOAT, ["R", C])],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return ir.from_proto(made)


@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(0, 1))
@settings(max_examples=10)
def test_smoothing_through_a_gated_product_changes_nothing_in_float(seed, loud, alpha):
    model, x = gated(seed, loud), rows(seed)
    (before,) = run(model, x)
    scales = seen(model, x)
    assert smooth(model, scales, alpha) != scales
    (after,) = run(model, x)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_a_loud_gated_product_costs_less_after_smoothing():
    x, model = rows(), gated(loud=50)
    scales, (true,) = seen(model, x), run(model, x)
    plain = gated(loud=50)
    quantize_linears(plain, scales)
    smoothed = smooth(model, scales)
    quantize_linears(model, smoothed)
    losses = [np.square(run(m, x)[0] - true).sum() for m in (model, plain)]
    assert losses[0] < 0.5 * losses[1]


@pytest.mark.parametrize("reader", ["u", "normed"])
def test_a_gated_product_whose_parts_others_read_is_not_touched(reader):
    model, x = gated(loud=50, reader=reader), rows()
    scales = seen(model, x)
    assert smooth(model, scales, 0.5) == scales
