"""int8 Q/DQ: where it goes, what it holds, and what ONNX Runtime and OpenVINO make of it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.qdq import quantize_linears, quantize_weight
from geomag_edge.calibration.quantization.ranges import METHODS
from geomag_edge.calibration.quantization.scales import GraphScales, TensorScale
from geomag_edge.errors import InputError
from geomag_edge.runtime.engines.openvino import OpenVinoSession
from geomag_edge.runtime.engines.ort import inference_session

RNG = np.random.default_rng(0)
C = 16


def weight(*shape):
    return RNG.standard_normal(shape).astype(np.float32) / np.sqrt(shape[0])


WEIGHTS = {
    "kernel": weight(C, 3, 2, 2), "gain": weight(C) + 1, "bias": weight(C), "q": weight(C, C),
    "k": weight(C, C), "fc1": weight(32, C), "fc1_bias": weight(32), "fc2": weight(32, C),
    "up": weight(C, 4, 2, 2),
}  # fmt: skip


def small_graph(opset=23, dtype=np.float32):
    """Conv, LayerNormalization read by two MatMuls, their product, a Gemm, a residual, an upscale.

    x [1,3,8,8] -> out [1,4,8,8].
    """
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "kernel"], ["patches"], "conv", strides=[2, 2]),
        node("Reshape", ["patches", "to_rows"], ["columns"], "reshape"),
        node("Transpose", ["columns"], ["rows"], "transpose", perm=[1, 0]),
        node("LayerNormalization", ["rows", "gain", "bias"], ["normed"], "norm"),
        node("MatMul", ["normed", "q"], ["queries"], "q_proj"),
        node("MatMul", ["normed", "k"], ["keys"], "k_proj"),
        node("Transpose", ["keys"], ["keys_t"], "turn", perm=[1, 0]),
        node("MatMul", ["queries", "keys_t"], ["odds"], "attention"),
        node("Softmax", ["odds"], ["soft"], "softmax"),
        node("MatMul", ["soft", "rows"], ["mixed"], "mix"),
        node("Gemm", ["mixed", "fc1", "fc1_bias"], ["hidden"], "fc1", transB=1),
        node("MatMul", ["hidden", "fc2"], ["made"], "fc2"),
        node("Add", ["rows", "made"], ["sum"], "residual"),
        node("Transpose", ["sum"], ["sum_t"], "turn_back", perm=[1, 0]),
        node("Reshape", ["sum_t", "to_map"], ["map"], "reshape_back"),
        node("ConvTranspose", ["map", "up"], ["out"], "upscale", strides=[2, 2]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = [numpy_helper.from_array(v.astype(dtype), k) for k, v in WEIGHTS.items()]
    constants.append(numpy_helper.from_array(np.array([C, 16]), "to_rows"))
    constants.append(numpy_helper.from_array(np.array([1, C, 4, 4]), "to_map"))
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", kind, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", kind, [1, 4, 8, 8])],
        constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(made)


LINEARS = ["conv", "q_proj", "k_proj", "fc1", "fc2", "upscale"]
X = RNG.standard_normal((4, 1, 3, 8, 8)).astype(np.float32)


def run(model, x):
    session = inference_session(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": x})[0]


def scales_of(model):
    """Scales from what the linear layers read on `X`."""
    proto = ir.to_proto(model)
    names = list(dict.fromkeys(linear.tensor for linear in find_linears(model)))
    inner = [name for name in names if name != "x"]
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner
    )
    session = inference_session(proto.SerializeToString())
    top = dict.fromkeys(names, 0.0)
    for x in X:
        found = dict(zip(inner, session.run(inner, {"x": x}), strict=True)) | {"x": x}
        top = {name: max(top[name], float(np.abs(found[name]).max())) for name in names}
    return GraphScales("", {k: TensorScale(dict.fromkeys(METHODS, v), 1) for k, v in top.items()})


@pytest.fixture(scope="module")
def scales():
    return scales_of(small_graph())


def test_linear_layers_are_those_with_a_constant_weight():
    assert [linear.name for linear in find_linears(small_graph())] == LINEARS


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_result_is_standard_onnx_that_answers_nearly_the_same(scales, opset, dtype):
    wide, narrow = small_graph(opset, dtype), small_graph(opset, dtype)
    assert quantize_linears(narrow, scales) == LINEARS
    onnx.checker.check_model(ir.to_proto(narrow), full_check=True)
    for x in X:
        a, b = (run(model, x.astype(dtype)).astype(np.float64) for model in (wide, narrow))
        assert np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) > 0.998


def test_openvino_answers_the_same_from_the_same_file(scales, tmp_path):
    openvino = pytest.importorskip("openvino")
    model = small_graph()
    quantize_linears(model, scales)
    ir.save(model, tmp_path / "model.onnx")
    session = OpenVinoSession(openvino.Core(), tmp_path / "model.onnx", "f32")
    ours = run(model, X[0])
    assert np.abs(session.run({"x": X[0]})["out"] - ours).max() < 0.03 * np.abs(ours).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_only_forms_that_tensorrt_reads(scales, dtype):
    """int8 with zero points of 0 that are there, no quantised weights behind a QuantizeLinear,
    float biases, and scales of the type that they scale."""
    model = small_graph(dtype=dtype)
    quantize_linears(model, scales)
    wide = ir.DataType.from_numpy(np.dtype(dtype))
    constants = model.graph.initializers
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        data, scale, zero = node.inputs
        assert zero.const_value.dtype == ir.DataType.INT8
        assert not zero.const_value.numpy().any()
        assert scale.const_value.dtype == wide
        assert (scale.const_value.numpy() > 0).all()
        if node.op_type == "QuantizeLinear":
            assert not data.is_initializer()
            assert scale.const_value.numpy().shape == ()
        elif data.is_initializer():
            values = data.const_value
            assert values.dtype == ir.DataType.INT8
            assert values.numpy().min() >= -127
            axis = node.attributes["axis"].as_int()
            assert scale.const_value.numpy().shape == (values.shape[axis],)
    assert constants["fc1_bias"].const_value.dtype == wide
    for name in ("kernel", "q", "k", "fc1", "fc2", "up"):
        assert name not in constants  # no weight is stored twice


def test_a_shared_input_gets_one_pair_and_everything_else_stays_wide(scales):
    model = small_graph()
    quantize_linears(model, scales)
    by_name = {node.name: node for node in model.graph}
    assert by_name["q_proj"].inputs[0] is by_name["k_proj"].inputs[0]
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 5
    for name in ("norm", "attention", "softmax", "mix", "residual"):
        for value in by_name[name].inputs:
            producer = value.producer()
            assert producer is None or producer.op_type != "DequantizeLinear"
    for name in LINEARS:  # no output is quantised
        assert {u.node.op_type for u in by_name[name].outputs[0].uses()} & {"QuantizeLinear"} in (
            set(), {"QuantizeLinear"} if name == "fc1" else set(),  # fc1's reader is fc2
        )  # fmt: skip


def test_kept_and_unseen_layers_stay_wide(scales):
    model = small_graph()
    tensors = {name: scale for name, scale in scales.tensors.items() if name != "hidden"}
    done = quantize_linears(model, GraphScales("", tensors), keep={"conv", "q_proj"})
    assert done == ["k_proj", "fc1", "upscale"]
    by_name = {node.name: node for node in model.graph}
    assert by_name["q_proj"].inputs[0].name == "normed"
    assert by_name["k_proj"].inputs[0].name == "normed_dequantized"


def test_nothing_to_quantise_leaves_the_graph_as_it_was():
    model = small_graph()
    before = ir.to_proto(model)
    assert quantize_linears(model, GraphScales("", {})) == []
    assert ir.to_proto(model) == before


def test_an_unknown_calibrator_is_named(scales):
    with pytest.raises(InputError, match="unknown calibrator 'max'"):
        quantize_linears(small_graph(), scales, method="max")


FINITE = st.floats(-1000, 1000, width=32)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FINITE),
    st.data(),
)
def test_a_weight_is_within_half_a_step_of_itself(array, data):
    axis = data.draw(st.integers(0, array.ndim - 1))
    values, scale = quantize_weight(array, axis)
    assert values.shape == array.shape
    assert scale.shape == (array.shape[axis],)
    assert (scale > 0).all()
    steps = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    assert (np.abs(values * steps - array) <= steps * 0.5001 + 1e-30).all()


@given(st.floats(2.0**-6, 2.0**6, width=32))
@settings(max_examples=25)
def test_codes_do_not_change_when_a_weight_is_scaled(factor):
    power = np.float32(2.0 ** np.round(np.log2(factor)))
    array = np.random.default_rng(2).standard_normal((5, 7)).astype(np.float32)
    assert np.array_equal(quantize_weight(array, 1)[0], quantize_weight(array * power, 1)[0])


def test_a_channel_of_zeros_and_one_too_quiet_for_half_are_held():
    array = np.zeros((4, 3), np.float16)
    array[:, 1] = 1e-5
    values, scale = quantize_weight(array, 1)
    assert scale.dtype == np.float16
    assert (scale > 0).all()
    assert np.abs(values * scale.astype(np.float32) - array).max() <= np.finfo(np.float16).tiny / 2
