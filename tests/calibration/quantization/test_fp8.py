"""8-bit floats around linear layers: the numbers, and a graph that is valid ONNX and runs."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geomag_edge.calibration.quantization.formats.fp8 import fp8_weight, quantize_fp8
from geomag_edge.calibration.quantization.formats.half import to_half
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.scales import GraphScales, TensorScale
from geomag_edge.errors import InputError
from geomag_edge.graphs import ENCODER


def scales_of(model, largest=8.0):
    thresholds = {"minmax": largest}
    return GraphScales("", {x.tensor: TensorScale(thresholds, 1) for x in find_linears(model)})


@given(
    hnp.arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from([0, 1]),
)
def test_a_weight_is_off_by_at_most_a_sixteenth_or_its_channels_smallest_step(weight, axis):
    codes, scale = fp8_weight(weight, axis)
    assert codes.dtype == ml_dtypes.float8_e4m3fn
    spread = np.expand_dims(scale, 1 - axis)
    got = codes.astype(np.float32) * spread
    assert np.isfinite(got).all()
    assert (np.abs(got - weight) <= np.abs(weight) / 16 * 1.001 + spread * 2.0**-10).all()


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("half", [False, True])
def test_the_encoder_is_valid_and_answers_nearly_alike(exported, tmp_path, opset, half):
    source = exported("qwen2-clip", opset).graph("encoder")
    model = ir.load(source)
    assert quantize_fp8(model, scales_of(model))
    if half:
        to_half(model, ENCODER)
    path = tmp_path / "encoder.onnx"
    ir.save(model, path, external_data="encoder.onnx.data")
    onnx.checker.check_model(str(path), full_check=True)
    onnx.shape_inference.infer_shapes_path(str(path), str(tmp_path / "s.onnx"), strict_mode=True)
    views = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype("f4")
    wide = ort.InferenceSession(str(source)).run(None, {"views": views})
    got = ort.InferenceSession(str(path)).run(None, {"views": views.astype("f2" if half else "f4")})
    for a, b in zip(wide, got, strict=True):
        a, b = a.ravel().astype("f8"), b.ravel().astype("f8")
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


def test_layers_that_calibration_never_saw_or_that_are_kept_stay_wide(exported):
    model = ir.load(exported().graph("encoder"))
    assert quantize_fp8(model, GraphScales("", {})) == []
    names = [x.name for x in find_linears(model) if x.node.op_type in ("MatMul", "Gemm")]
    assert quantize_fp8(model, scales_of(model), keep={names[0]}) == names[1:]


def test_an_old_opset_is_refused(exported):
    model = ir.load(exported().graph("encoder"))
    model.opset_imports[""] = 18
    with pytest.raises(InputError, match="opset 19"):
        quantize_fp8(model, GraphScales("", {}))
