"""The fit check: arithmetic, memory and time of graphs, against sums made by hand."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.budgets import LEVELS
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.tensorrt.profiles import limits_of
from geomag_edge.runtime.planning.cost import CostError, graph_cost
from geomag_edge.runtime.planning.fit import SHARED_SYSTEM_BYTES, WORKSPACE_BYTES, fit_bundle
from geomag_edge.targets import Device, find_target, known

F16 = TensorProto.FLOAT16
RTX = find_target("tensorrt-rtx")


def graph(tmp_path, nodes, inputs, outputs, weights=(), opset=20):
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs],
        [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs],
        [numpy_helper.from_array(a, n) for n, a in weights],
    )  # fmt: skip
    path = tmp_path / "some.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)]), str(path))
    return path


def two_layers(tmp_path):
    """x [n,4] -> 8 -> 2, a Relu between."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    weights = [("a", np.zeros((4, 8), np.float16)), ("b", np.zeros((8, 2), np.float16))]
    return graph(tmp_path, nodes, [("x", F16, ["n", 4])], [("y", F16)], weights)


@given(n=st.integers(1, 100))
def test_a_small_graphs_cost_is_the_sum_by_hand(tmp_path_factory, n):
    cost = graph_cost(two_layers(tmp_path_factory.mktemp("g")), {"n": n})
    assert cost.flops == {"fp16": 2 * n * (4 * 8 + 8 * 2)}
    assert cost.weight_bytes == cost.read_weight_bytes == 2 * (4 * 8 + 8 * 2)
    assert (cost.input_bytes, cost.output_bytes) == (8 * n, 4 * n)
    assert cost.live_bytes == 2 * 16 * n  # h and r
    assert (cost.kernels, cost.distinct_kernels) == (2, 2)
    assert cost.row_weight_bytes == (cost.weight_bytes if n > 1 else 0)
    between = 16 * n * 2 + 8 * n + 4 * n  # written and read by the layers that multiply
    assert cost.traffic_bytes == cost.weight_bytes + between + 12 * n


def test_layers_of_the_same_shape_are_one_distinct_kernel(tmp_path):
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(5)]
    weights = [(f"w{i}", np.zeros((4, 4), np.float16)) for i in range(5)]
    path = graph(tmp_path, nodes, [("x0", F16, ["n", 4])], [("x5", F16)], weights)
    cost = graph_cost(path, {"n": 3})
    assert (cost.kernels, cost.distinct_kernels) == (5, 1)


def test_views_of_a_tensor_hold_no_memory(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Unsqueeze", ["h", "axis"], ["u"]),
        helper.make_node("Squeeze", ["u", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    weights = [("w", np.zeros((4, 4), np.float16)), ("axis", np.array([0]))]
    path = graph(tmp_path, nodes, [("x", F16, ["n", 4])], [("y", F16)], weights)
    assert graph_cost(path, {"n": 5}).live_bytes == 5 * 4 * 2


def test_an_embedding_table_is_read_by_rows(tmp_path):
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    weights = [("table", np.zeros((1000, 4), np.float16))]
    path = graph(tmp_path, nodes, [("ids", TensorProto.INT64, ["T"])], [("y", F16)], weights)
    cost = graph_cost(path, {"T": 3})
    assert (cost.weight_bytes, cost.read_weight_bytes) == (8000, 24)


def test_quantised_layers_count_as_int8(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    weights = [
        ("s", np.array(0.1, np.float16)), ("z", np.array(0, np.int8)),
        ("w", np.zeros((4, 8), np.int8)),
    ]  # fmt: skip
    path = graph(tmp_path, nodes, [("x", F16, ["n", 4])], [("y", F16)], weights)
    cost = graph_cost(path, {"n": 2})
    assert cost.flops == {"int8": 2 * 2 * 4 * 8}
    assert cost.row_weight_bytes == 32


def test_attention_and_convolutions_are_counted(tmp_path):
    heads, new, past, width = 2, 3, 5, 4
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["y"])]
    ports = [(n, F16, [1, heads, t, width]) for n, t in (("q", new), ("k", past), ("v", past))]
    path = graph(tmp_path, nodes, ports, [("y", F16)], opset=23)
    assert graph_cost(path, {}).flops == {"fp16": 2 * 2 * heads * new * past * width}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["h", "t"], ["y"], strides=[2, 2]),
    ]
    weights = [
        ("w", np.zeros((5, 3, 2, 2), np.float16)), ("t", np.zeros((5, 7, 2, 2), np.float16))
    ]  # fmt: skip
    path = graph(tmp_path, nodes, [("x", F16, ["n", 3, 8, 8])], [("y", F16)], weights)
    flops = 2 * (5 * 4 * 4) * (3 * 2 * 2) + 2 * (5 * 4 * 4) * (7 * 2 * 2)
    assert graph_cost(path, {"n": 1}).flops == {"fp16": flops}


def test_a_shape_that_is_computed_from_the_sizes_is_found(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Mul", ["n", "two"], ["twice"]),
        helper.make_node("Range", ["zero", "twice", "one"], ["y"]),
    ]
    weights = [(k, np.array(v)) for k, v in (("first", 0), ("two", 2), ("zero", 0), ("one", 1))]
    path = graph(tmp_path, nodes, [("x", F16, ["n", 4])], [("y", TensorProto.INT64)], weights)
    assert graph_cost(path, {"n": 6}).output_bytes == 12 * 8


def test_what_cannot_be_known_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CostError, match=r"some\.onnx: no size given for the axis n"):
        graph_cost(two_layers(tmp_path), {})
    nodes = [helper.make_node("NonZero", ["x"], ["y"], name="look")]
    path = graph(tmp_path, nodes, [("x", F16, ["n", 4])], [("y", TensorProto.INT64)])
    with pytest.raises(CostError, match="'y' after node look could not be inferred"):
        graph_cost(path, {"n": 2})


# a bundle against a device


def device(gb, shared=False, watts=(10.0, 20.0)):
    return Device("board", "Board", ("tensorrt-rtx",), "8.6", 10, 20, 100, gb, shared, watts)


def test_memory_is_the_sum_of_its_parts(bundle):
    fit = fit_bundle(Bundle.open(bundle), RTX, "fp32")
    engines = sum(e.engine_bytes + e.activation_bytes for e in fit.engines)
    assert fit.need_bytes == engines + fit.cache_bytes + fit.buffer_bytes
    assert fit.ok
    assert "name a --device" in fit.verdict
    shape = Bundle.open(bundle).manifest.decoder
    capacity = limits_of(Bundle.open(bundle).manifest).capacity
    once = 2 * shape.layers * shape.kv_heads * shape.head_dim * capacity * 4
    assert fit.cache_bytes == 2 * once
    encoder = next(e for e in fit.engines if e.graph == "encoder")
    assert encoder.activation_bytes > WORKSPACE_BYTES


def test_engines_of_single_profiles_hold_the_weights_again(bundle):
    opened = Bundle.open(bundle)
    single = fit_bundle(opened, find_target("jetpack6"), "fp32")
    weights = {e.stem: e.weight_bytes for e in single.engines}
    assert weights["encoder.whole"] == weights["encoder.crops"] > 0


def test_what_does_not_fit_names_what_does(bundle):
    opened = Bundle.open(bundle)
    need = fit_bundle(opened, RTX, "fp32", device(1000)).need_bytes
    fits = fit_bundle(opened, RTX, "fp32", device(need / 1e9 + 0.001))
    assert fits.ok
    assert "it fits" in fits.verdict
    small = fit_bundle(opened, RTX, "fp32", device(need / 1e9 - 0.0005))
    assert not small.ok
    assert "does not fit; what does: --budget region" in small.verdict
    tiny = fit_bundle(opened, RTX, "fp32", device(0.1))
    assert "nothing in the bundle does" in tiny.verdict


def test_a_jetson_keeps_memory_for_its_system(bundle):
    fit = fit_bundle(Bundle.open(bundle), find_target("jetpack6"), "fp32", device(8, shared=True))
    assert fit.system_bytes == SHARED_SYSTEM_BYTES


def test_time_is_the_longer_of_arithmetic_and_traffic_and_grows_as_power_falls(bundle):
    opened = Bundle.open(bundle)
    full = fit_bundle(opened, RTX, "fp32", device(8))
    half = fit_bundle(opened, RTX, "fp32", device(8), watts=10)
    assert list(full.stages) == list(LEVELS)
    for level in LEVELS:
        for fast, slow in zip(full.stages[level], half.stages[level], strict=True):
            least = max(fast.gflop * 1e9 / 5e12, fast.mbytes * 1e6 / 100e9) * 1e3
            assert fast.ms >= least * 0.999
            assert slow.ms == pytest.approx(2 * fast.ms)
    with pytest.raises(InputError, match="no power mode of 30 W: it has 10, 20"):
        fit_bundle(opened, RTX, "fp32", device(8), watts=30)


def test_a_report_is_plain_json(bundle):
    fit = fit_bundle(Bundle.open(bundle), RTX, "fp32", known().device("agx-orin-64"))
    data = json.loads(json.dumps(fit.to_json()))
    assert data["ok"] is True
    assert data["need_bytes"] == fit.need_bytes
