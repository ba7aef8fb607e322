"""Decoder weights in 4 bits: the search, both spellings, and what is refused."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.calibration.quantization.formats.dynamic8 import dynamic_int8
from geomag_edge.calibration.quantization.formats.int4 import (
    as_matmulnbits,
    as_qdq,
    block_for,
    block_weight,
    last_layers,
    quantize_blocks,
)
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.errors import InputError
from geomag_edge.runtime.engines.ort import inference_session


@pytest.fixture(scope="module")
def llm(exported):
    return exported().graph("llm")


@pytest.fixture(scope="module")
def weights(llm):
    return quantize_blocks(ir.load(llm))


def opened(model, folder, name):
    path = folder / f"{name}.onnx"
    ir.save(model, path, external_data=f"{path.name}.data")
    return inference_session(path), path


def prompt(session, steps=5):
    rng = np.random.default_rng(0)
    feeds = {
        "inputs_embeds": rng.standard_normal((1, steps, session.get_inputs()[0].shape[2])),
        "attention_mask": np.ones((1, steps), np.int64),
        "position_ids": np.arange(steps)[None],
    }
    for port in session.get_inputs()[3:]:
        feeds[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]))
    return {k: v.astype("f4") if v.dtype == np.float64 else v for k, v in feeds.items()}


def cosine(a, b):
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([4, 8]), st.floats(1e-3, 1e3))
def test_each_blocks_error_is_at_most_that_of_its_full_range(seed, bits, size):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((64, 3)) * rng.exponential(size, (1, 3))).astype("f4")
    found = block_weight(weight, 32, bits=bits)
    steps = 2 ** (bits - 1) - 1
    plain = np.abs(weight.reshape(2, 32, 3)).max(1, keepdims=True) / steps
    rounded = np.rint(weight.reshape(2, 32, 3) / plain) * plain
    best = np.square(rounded - weight.reshape(2, 32, 3)).sum(1)
    got = np.square((found.dequantized() - weight).reshape(2, 32, 3)).sum(1)
    assert (got <= best * (1 + 1e-4)).all()
    assert found.codes.min() >= -(2 ** (bits - 1))
    assert found.codes.max() <= steps


def test_an_important_row_is_kept_more_exactly():
    weight = np.random.default_rng(0).standard_normal((32, 200)).astype("f4")
    importance = np.ones(32)
    importance[3] = 1e4
    plain = np.square(block_weight(weight, 32).dequantized() - weight)[3].sum()
    weighed = np.square(block_weight(weight, 32, importance).dequantized() - weight)[3].sum()
    assert weighed < 0.5 * plain


def test_a_block_of_zeros_stays_zero():
    found = block_weight(np.zeros((32, 2), np.float32), 32)
    assert not found.dequantized().any()
    assert (found.scales > 0).all()


@pytest.mark.parametrize(
    ("rows", "largest", "block"), [(896, 64, 64), (48, 64, 16), (10, 64, None)]
)
def test_a_block_divides_its_weights_rows(rows, largest, block):
    assert block_for(rows, largest) == block


def test_both_spellings_answer_alike(llm, weights, tmp_path):
    qdq, path = opened(as_qdq(ir.load(llm), weights), tmp_path, "qdq")
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nbits, _ = opened(as_matmulnbits(ir.load(llm), weights), tmp_path, "nbits")
    feeds = prompt(qdq)
    expected = exact.run(None, feeds)
    for session in (qdq, nbits):
        for got, wanted in zip(session.run(None, feeds), expected, strict=True):
            assert cosine(got, wanted) > 0.999


def test_onnx_runtime_turns_the_portable_spelling_into_its_own(llm, weights, tmp_path):
    """Which is why one file is enough."""
    _, path = opened(as_qdq(ir.load(llm), weights), tmp_path, "qdq")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fused = onnx.load(str(tmp_path / "fused.onnx"), load_external_data=False)
    assert sum(n.op_type == "MatMulNBits" for n in fused.graph.node) == len(weights)


def test_the_head_keeps_8_bits(llm, weights):
    head = last_layers(ir.load(llm))
    assert len(head) == 1
    assert {name for name, w in weights.items() if w.bits == 8} == head
    assert len(weights) == len(find_linears(ir.load(llm)))


def test_a_kept_layer_keeps_its_weight(llm):
    name = find_linears(ir.load(llm))[0].name
    assert name not in quantize_blocks(ir.load(llm), keep=[name])


def test_an_old_opset_is_refused_before_anything_changes(exported):
    model = ir.load(exported("qwen2-clip", 20).graph("llm"))
    weights = quantize_blocks(model)
    with pytest.raises(InputError, match="opset 21"):
        as_qdq(model, weights)
    assert len(find_linears(model)) == len(weights)


def test_weights_of_another_graph_are_refused(weights, exported):
    with pytest.raises(InputError, match="another graph"):
        as_qdq(ir.load(exported().graph("projector")), weights)


def test_an_unknown_block_is_refused(llm):
    with pytest.raises(InputError, match="blocks of 48"):
        quantize_blocks(ir.load(llm), 48)


def test_a_graph_with_dynamic_int8_answers_nearly_alike(llm, tmp_path):
    model = ir.load(llm)
    kept = find_linears(model)[0].name
    changed = dynamic_int8(model, keep=[kept])
    assert kept not in changed
    assert len(changed) == len(find_linears(ir.load(llm))) - 1
    narrow, path = opened(model, tmp_path, "dynamic")
    onnx.checker.check_model(str(path), full_check=True)
    wide = ort.InferenceSession(str(llm), providers=["CPUExecutionProvider"])
    feeds = prompt(wide)
    for got, wanted in zip(narrow.run(None, feeds), wide.run(None, feeds), strict=True):
        assert cosine(got, wanted) > 0.99
