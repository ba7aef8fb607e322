"""Predicted noise against what quantising really costs."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.calibration.quantization.noise import predicted_noise
from geomag_edge.calibration.quantization.qdq import quantize_linears
from geomag_edge.calibration.quantization.ranges import Histogram
from geomag_edge.calibration.quantization.scales import Channels, GraphScales, TensorScale
from geomag_edge.runtime.engines.ort import inference_session


def layer(op, weight, **attributes):
    shape = ["R", 8] if weight.ndim == 2 else ["R", 8, 6, 6]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes)], "one",
        [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return ir.from_proto(made)


def run(model, x):
    return inference_session(ir.to_proto(model).SerializeToString()).run(None, {"x": x})[0]


LAYERS = {
    "MatMul": ((8, 5), {}),
    "Gemm": ((5, 8), {"transB": 1}),
    "Conv": ((5, 8, 3, 3), {}),
    "ConvTranspose": ((8, 5, 2, 2), {"strides": [2, 2]}),
}


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("spike", [1.0, 30.0])
def test_the_prediction_is_near_what_is_lost(op, spike):
    rng = np.random.default_rng(4)
    shape, attributes = LAYERS[op]
    weight = rng.standard_normal(shape).astype(np.float32)
    x = rng.standard_normal((300, 8) if len(shape) == 2 else (60, 8, 6, 6)).astype(np.float32)
    x.reshape(-1)[7] *= spike
    axes = (0,) if len(shape) == 2 else (0, 2, 3)
    channels = Channels(np.abs(x).max(axes), np.sqrt(np.square(x).mean(axes)))
    histogram = Histogram()
    histogram.add(np.abs(x))
    scale = TensorScale(histogram.thresholds(), x.size)
    scales = GraphScales("", {"x": scale}, {"x": channels})
    model = layer(op, weight, **attributes)
    predicted = predicted_noise(model, scales, "minmax")
    true = run(model, x)
    quantize_linears(model, scales, method="minmax")
    lost = np.square(run(model, x) - true).sum() / np.square(true).sum()
    assert predicted["layer"] == pytest.approx(lost, rel=0.5)


def test_layers_that_were_not_seen_are_left_out():
    model = layer("MatMul", np.ones((8, 5), np.float32))
    assert predicted_noise(model, GraphScales("", {})) == {}
