"""OpenVINO as an engine: PyTorch's answers in float32, nearly them in bfloat16, clear refusals."""

import gc
import json
import shutil
import sys

import numpy as np
import onnx
import pytest

from geomag_edge import Pipeline
from geomag_edge.errors import BundleError, EngineError, MissingExtraError
from geomag_edge.graphs import CHAIN, TOLERANCES
from geomag_edge.manifest import Bundle, sha256_of
from geomag_edge.runtime.answers.masks import mask_iou
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.engines.reference import FILES, load_reference
from geomag_edge.runtime.proof.verify import verify

pytest.importorskip("openvino")
FAMILIES = ("qwen3-siglip", "llama-clip", "qwen2-clip")


def reference(bundle):
    return load_reference(*(bundle / "reference" / name for name in FILES))


def verified(bundle, precision):
    with Pipeline.load(bundle, engine="openvino", precision=precision, threads=1) as pipe:
        return verify(pipe.chain, reference(bundle), TOLERANCES[precision])


def has_bf16():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


bf16_only = pytest.mark.skipif(not has_bf16(), reason="this CPU has no bfloat16")


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_graph_and_the_chain_answer_as_pytorch_did(exported, family):
    report = verified(exported(family).bundle, "fp32")
    assert report.ok, report.first_drift
    assert {d.graph for d in report.graphs} == {*CHAIN, "psc"}
    assert {*report.providers.values()} == {"OpenVINO CPU f32"}


def test_no_graph_is_pinned_to_a_core(bundle):
    """By default every process with N threads is bound to the same first N cores."""
    engine = open_engine("openvino", Bundle.open(bundle), "fp32", 1)
    pinned = engine.session("mask_head")._compiled.get_property("ENABLE_CPU_PINNING")
    assert pinned is False


def test_the_chain_answers_as_onnx_runtime_does(bundle, picture):
    answers = []
    for engine in ("ort-cpu", "openvino"):
        with Pipeline.load(bundle, engine=engine) as pipe:
            answers.append(pipe(picture, "segment the ships", "pixel", 8, answer_prefix="[SEG]"))
    ours, theirs = answers
    assert ours.token_ids == theirs.token_ids
    np.testing.assert_array_equal(ours.crop_boxes, theirs.crop_boxes)
    assert len(ours.masks) == len(theirs.masks) >= 1
    for a, b in zip(ours.masks, theirs.masks, strict=True):
        assert mask_iou(np.asarray(a), np.asarray(b)) > 0.999


@bf16_only
def test_bf16_runs_the_fp32_graphs_in_bfloat16_but_never_what_chooses_crops(bundle):
    report = verified(bundle, "bf16")
    worst = {d.graph: max(x.relative for x in report.graphs if x.graph == d.graph)
             for d in report.graphs}  # fmt: skip
    assert all(worst[graph] < 1e-5 for graph in ("psc_select", "psc", "embed", "projector"))
    assert all(1e-5 < worst[graph] < 0.1 for graph in ("encoder", "llm", "mask_head"))
    assert report.precision == "bf16"
    assert report.providers["llm"] == "OpenVINO CPU bf16"
    assert report.providers["psc_select"] == "OpenVINO CPU f32"


@pytest.mark.parametrize("engine", ["ort-cpu", "torch"])
def test_other_engines_say_that_they_have_no_bf16(bundle, engine):
    with pytest.raises(EngineError, match=f"^{engine} has no bf16: --engine openvino"):
        Pipeline.load(bundle, engine=engine, precision="bf16")


def test_bf16_without_the_hardware_is_refused(bundle, monkeypatch):
    import openvino

    class OldCpu(openvino.Core):
        def get_property(self, *_):
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", OldCpu)
    with pytest.raises(EngineError, match="no bfloat16: use --precision fp32"):
        open_engine("openvino", Bundle.open(bundle), "bf16")


def test_bf16_of_a_bundle_without_fp32_graphs_is_refused(copy):
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["graphs"]["fp16"] = manifest["graphs"].pop("fp32")
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="no fp32 graphs: it has fp16"):
        Pipeline.load(copy, engine="openvino", precision="bf16")


def test_without_the_package_the_extra_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'pip install "geomag-edge\[openvino\]"'):
        Pipeline.load(bundle, engine="openvino")


def test_a_graph_that_it_cannot_load_is_named_in_one_line(copy):
    path = copy / "onnx/fp32/encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, path)
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"]["onnx/fp32/encoder.onnx"] = sha256_of(path)
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(
        EngineError, match=r"OpenVINO cannot load encoder\.onnx: .*Nonsense"
    ) as refusal:
        Pipeline.load(copy, engine="openvino")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("feeds", "complaint"),
    [
        ({}, "needs the input 'input_ids'"),
        ({"ids": np.zeros((1, 1), np.int64)}, "no input 'ids': it has input_ids"),
        ({"input_ids": np.zeros((2, 2, 2), np.int64)}, "OpenVINO failed on a graph: "),
    ],
    ids=["missing", "unknown", "wrong rank"],
)
@pytest.mark.parametrize("keep", [frozenset(), frozenset({"inputs_embeds"})], ids=["", "kept"])
def test_feeds_that_a_graph_cannot_take_are_one_clear_error(bundle, feeds, complaint, keep):
    session = open_engine("openvino", Bundle.open(bundle)).session("embed")
    good = {"input_ids": np.array([[5, 3]])}
    expected = session.run(good)["inputs_embeds"]
    with pytest.raises(EngineError, match=complaint) as refusal:
        session.run(feeds, keep)
    assert "\n" not in str(refusal.value)
    np.testing.assert_array_equal(session.run(good)["inputs_embeds"], expected)


def test_what_one_run_returned_is_not_touched_by_the_next(bundle):
    session = open_engine("openvino", Bundle.open(bundle)).session("embed")
    kept = session.run({"input_ids": np.array([[5]])}, frozenset({"inputs_embeds"}))
    plain = session.run({"input_ids": np.array([[7]])})
    before = kept["inputs_embeds"].data.copy(), plain["inputs_embeds"].copy()
    session.run({"input_ids": np.array([[9]])}, frozenset({"inputs_embeds"}))
    session.run({"input_ids": np.array([[11]])})
    np.testing.assert_array_equal(kept["inputs_embeds"].data, before[0])
    np.testing.assert_array_equal(plain["inputs_embeds"], before[1])
    assert not np.array_equal(*before)


def test_a_cache_may_be_continued_twice(bundle, manifest):
    """Two answers from one prefill: the engine must not grow the cache in place."""
    session = open_engine("openvino", Bundle.open(bundle)).session("llm")
    call = next(c for s in reference(bundle) for c in s.calls if c.graph == "llm")
    cache = frozenset(n for n in call.outputs if n.startswith("present"))
    out = session.run(call.inputs, keep=cache)
    length = call.inputs["attention_mask"].shape[1] + 1

    def step(scale):
        feeds = {n.replace("present", "past_key_values"): out[n] for n in cache} | {
            "inputs_embeds": call.inputs["inputs_embeds"][:, -1:] * np.float32(scale),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.array([[length - 1]]),
        }
        return session.run(feeds, keep=cache)["logits"]

    first, other, again = step(1), step(-3), step(1)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, again)


def test_closing_frees_the_models(bundle):
    with Pipeline.load(bundle, engine="openvino") as pipe:
        sessions = list(pipe.chain.sessions.values())
        assert all(hasattr(s, "_compiled") for s in sessions)
    gc.collect()
    assert not any(hasattr(s, "_compiled") or hasattr(s, "_request") for s in sessions)
