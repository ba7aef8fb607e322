"""Engines behind one interface: opened by name, the same answers, clear refusals."""

import shutil

import numpy as np
import pytest

from geomag_edge import Pipeline
from geomag_edge.errors import BundleError, CheckpointError, EngineError, InputError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.engine import ENGINES, GPU_ENGINES
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.engines.ort import OrtSession
from geomag_edge.runtime.engines.reference import FILES, load_reference


@pytest.fixture(scope="module")
def calls(bundle):
    samples = load_reference(*(bundle / "reference" / name for name in FILES))
    return {call.graph: call for sample in samples for call in sample.calls}


@pytest.fixture(params=ENGINES)
def engine(request, exported):
    made = exported()
    try:
        opened = open_engine(request.param, Bundle.open(made.bundle), checkpoint=made.checkpoint)
    except InputError as e:
        if request.param not in GPU_ENGINES:
            raise
        pytest.skip(str(e))
    yield opened
    opened.close()


@pytest.mark.parametrize("graph", [*CHAIN, "psc"])
def test_every_engine_runs_every_graph_from_named_arrays_to_named_arrays(engine, calls, graph):
    session = engine.session(graph)
    outputs = session.run(calls[graph].inputs)
    assert {*outputs} == {*calls[graph].outputs}
    for name, expected in calls[graph].outputs.items():
        assert isinstance(outputs[name], np.ndarray)
        assert outputs[name].dtype == expected.dtype
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-3, atol=1e-4)
    session.close()


def test_kept_outputs_are_inputs_of_the_next_run_without_changing_the_result(engine, calls):
    session, feeds = engine.session("llm"), calls["llm"].inputs
    cache = frozenset(n for n in calls["llm"].outputs if n.startswith("present"))
    first = session.run(feeds, keep=cache)
    plain = session.run(feeds)
    assert isinstance(first["logits"], np.ndarray)
    assert not any(isinstance(first[name], np.ndarray) for name in cache)

    def following(out):
        past = {n.replace("present", "past_key_values"): out[n] for n in cache}
        length = feeds["attention_mask"].shape[1] + 1
        return past | {
            "inputs_embeds": feeds["inputs_embeds"][:, -1:],
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.array([[length - 1]]),
        }

    kept = session.run(following(first), keep=cache)
    copied = session.run(following(plain))
    np.testing.assert_array_equal(kept["logits"], copied["logits"])
    session.close()


def test_float_feeds_of_another_width_or_layout_are_cast(bundle, calls):
    session = open_engine("ort-cpu", Bundle.open(bundle)).session("encoder")
    views = calls["encoder"].inputs["views"]
    wide = np.asfortranarray(views.astype(np.float64))
    expected = session.run({"views": views})["tokens"]
    np.testing.assert_array_equal(session.run({"views": wide})["tokens"], expected)


@pytest.mark.parametrize("name", ["", "tpu", "ORT-CPU", "auto ", "ort-cuda2"])
def test_an_unknown_engine_is_answered_with_those_that_exist(bundle, name):
    with pytest.raises(EngineError, match=r"unknown engine .* ort-cpu"):
        Pipeline.load(bundle, engine=name)


def test_a_precision_that_is_not_in_the_bundle_is_named(bundle):
    with pytest.raises(BundleError, match="no fp16 graphs: it has fp32"):
        Pipeline.load(bundle, precision="fp16")


def test_the_torch_engine_has_no_other_precision(exported):
    made = exported()
    with pytest.raises(EngineError, match="fp32 reference, it has no fp16"):
        open_engine("torch", Bundle.open(made.bundle), "fp16", checkpoint=made.checkpoint)


def test_the_torch_engine_finds_the_checkpoint_where_it_was(exported):
    engine = open_engine("torch", Bundle.open(exported().bundle))
    assert engine.session("encoder").provider == "PyTorch CPU"


def test_the_torch_engine_refuses_a_checkpoint_that_moved_or_is_another(
    exported, checkpoint_of, tmp_path
):
    moved = shutil.copytree(exported().bundle, tmp_path / "deep" / "bundle")
    with pytest.raises(CheckpointError, match="give --checkpoint DIR"):
        open_engine("torch", Bundle.open(moved))
    with pytest.raises(CheckpointError, match="is not the checkpoint that this bundle"):
        open_engine("torch", Bundle.open(moved), checkpoint=checkpoint_of("llama-clip"))


def test_a_feed_that_is_no_input_is_named(bundle):
    session = open_engine("ort-cpu", Bundle.open(bundle)).session("embed")
    with pytest.raises(EngineError, match="no input 'ids': it has input_ids"):
        session.run({"ids": np.zeros((1, 1), np.int64)})


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"input_ids": np.zeros((2, 2, 2), np.int64)},
        {"input_ids": np.array([[10**6]])},
    ],
    ids=["missing", "wrong rank", "out of range"],
)
@pytest.mark.parametrize("keep", [frozenset(), frozenset({"inputs_embeds"})], ids=["", "kept"])
def test_feeds_that_a_graph_cannot_take_are_one_clear_error(bundle, feeds, keep):
    session = open_engine("ort-cpu", Bundle.open(bundle)).session("embed")
    with pytest.raises(EngineError, match="ONNX Runtime failed") as refusal:
        session.run(feeds, keep)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_graph_is_one_clear_error(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"cannot load broken\.onnx") as refusal:
        OrtSession(tmp_path / "broken.onnx")
    assert "\n" not in str(refusal.value)


def test_a_changed_graph_is_not_opened(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    content = bytearray((copy / "onnx/fp32/llm.onnx").read_bytes())
    content[-1] ^= 1
    (copy / "onnx/fp32/llm.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"llm\.onnx is not what was exported"):
        Pipeline.load(copy)


def test_closing_a_pipeline_closes_every_graph(bundle):
    with Pipeline.load(bundle) as pipe:
        assert {*pipe.chain.sessions} == {*CHAIN}
    assert pipe.chain.sessions == {}


def test_threads_can_be_limited(bundle, picture):
    with Pipeline.load(bundle) as all_threads, Pipeline.load(bundle, threads=1) as one:
        expected = all_threads(picture, "ships", "image", 3).token_ids
        assert one(picture, "ships", "image", 3).token_ids == expected
