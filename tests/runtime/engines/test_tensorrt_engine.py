"""TensorRT engines in the chain, on a stand-in that executes their graphs with ONNX Runtime, late
and strictly; and what is refused before any of it. Nothing is claimed of speed or of hardware.
"""

import dataclasses
import enum
import inspect
import json
import shutil

import numpy as np
import onnxruntime as ort
import pytest

from geomag_edge.benchmarks.gpu import outside as gpu_polygraphy
from geomag_edge.benchmarks.gpu.child import in_a_process
from geomag_edge.errors import BundleError, EngineError, MissingExtraError
from geomag_edge.graphs import CHAIN, past_names, present_names
from geomag_edge.manifest import Bundle, sha256_of
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.tensorrt import engine as engine_module
from geomag_edge.runtime.engines.tensorrt import log as log_module
from geomag_edge.runtime.engines.tensorrt.cache import GrowingCache
from geomag_edge.runtime.engines.tensorrt.engine import TensorRtEngine
from geomag_edge.runtime.engines.tensorrt.record import load_records
from tests.runtime.built import built, pipeline
from tests.runtime.tensorrt_stand_in import VERSION

PLACE = "engines/tensorrt-rtx/fp32"
SMALL = {"views": 2, "queries": 2}
"""Limits below what a pixel-level answer asks for, so that calls are made in parts."""


@pytest.fixture(autouse=True)
def own_logger(monkeypatch):
    monkeypatch.setattr(log_module, "_LOGGERS", {})


@pytest.fixture(scope="module")
def opened(bundle):
    return Bundle.open(bundle)


@pytest.fixture(scope="module")
def engines(opened, tmp_path_factory):
    return built(opened, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def reference(opened):
    with Pipeline.load(opened, "ort-cpu") as pipe:
        yield pipe


def opened_on(bundle, device, make_tensorrt, **how):
    flavour = make_tensorrt(device.driver, **how)
    return TensorRtEngine("tensorrt-rtx", bundle, "fp32", device, flavour)


def same(a, b):
    assert a.token_ids == b.token_ids
    np.testing.assert_array_equal(a.crop_boxes, b.crop_boxes)
    assert len(a.masks) == len(b.masks)
    for one, other in zip(a.masks, b.masks, strict=True):
        assert np.mean(np.asarray(one) != np.asarray(other)) < 1e-3


HOWS = {
    "profiles in one engine": {},
    "an engine a profile": {"separate": True},
    "calls in parts": {"limits": SMALL},
}


@pytest.mark.parametrize("how", HOWS)
def test_answers_are_those_of_onnx_runtime(
    how, opened, reference, make_device, make_tensorrt, picture, tmp_path
):
    device = make_device()
    engine = opened_on(built(opened, tmp_path, **HOWS[how]), device, make_tensorrt)
    prefix = "[SEG][SEG][SEG]"
    with pipeline(engine) as pipe:
        for prompt in ("segment the ships", "where is the pier?", "segment the ships"):
            ours = pipe(picture, prompt, "pixel", 5, prefix)
            same(ours, reference(picture, prompt, "pixel", 5, prefix))
    assert ours.engine == "tensorrt-rtx"
    assert ours.providers["llm"] == f"TensorRT for RTX {VERSION} on stand-in"


@pytest.mark.parametrize("integrated", [False, True])
def test_recurring_shapes_are_replayed_and_the_growing_cache_is_not(
    engines, reference, make_device, make_tensorrt, picture, integrated
):
    device = make_device(integrated=integrated)
    engine = opened_on(engines, device, make_tensorrt)
    with pipeline(engine) as pipe:
        for _ in range(4):
            ours = pipe(picture, "segment the ships", "pixel", 5, "[SEG]")
            same(ours, reference(picture, "segment the ships", "pixel", 5, "[SEG]"))
        replayed = {
            graph: sum(r.replayed for r in session._replays.values())
            for graph, session in pipe.chain.sessions.items()
        }
    assert replayed.pop("llm") == 0
    assert all(replayed.values()), replayed
    assert engine.flavour.module._contexts > len(replayed)  # one more for each recording


def test_a_context_that_cannot_be_recorded_runs_plainly(
    engines, reference, device, make_tensorrt, picture
):
    engine = opened_on(engines, device, make_tensorrt, capturable=False)
    with pipeline(engine) as pipe:
        for _ in range(3):
            ours = pipe(picture, "segment the ships", "image", 3, "[SEG]")
            same(ours, reference(picture, "segment the ships", "image", 3, "[SEG]"))
    assert device.driver.replays == 0


def test_compiled_kernels_are_kept_for_the_next_process(
    engines, device, make_tensorrt, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = []
    for _ in range(2):
        engine = opened_on(engines, device, make_tensorrt)
        session = engine.session("embed")
        session.run({"input_ids": np.zeros((1, 3), np.int64)})
        [config] = engine.flavour.module._configs
        given.append(config._cache._given)
        session.close()
    [file] = (tmp_path / "geomag-edge/kernels").iterdir()
    assert file.name.startswith(session._files[0].sha256[:32])
    assert given == [None, b"compiled kernels"]


def test_a_device_without_room_for_an_engine_is_named(opened, tmp_path, device, make_tensorrt):
    engine = opened_on(built(opened, tmp_path), device, make_tensorrt)
    said = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"

    def refuse(data):
        engine.log.log(enum.Enum("Severity", "ERROR").ERROR, said)

    engine.runtime.deserialize_cuda_engine = refuse
    with pytest.raises(EngineError, match=r"cannot load .*embed\.engine: .*out of memory\); the "
                       r"device's memory ran out: end other programs"):  # fmt: skip
        engine.session("embed")


def test_shapes_that_tensorrt_wants_on_the_host_are_given_there(
    engines, reference, device, make_tensorrt, picture
):
    engine = opened_on(engines, device, make_tensorrt, on_host=["image_shape"])
    with pipeline(engine) as pipe:
        for _ in range(3):
            ours = pipe(picture, "segment the ships", "region", 3)
            same(ours, reference(picture, "segment the ships", "region", 3))
    assert "image_shape" not in device.to_device_bytes


def test_no_array_comes_to_the_host_between_stages(engines, device, make_tensorrt, picture):
    with pipeline(opened_on(engines, device, make_tensorrt)) as pipe:
        result = pipe(picture, "segment the ships", "pixel", 6, "[SEG]")
    assert set(device.to_host_bytes) <= {
        "token", "mask_logits", "quality", "granularity", "boxes", "scores", "relevance",
    }  # fmt: skip
    assert device.to_host_bytes["token"] == 8 * (result.decode_steps + 1)
    # And to the device only what the host knows: the image, the prompt, boxes and lengths.
    assert set(device.to_device_bytes) <= {
        "image", "prompt_ids", "view_box", "image_shape", "pooling", "positions", "input_ids",
        "attention_mask", "position_ids",
    }  # fmt: skip
    assert device.to_device_bytes["image"] == picture.nbytes


def test_the_cache_is_two_halves_and_no_more(engines, device, make_tensorrt):
    engine = opened_on(engines, device, make_tensorrt)
    llm, shape = engine.session("llm"), engines.manifest.decoder
    names = present_names(shape.layers)
    past = {
        n: np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
        for n in past_names(shape.layers)
    }
    places = []
    for step in range(5):
        out = llm.run(
            {
                "inputs_embeds": np.full((1, 1, shape.hidden), 0.1, np.float32),
                "attention_mask": np.ones((1, step + 1), np.int64),
                "position_ids": np.array([[step]]),
                **past,
            },
            frozenset(names),
        )
        past = dict(zip(past_names(shape.layers), (out[n] for n in names), strict=True))
        places.append(out[names[0]].pointer)
        assert out[names[-1]].shape == (1, shape.kv_heads, step + 1, shape.head_dim)
    assert len(set(places)) == 2
    assert places[0] == places[2] == places[4]


def test_a_cache_that_is_full_says_what_to_do(device):
    cache = GrowingCache(device, ["present.0.key"], 2, 4, 10, np.float32)
    assert cache.outputs_for({}, 10)["present.0.key"].shape == (1, 2, 10, 4)
    with pytest.raises(EngineError, match="holds 10 tokens, this asks for 11: give a smaller"):
        cache.outputs_for({}, 11)


def test_sizes_beyond_the_profiles_say_what_was_built(engines, device, make_tensorrt):
    engine = opened_on(engines, device, make_tensorrt)
    most = engine.record.limits.prompt
    with pytest.raises(EngineError, match=rf"embed was built for .*T 1\.\.{most}.*asks for.*T = "):
        engine.session("embed").run({"input_ids": np.zeros((1, most + 1), np.int64)})


def test_inputs_that_disagree_are_refused(engines, device, make_tensorrt):
    engine = opened_on(engines, device, make_tensorrt)
    spec = {p["name"]: p["axes"] for p in engines.record("projector", "fp32")["inputs"]}
    sizes = {"n": 1, "q": 4, "P": engines.manifest.view.grid**2, "Dv": 48}
    feeds = {
        name: np.zeros([sizes.get(a, a) if isinstance(a, str) else a for a in axes], np.float32)
        for name, axes in spec.items()
    }
    feeds["positions"] = np.zeros((1, 9, 5), np.float32)
    with pytest.raises(EngineError, match="the inputs of projector disagree on q: 4, and 9 in pos"):
        engine.session("projector").run(feeds)


def test_tensorrts_own_words_are_in_the_error(engines, device, make_tensorrt):
    engine = opened_on(engines, device, make_tensorrt)
    session = engine.session("embed")
    wide = dataclasses.replace(session._files[0].profiles[0], axes={"B": (1, 1, 9), "T": (1, 1, 9)})
    file = dataclasses.replace(session._files[0], profiles=(wide,))
    engine.record.engines["embed"][:] = [file]  # says more than the engine takes
    with pytest.raises(EngineError, match=r"failed on embed, giving input_ids the shape \[2, 1\]: "
                       r"Set dimension 2 for tensor input_ids does not satisfy"):  # fmt: skip
        session.run({"input_ids": np.zeros((2, 1), np.int64)})


def refused(opened, tmp_path, device, make_tensorrt, **changes):
    bundle = built(opened, tmp_path, **changes)
    with pytest.raises(EngineError) as caught:
        opened_on(bundle, device, make_tensorrt)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_engines_of_another_version_are_refused(opened, tmp_path, device, make_tensorrt):
    said = refused(opened, tmp_path, device, make_tensorrt, version="1.6.0.1")
    assert "built by tensorrt_rtx 1.6.0.1, 1.7.1.116 is installed: build them again here" in said


def test_engines_that_later_versions_load_are_taken(opened, tmp_path, device, make_tensorrt):
    bundle = built(
        opened, tmp_path, version="1.6.0.1", options={"version_compatible": True}
    )  # fmt: skip
    engine = opened_on(bundle, device, make_tensorrt)
    assert engine.runtime.engine_host_code_allowed


def test_engines_of_a_later_version_are_refused_even_so(opened, tmp_path, device, make_tensorrt):
    options = {"version_compatible": True}
    said = refused(opened, tmp_path, device, make_tensorrt, version="1.8.0.0", options=options)
    assert "built by tensorrt_rtx 1.8.0.0" in said


def test_engines_for_another_gpu_are_refused(opened, tmp_path, device, make_tensorrt):
    said = refused(opened, tmp_path, device, make_tensorrt, loads_on_sm=["8.9", "12.0"])
    assert "for GPUs of compute capability 8.9, 12.0, this stand-in has 8.7" in said
    assert "geomag-edge build" in said


def test_engines_without_their_weights_are_refused(opened, tmp_path, device, make_tensorrt):
    said = refused(opened, tmp_path, device, make_tensorrt, options={"stripped": True})
    assert "without their weights" in said


def test_a_bundle_without_engines_names_the_command(opened, device, make_tensorrt):
    with pytest.raises(EngineError, match=r"no fp32 engines for tensorrt-rtx: `geomag-edge build "
                       r".* --target tensorrt-rtx --precision fp32`"):  # fmt: skip
        opened_on(opened, device, make_tensorrt)


def test_another_precision_names_what_there_is(engines, device, make_tensorrt):
    flavour = make_tensorrt(device.driver)
    with pytest.raises(EngineError, match="no int8 engines for tensorrt-rtx, but fp32: "):
        TensorRtEngine("tensorrt-rtx", engines, "int8", device, flavour)


def test_a_changed_engine_is_not_opened(opened, tmp_path, device, make_tensorrt):
    bundle = built(opened, tmp_path)
    (tmp_path / PLACE / "embed.engine").write_bytes(b"something else")
    engine = opened_on(bundle, device, make_tensorrt)
    with pytest.raises(BundleError, match=r"embed\.engine is not what was"):
        engine.session("embed")


def test_an_engine_that_tensorrt_refuses_says_why(opened, tmp_path, device, make_tensorrt):
    bundle = built(opened, tmp_path)
    (tmp_path / PLACE / "embed.engine").write_bytes(b"not an engine")
    bundle.manifest.files[f"{PLACE}/embed.engine"] = sha256_of(tmp_path / PLACE / "embed.engine")
    engine = opened_on(bundle, device, make_tensorrt)
    with pytest.raises(EngineError, match=r"cannot load .*embed\.engine: Serialization assertion .*"
                       r"build it again on this machine"):  # fmt: skip
        engine.session("embed")


def test_missing_tensorrt_says_how_to_install_it(engines, device, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r'pip install "geomag-edge\[tensorrt-rtx\]"'):
        TensorRtEngine("tensorrt-rtx", engines, "fp32", device)


def test_tensorrt_itself_refuses_a_broken_engine_in_one_line(opened, tmp_path, device):
    pytest.importorskip("tensorrt_rtx")
    from geomag_edge.runtime.engines.tensorrt.flavour import load_flavour

    flavour = load_flavour("tensorrt_rtx")
    bundle = built(opened, tmp_path, version=flavour.version)
    engine = TensorRtEngine("tensorrt-rtx", bundle, "fp32", device, flavour)
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* cannot load .*embed\.engine: \w"
                       ) as caught:  # fmt: skip
        engine.session("embed")
    assert "\n" not in str(caught.value)
    assert "it does not say why" not in str(caught.value)


def test_the_graphs_that_can_be_opened_are_the_chains():
    assert TensorRtEngine.graphs == CHAIN


def by_onnx_runtime(path, profile, feeds):
    """In Polygraphy's place."""
    session = ort.InferenceSession(json.loads(path.read_text())["onnx"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def test_engines_run_by_another_hand_are_compared_graph_by_graph(opened, tmp_path):
    bundle = built(opened, tmp_path / "b")
    shutil.copytree(opened.root / "onnx", tmp_path / "b" / "onnx")
    report = gpu_polygraphy.compared(bundle, "tensorrt-rtx", "fp32", by_onnx_runtime)
    assert report["ok"], report
    assert {"llm, decode", "encoder, whole"} <= set(report["relative_error"])
    assert {name.split(",")[0] for name in report["relative_error"]} == set(CHAIN)

    def broken(path, profile, feeds):
        made = by_onnx_runtime(path, profile, feeds)
        return {k: v * np.nan if k == "mask_logits" else v for k, v in made.items()}

    report = gpu_polygraphy.compared(bundle, "tensorrt-rtx", "fp32", broken)
    assert not report["ok"]
    assert report["wrong"].startswith("mask_head, masks: inf")


def test_polygraphy_has_the_names_that_are_used_and_says_when_it_cannot(opened, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    trt = pytest.importorskip("polygraphy.backend.trt")
    assert "optimization_profile" in inspect.signature(trt.TrtRunner.__init__).parameters
    assert "serialized_engine" in inspect.signature(trt.EngineFromBytes.__init__).parameters
    bundle = built(opened, tmp_path / "b")
    shutil.copytree(opened.root / "onnx", tmp_path / "b" / "onnx")
    settings = {"bundle": str(bundle.root), "precision": "fp32"}
    report = in_a_process("polygraphy tensorrt-rtx embed", settings, 300)  # no real engines
    assert (report["ran"], report["ok"]) == (True, False)
    assert "\n" not in report["error"]


def test_one_graph_may_be_asked_where_others_have_no_engines(
    opened, tmp_path, device, make_tensorrt, monkeypatch
):
    bundle = built(opened, tmp_path / "b")
    [record] = load_records(bundle)
    del record.engines["encoder"]
    monkeypatch.setattr(engine_module, "built_by", lambda *asked: [record])
    flavour = make_tensorrt(device.driver)
    with pytest.raises(EngineError, match="has no engine of encoder"):
        TensorRtEngine("tensorrt-rtx", bundle, "fp32", device, flavour)
    engine = TensorRtEngine("tensorrt-rtx", bundle, "fp32", device, flavour, ("embed",))
    made = engine.session("embed").run({"input_ids": np.zeros((1, 3), np.int64)})
    assert [a.shape[:2] for a in made.values()] == [(1, 3)]
