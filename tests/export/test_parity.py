"""Bundles of every family prove parity, and their graphs are valid for every CPU runtime."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.cpp_ext.onnx_op import inline_psc_crop
from geomag_edge.export import exporter
from geomag_edge.graphs import TOLERANCES
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.reference import FILES, load_reference
from geomag_edge.runtime.engines.replay import difference

FAMILIES = ("qwen3-siglip", "llama-clip", "qwen2-clip")
FORMS = [*((family, 23) for family in FAMILIES), ("qwen3-siglip", 20)]
GRAPHS = ("encoder", "psc", "psc_select", "projector", "embed", "llm", "mask_head")
OPENVINO_GRAPHS = [g for g in GRAPHS if g != "psc"]
AS_DEPLOYED = {"INFERENCE_PRECISION_HINT": "f32"}

forms = pytest.mark.parametrize(("family", "opset"), FORMS)


@forms
def test_an_export_answers_as_pytorch_does(exported, family, opset):
    report = exported(family, opset).report
    assert report.ok
    assert report.first_drift is None
    assert {d.graph for d in report.graphs} == set(GRAPHS)
    assert max(d.relative for d in report.graphs) <= 1e-4
    assert [(c.budget, c.first_token) for c in report.chain] == [
        ("image", None), ("region", None), ("pixel", None),
    ]  # fmt: skip
    assert min(c.mask_iou for c in report.chain if c.masks) >= 0.999
    assert sum(c.masks for c in report.chain) >= 1  # some mask was there to be compared


@forms
def test_the_manifest_keeps_the_report(exported, family, opset):
    made = exported(family, opset)
    manifest = Bundle.open(made.bundle).manifest
    assert manifest.parity["fp32"] == json.loads(json.dumps(made.report.to_json()))
    assert {r["opset"] for r in manifest.graphs["fp32"].values()} == {opset}


@forms
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_passes_the_full_check(exported, family, opset, graph):
    onnx.checker.check_model(str(exported(family, opset).graph(graph)), full_check=True)


def calls_of(bundle, graph):
    samples = load_reference(*(bundle / "reference" / name for name in FILES))
    calls = [call for sample in samples for call in sample.calls if call.graph == graph]
    assert calls
    return calls


def openvino_model(path_or_bytes, *extensions):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    for extension in extensions:
        core.add_extension(extension)
    return core.compile_model(core.read_model(path_or_bytes), "CPU", AS_DEPLOYED)


def assert_as_the_reference(compiled, calls):
    for call in calls:
        outputs = compiled(call.inputs)
        for name, expected in call.outputs.items():
            _, relative, _ = difference(expected, outputs[name])
            assert relative <= TOLERANCES["fp32"].relative, name


@forms
@pytest.mark.parametrize("graph", OPENVINO_GRAPHS)
def test_every_graph_answers_in_openvino_as_in_pytorch(exported, family, opset, graph):
    made = exported(family, opset)
    assert_as_the_reference(openvino_model(made.graph(graph)), calls_of(made.bundle, graph))


@forms
def test_psc_answers_in_openvino_once_its_function_is_inlined(exported, family, opset):
    made = exported(family, opset)
    inlined = inline_psc_crop(onnx.load(str(made.graph("psc"))))
    compiled = openvino_model(inlined.SerializeToString())
    assert_as_the_reference(compiled, calls_of(made.bundle, "psc"))


def test_psc_answers_in_openvino_as_it_is_with_the_kernel_registered(exported):
    from geomag_edge.cpp_ext.openvino_op import psc_crop_extension

    made = exported()
    compiled = openvino_model(made.graph("psc"), psc_crop_extension())
    assert_as_the_reference(compiled, calls_of(made.bundle, "psc"))


@forms
@pytest.mark.parametrize("shape", [(90, 333), (333, 90), (64, 64)], ids=str)
def test_psc_equals_its_selection_and_the_kernel_run_one_after_the_other(
    exported, ort_graph, rng, family, opset, shape
):
    manifest = Bundle.open(exported(family, opset).bundle).manifest
    height, width = shape
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    select = exported(family, opset).graph("psc_select")
    dim = onnx.load(str(select)).graph.input[0].type.tensor_type.shape.dim[2].dim_value
    embeds = rng.normal(size=(1, 16, dim)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    prompt = {"embeds": embeds, "prompt_ids": rng.integers(4, 300, (1, 24))}
    whole = ort_graph(family, opset, "psc")(prompt | {"image": image})

    side = max(height, width)
    x0, y0 = (width - side) / 2, (height - side) / 2
    view_box = np.array([x0, y0, x0 + side, y0 + side], np.float32)
    shape = np.array(image.shape, np.int64)
    parts = ort_graph(family, opset, "psc_select")(
        prompt | {"view_box": view_box, "image_shape": shape}
    )
    for name, expected in parts.items():
        np.testing.assert_array_equal(whole[name], expected)
    mean_std = np.array([manifest.view.mean, manifest.view.std], np.float32)
    crops = psc_crop(image, parts["boxes"], mean_std, manifest.view.view_px)
    np.testing.assert_allclose(whole["crops"], crops, atol=1e-4)


def test_half_precision_stays_within_its_tolerance(exported):
    made = exported("llama-clip", 23, "fp16")
    assert made.report.ok
    tolerance = TOLERANCES["fp16"]
    assert max(d.relative for d in made.report.graphs) <= tolerance.relative
    drifts = {d.output: d.relative for d in made.report.graphs}
    assert drifts["logits"] > 1e-5  # it really ran in half precision


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_takes_the_weights_and_leaves_tables_such_as_rotary_frequencies(
    make_model, family
):
    model, whole = make_model(family), make_model(family)
    exporter._cast_weights(model, torch.float16)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    tables = dict(whole.named_buffers())
    assert "language_model.model.rotary_emb.inv_freq" in tables
    for name, table in model.named_buffers():
        assert torch.equal(table, tables[name])

    late = torch.tensor([[500]])
    places = torch.zeros(1, 1, 48)
    rotary, truth = (m.language_model.model.rotary_emb for m in (model, whole))
    for got, expected in zip(rotary(places.half(), late), truth(places, late), strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=0, atol=1e-3)


def test_half_precision_graphs_are_half_throughout_and_answer(exported, picture):
    made = exported("llama-clip", 23, "fp16")
    for graph in GRAPHS:
        session = ort.InferenceSession(str(made.graph(graph)), providers=["CPUExecutionProvider"])
        assert "tensor(float16)" in {v.type for v in session.get_inputs() + session.get_outputs()}
    with Pipeline.load(made.bundle, precision="fp16") as pipe:
        answer = pipe(picture, "segment the ships", "pixel", 4, answer_prefix="[SEG]")
    assert answer.precision == "fp16"
    assert len(answer.masks) >= 1
