"""4-bit weights fitted to what they meet are nearer to float32 where it counts."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.calibration.quantization.formats import gptq
from geomag_edge.calibration.quantization.formats.gptq import (
    fit,
    fitted_blocks,
    noise,
    second_moments,
)
from geomag_edge.calibration.quantization.formats.int4 import block_weight, last_layers
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.sequences import Spoken


def correlated(seed, rows=64, columns=24, samples=400):
    """A weight, and inputs whose channels go together."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype("f4")
    mixed = rng.standard_normal((samples, rows // 4)) @ rng.standard_normal((rows // 4, rows))
    inputs = (mixed + 0.3 * rng.standard_normal((samples, rows))).astype("f4")
    return weight, inputs


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([16, 32, 64]))
def test_the_output_of_a_fitted_weight_is_nearer_than_that_of_a_rounded_one(seed, block):
    weight, inputs = correlated(seed)
    moments = inputs.T @ inputs / len(inputs)
    fitted = fit(weight, moments, block)
    plain = block_weight(weight, block)
    wrong = [np.square(inputs @ (w.dequantized() - weight)).sum() for w in (fitted, plain)]
    assert wrong[0] < 0.8 * wrong[1]
    assert noise(weight, fitted, moments) < noise(weight, plain, moments)
    assert fitted.codes.min() >= -8
    assert fitted.codes.max() <= 7
    assert fitted.scales.shape == (64 // block, 24)


def test_inputs_that_do_not_go_together_leave_plain_rounding():
    weight = np.random.default_rng(0).standard_normal((32, 8)).astype("f4")
    assert np.array_equal(fit(weight, np.eye(32), 16).codes, block_weight(weight, 16).codes)


def test_channels_that_were_never_seen_still_get_sensible_codes():
    weight, inputs = correlated(1)
    inputs[:, :20] = 0
    found = fit(weight, inputs.T @ inputs / len(inputs), 32)
    assert np.abs(found.dequantized() - weight)[:20].max() < np.abs(weight).max() / 2
    silent = fit(weight, np.zeros((64, 64)), 32)
    assert np.abs(silent.dequantized() - weight).max() < np.abs(weight).max() / 5


def test_rows_are_brought_up_to_date_in_any_number_at_a_time(monkeypatch):
    weight, inputs = correlated(2)
    moments = inputs.T @ inputs / len(inputs)
    whole = fit(weight, moments, 32)
    monkeypatch.setattr(gptq, "TOGETHER", 10)
    assert (fit(weight, moments, 32).codes == whole.codes).mean() > 0.999


@pytest.fixture(scope="module")
def llm(exported):
    return exported().graph("llm")


def heard(llm, count=4):
    """Made-up sequences of the decoder's width."""
    rng = np.random.default_rng(0)
    width = next(v for v in ir.load(llm).graph.inputs if v.name == "inputs_embeds").shape[2]
    lengths = rng.integers(6, 12, count)
    return [Spoken(rng.standard_normal((n, width)).astype("f2"), int(n) - 3) for n in lengths]


def test_moments_weigh_answers_as_they_should(llm, monkeypatch):
    tensor = find_linears(ir.load(llm))[0].tensor
    spoken = heard(llm)
    found = {}
    for share in (0.0, 0.5, 1.0):
        monkeypatch.setattr(gptq, "ANSWER", share)
        found[share] = second_moments(llm, spoken, [tensor])[tensor]
    assert np.allclose(found[0.5], (found[0.0] + found[1.0]) / 2, atol=1e-4)
    assert not np.allclose(found[0.0], found[1.0], atol=1e-2)
    assert np.allclose(found[0.5], found[0.5].T, atol=1e-4)


def test_all_layers_are_fitted_but_the_head_in_as_many_turns_as_memory_wants(llm, monkeypatch):
    heads = last_layers(ir.load(llm))
    spoken = heard(llm)
    seen = []
    at_once = fitted_blocks(llm, spoken, 64, heads, progress=seen.append)
    assert {name for name, w in at_once.items() if w.bits == 8} == heads
    assert set(seen) == set(at_once) - heads
    monkeypatch.setattr(gptq, "HESSIAN_BYTES", 1)
    in_turns = fitted_blocks(llm, spoken, 64, heads)
    for name, weight in at_once.items():
        assert np.array_equal(weight.codes, in_turns[name].codes)


def test_without_sequences_every_weight_is_rounded_by_itself(llm):
    found = fitted_blocks(llm, [], 64, ())
    linear = find_linears(ir.load(llm))[0]
    plain = block_weight(linear.weight.const_value.numpy(), found[linear.name].block)
    assert np.array_equal(found[linear.name].codes, plain.codes)
