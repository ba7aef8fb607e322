"""A layer's loss is what its rounding does to the odds of the answer's tokens."""

import shutil

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from geomag_edge.calibration.gate import forced
from geomag_edge.calibration.gate.forced import ForcedLlm, activation_losses, layer_losses
from geomag_edge.calibration.quantization.capture import capture
from geomag_edge.calibration.quantization.formats.int4 import last_layers, quantize_blocks
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.scales import save_scales
from geomag_edge.calibration.quantization.sequences import Spoken, feeds_of
from geomag_edge.calibration.quantize import write_graphs
from geomag_edge.calibration.sets.calibrating import open_calibration_set
from geomag_edge.disk.amend import amended
from geomag_edge.manifest import Bundle


@pytest.fixture(scope="module")
def llm(exported):
    return exported().graph("llm")


@pytest.fixture(scope="module")
def spoken(llm):
    rng = np.random.default_rng(0)
    width = next(v for v in ir.load(llm).graph.inputs if v.name == "inputs_embeds").shape[2]
    return [Spoken(rng.standard_normal((n, width)).astype("f2"), n - 3) for n in (7, 9, 8)]


def test_the_last_tokens_odds_are_those_of_the_graphs_logits(llm, spoken):
    plain = ort.InferenceSession(str(llm), providers=["CPUExecutionProvider"])
    for one in spoken:
        [logits] = plain.run(["logits"], feeds_of(plain, one))
        row = logits.reshape(-1).astype(np.float64)
        expected = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        got = ForcedLlm(llm).odds(one, {})
        assert got.shape == (3, len(row))
        assert np.allclose(got[-1], expected, atol=1e-3)
        assert np.allclose(np.exp(got).sum(axis=1), 1)


def test_a_coarser_weight_costs_more_and_an_unchanged_one_nothing(llm, spoken):
    linears = find_linears(ir.load(llm))
    four = quantize_blocks(ir.load(llm))
    eight = quantize_blocks(ir.load(llm), wide8=[x.name for x in linears])
    some = [x.name for x in linears[:3]]
    coarse = layer_losses(llm, spoken, {n: four[n] for n in some})
    fine = layer_losses(llm, spoken, {n: eight[n] for n in some})
    assert list(coarse) == some
    assert all(coarse[n] > 10 * fine[n] >= 0 for n in some)
    own = {some[0]: linears[0].weight.const_value.numpy()}
    engine = ForcedLlm(llm)
    assert np.array_equal(engine.odds(spoken[0], own), engine.odds(spoken[0], {}))


def test_a_large_model_is_measured_on_fewer_sequences(llm, spoken, monkeypatch):
    asked = []
    plain = ForcedLlm.odds
    monkeypatch.setattr(
        ForcedLlm, "odds", lambda self, one, w: asked.append(one) or plain(self, one, w)
    )
    weights = {k: w for k, w in list(quantize_blocks(ir.load(llm)).items())[:1]}
    layer_losses(llm, spoken, weights)
    assert len(asked) == 2 * len(spoken)
    asked.clear()
    monkeypatch.setattr(forced, "PRODUCTS", 1)
    layer_losses(llm, spoken, weights)
    assert len(asked) == 2 * forced.LEAST


def test_an_inputs_loss_is_one_for_all_that_read_it(bundle, tmp_path):
    opened = Bundle.open(shutil.copytree(bundle, tmp_path / "copy"))
    found = capture(opened, open_calibration_set("scenes:1:2:96", 8), threads=1)
    opened = save_scales(opened, found.scales, "mse")
    with amended(opened, "onnx/int8") as change:
        narrow = write_graphs(change, "int8")["llm"]
    again = Bundle.open(opened.root)
    graph = again.graph("llm", "fp32")
    losses = activation_losses(graph, again, "int8", found.scales.spoken[:2], 1)
    assert set(losses) == set(narrow)
    heads = last_layers(ir.load(graph))
    assert {node for node, loss in losses.items() if loss <= 0} <= heads
    tensors = {x.name: x.tensor for x in find_linears(ir.load(graph)) if x.name in losses}
    by_tensor = {}
    for node, tensor in tensors.items():
        by_tensor.setdefault(tensor, set()).add(losses[node])
    assert len(by_tensor) < len(losses)
    assert all(len(found) == 1 for found in by_tensor.values())
