"""Half precision without torch: what it casts, what it keeps wide, and that answers stay."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geomag_edge.calibration.quantization.formats.half import HALF_MAX, half_array, to_half
from geomag_edge.calibration.quantization.qdq import quantize_weight
from geomag_edge.errors import InputError
from geomag_edge.graphs import TOLERANCES, GraphSpec, Port, all_graphs
from geomag_edge.runtime.engines.reference import load_reference
from geomag_edge.runtime.engines.replay import difference

LINE = GraphSpec("line", (Port("x", "float", ("n", 4)),), (Port("y", "float", ("n", 4)),))


def model_of(nodes, weights, opset=20, x=("n", 4), y=("n", 4)):
    """A float32 graph x -> y."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "line", [info("x", 1, x)], [info("y", 1, y)],
        [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    proto.ir_version = 10
    return ir.from_proto(proto)


def node(op, inputs, output, **attributes):
    return onnx.helper.make_node(op, inputs, [output], name=output, **attributes)


def run(model, feeds):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@given(hnp.arrays(np.float32, hnp.array_shapes(), elements=st.floats(width=32, allow_nan=True)))
def test_finite_numbers_stay_finite_and_others_stay_what_they_are(array):
    got = half_array(array)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(array))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(array))


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("family", ["qwen2-clip", "qwen3-siglip"])
def test_every_graph_answers_within_halfs_tolerance(exported, manifest, tmp_path, family, opset):
    made = exported(family, opset)
    samples = load_reference(
        made.bundle / "reference/reference.json", made.bundle / "reference/arrays.npz"
    )
    for spec in all_graphs(manifest.decoder.layers):
        model = to_half(ir.load(made.graph(spec.name)), spec)
        path = tmp_path / spec.file
        ir.save(model, path, external_data=f"{spec.file}.data")
        onnx.checker.check_model(str(path), full_check=True)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        types = {p.name: p.type for p in (*session.get_inputs(), *session.get_outputs())}
        for port in (*spec.inputs, *spec.outputs):
            assert (types[port.name] == "tensor(float16)") == (port.dtype == "float"), port
        names = [o.name for o in session.get_outputs()]
        halves = {p.name for p in spec.inputs if p.dtype == "float"}
        for call in [c for s in samples for c in s.calls if c.graph == spec.name]:
            feeds = {k: v.astype("f2") if k in halves else v for k, v in call.inputs.items()}
            for name, got in zip(names, session.run(None, feeds), strict=True):
                _, relative, _ = difference(call.outputs[name], got)
                assert relative <= TOLERANCES["fp16"].relative, (spec.name, name)


def test_angles_of_late_positions_stay_wide(exported, manifest, tmp_path):
    """Half angles would be off by radians; the library's converters do that."""
    spec = next(s for s in all_graphs(manifest.decoder.layers) if s.name == "llm")
    source = exported().graph("llm")
    to_half(model := ir.load(source), spec)
    ir.save(model, tmp_path / "llm.onnx", external_data="llm.onnx.data")
    shape = manifest.decoder
    rng = np.random.default_rng(0)
    feeds = {
        "inputs_embeds": rng.standard_normal((1, 2, shape.hidden)).astype("f4"),
        "attention_mask": np.ones((1, 2), np.int64),
        "position_ids": np.array([[30_000, 30_001]]),
    }
    for name in spec.input_names[3:]:
        feeds[name] = np.zeros((1, shape.kv_heads, 0, shape.head_dim), "f4")
    at = spec.output_names.index("present.0.key")
    wide = ort.InferenceSession(str(source)).run(None, feeds)[at]
    feeds = {k: v.astype("f2") if v.dtype == np.float32 else v for k, v in feeds.items()}
    half = ort.InferenceSession(str(tmp_path / "llm.onnx")).run(None, feeds)[at]
    assert difference(wide, half)[1] < 5e-3


def test_masks_beyond_halfs_range_become_its_largest():
    model = model_of([node("Max", ["x", "low"], "y")], {"low": np.full(4, -3.4e38, "f4")})
    to_half(model, LINE)
    got = run(model, {"x": np.full((1, 4), -np.inf, np.float16)})
    np.testing.assert_array_equal(got, np.full((1, 4), -HALF_MAX, np.float16))


def test_norms_are_taken_in_float32():
    """300 ** 2 * 4 does not fit half; the norm does."""
    model = model_of(
        [node("ReduceL2", ["x", "axis"], "norm"), node("Div", ["x", "norm"], "y")],
        {"axis": np.array([1])},
    )
    to_half(model, LINE)
    got = run(model, {"x": np.full((1, 4), 300, np.float16)})
    np.testing.assert_allclose(got, 0.5, rtol=1e-3)


def test_a_named_node_stays_wide_with_what_follows_from_it():
    """1e6 does not fit half; what is made of it element by element stays wide, then is cast."""
    nodes = [node("Mul", ["x", "big"], "up"), node("Mul", ["up", "small"], "y")]
    weights = {"big": np.full(4, 1e4, "f4"), "small": np.full(4, 1e-4, "f4")}
    half = to_half(model_of(nodes, weights), LINE)
    assert {v.dtype for n in half.graph for v in n.outputs} == {ir.DataType.FLOAT16}
    kept = to_half(model_of(nodes, weights), LINE, keep=["up"])
    assert {v.dtype for v in kept.graph.initializers.values()} == {ir.DataType.FLOAT}
    got = run(kept, {"x": np.full((1, 4), 100, np.float16)})
    np.testing.assert_allclose(got, 100, rtol=1e-3)


def test_an_unknown_node_to_keep_is_named():
    model = model_of([node("Relu", ["x"], "y")], {})
    with pytest.raises(InputError, match="no node 'gone'"):
        to_half(model, LINE, keep=["gone"])


@pytest.mark.parametrize("opset", [20, 23])
def test_integers_of_qdq_stay_and_their_scales_become_half(opset):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((4, 4)).astype("f4")
    codes, steps = quantize_weight(weight, 1)
    nodes = [
        node("QuantizeLinear", ["x", "step", "zero"], "q"),
        node("DequantizeLinear", ["q", "step", "zero"], "dq"),
        node("DequantizeLinear", ["codes", "steps"], "w", axis=1),
        node("MatMul", ["dq", "w"], "y"),
    ]
    weights = {"step": np.float32(0.03), "zero": np.int8(0), "codes": codes, "steps": steps}
    model = model_of(nodes, {k: np.asarray(v) for k, v in weights.items()}, opset)
    x = rng.standard_normal((3, 4)).astype("f4")
    wide = run(model, {"x": x})
    to_half(model, LINE)
    types = {v.const_value.dtype for v in model.graph.initializers.values()}
    assert types == {ir.DataType.INT8, ir.DataType.FLOAT16}
    assert not [n for n in model.graph if n.op_type == "Cast"]
    np.testing.assert_allclose(run(model, {"x": x.astype("f2")}), wide, atol=0.06)


def test_scales_too_fine_for_half_stay_wide():
    codes = np.full((4, 4), 100, np.int8)
    nodes = [
        node("DequantizeLinear", ["codes", "steps"], "w", axis=1),
        node("MatMul", ["x", "w"], "y"),
    ]
    model = model_of(nodes, {"codes": codes, "steps": np.full(4, 1e-7, "f4")})
    to_half(model, LINE)
    got = run(model, {"x": np.full((1, 4), 100, np.float16)})
    np.testing.assert_allclose(got, 4e-3, rtol=1e-2)
