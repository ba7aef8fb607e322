"""Q/DQ pairs that can be switched off while a graph runs."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.calibration.quantization.switch import FLAGS, switchable


@pytest.fixture
def model():
    """y = DQ(Q(x)) @ W; z = DQ(Q(y)) + 1, with coarse steps."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3)).astype(np.float32)
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.float32(0.5), "x_scale"),
        numpy_helper.from_array(np.float32(0.25), "y_scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.float32(1), "one"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "zero"], ["xd"]),
        helper.make_node("MatMul", ["xd", "weight"], ["y"], name="product"),
        helper.make_node("QuantizeLinear", ["y", "y_scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "y_scale", "zero"], ["yd"]),
        helper.make_node("Add", ["yd", "one"], ["z"], name="sum"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [x], [z], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def rounded(values, step):
    return np.clip(np.rint(values / step), -128, 127) * step


@pytest.mark.parametrize("wide", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_each_pair_acts_unless_its_switch_is_set(model, wide):
    weight = numpy_helper.to_array(model.graph.initializer[0])
    assert switchable(model) == [("product",), ("sum",)]
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    [z] = session.run(None, {"x": x, FLAGS: np.array(wide, bool)})
    y = (x if wide[0] else rounded(x, 0.5)) @ weight
    np.testing.assert_allclose(z, (y if wide[1] else rounded(y, 0.25)) + 1, atol=1e-6)


def test_a_graph_without_pairs_gets_no_switch(model):
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("MatMul", ["x", "weight"], ["z"]))
    assert switchable(model) == []
    assert [i.name for i in model.graph.input] == ["x"]
