"""The cache of fixed capacity: the same numbers as the growing one's graph, engines built for it by
TensorRT for RTX, and the runtime that updates it in place, on the stand-in. None has run on a GPU.
"""

import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.errors import EngineError
from geomag_edge.graphs import TOLERANCES, past_names, present_names
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.reference import FILES, load_reference
from geomag_edge.runtime.engines.tensorrt import log as log_module
from geomag_edge.runtime.engines.tensorrt.build import BuildOptions
from geomag_edge.runtime.engines.tensorrt.bundle import build_bundle
from geomag_edge.runtime.engines.tensorrt.engine import TensorRtEngine
from geomag_edge.runtime.engines.tensorrt.fixed import check_target, fixed_cache, fixed_ports
from geomag_edge.runtime.engines.tensorrt.profiles import limits_of, profiles_of
from geomag_edge.runtime.engines.tensorrt.record import BuildRecord, load_record
from geomag_edge.runtime.planning.fit import fit_bundle
from geomag_edge.runtime.proof.verify import verify
from geomag_edge.targets import find_target
from geomag_edge.targets.detect import Machine
from tests.runtime.built import built, pipeline

RTX = find_target("tensorrt-rtx")
PLACE = "engines/tensorrt-rtx/fp32"
CAPACITY = 40


@pytest.fixture(scope="module")
def opened(bundle):
    return Bundle.open(bundle)


@pytest.fixture(scope="module")
def fixed_file(opened, tmp_path_factory):
    """llm.onnx with a fixed cache, its data beside it."""
    folder = tmp_path_factory.mktemp("fixed")
    for name in opened.record("llm", "fp32")["data"]:
        shutil.copy(opened.root / name, folder)
    path = folder / "llm.onnx"
    path.write_bytes(fixed_cache(opened.graph("llm", "fp32"), CAPACITY))
    return path


@pytest.fixture(scope="module")
def growing_and_fixed(opened, fixed_file):
    """Both graphs as ONNX Runtime sessions."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of each cache that it copies
    return [
        ort.InferenceSession(str(p), options, providers=["CPUExecutionProvider"])
        for p in (opened.graph("llm", "fp32"), fixed_file)
    ]


def run(session, feeds):
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@settings(max_examples=20)
@given(steps=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_the_graph_computes_what_the_growing_one_does(growing_and_fixed, opened, steps, seed):
    growing, fixed = growing_and_fixed
    shape, rng = opened.manifest.decoder, np.random.default_rng(seed)
    layers = shape.layers
    past = {
        name: np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
        for name in past_names(layers)
    }
    # What lies beyond the past is never read: it may be anything finite.
    cache = {
        name: rng.normal(0, 9, (1, shape.kv_heads, CAPACITY, shape.head_dim)).astype(np.float32)
        for name in past
    }
    length = 0
    for new in steps:
        if length + new > CAPACITY:
            break
        same = {
            "inputs_embeds": rng.normal(size=(1, new, shape.hidden)).astype(np.float32),
            "position_ids": np.arange(length, length + new)[None],
        }
        mask = np.zeros((1, CAPACITY), np.int64)
        mask[:, : length + new] = 1
        a = run(growing, {**same, **past, "attention_mask": mask[:, : length + new]})
        b = run(
            fixed,
            {**same, **cache, "attention_mask": mask, "write_indices": np.array([length])},
        )
        length += new
        for name in ("logits", "hidden_states"):
            np.testing.assert_allclose(b[name], a[name], atol=1e-4 * np.abs(a[name]).max())
        for name in present_names(layers):
            np.testing.assert_allclose(b[name][:, :, :length], a[name], atol=1e-4)
        names = list(zip(past_names(layers), present_names(layers), strict=True))
        past = {p: a[q] for p, q in names}
        cache = {p: b[q] for p, q in names}


def test_all_decode_steps_have_the_same_shapes(opened, fixed_file):
    onnx.checker.check_model(str(fixed_file), full_check=True)
    model = onnx.load(str(fixed_file), load_external_data=False)
    axes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert {a for axis in axes.values() for a in axis if isinstance(a, str)} == {"B", "T"}
    ports = opened.record("llm", "fp32")
    named = fixed_ports(ports["inputs"], CAPACITY) + fixed_ports(ports["outputs"], CAPACITY)
    assert {p["name"]: len(p["axes"]) for p in named} == {n: len(a) for n, a in axes.items()}
    for port in named:
        assert [a for a in port["axes"] if a == CAPACITY] == [
            a for a in axes[port["name"]] if a == CAPACITY
        ]


def test_a_target_without_the_operator_and_an_older_graph_are_refused(exported):
    for name in ("jetpack6", "jetpack7"):
        with pytest.raises(EngineError, match=rf"'{name}' has no TensorScatter.*--cache growing"):
            check_target(find_target(name))
    for name in ("jetpack7.2", "datacenter", "tensorrt-rtx"):
        check_target(find_target(name))
    with pytest.raises(EngineError, match=r"llm\.onnx has opset 20, a fixed cache needs 23"):
        fixed_cache(exported(opset=20, dtype="fp16").graph("llm"), CAPACITY)
    with pytest.raises(EngineError, match=r"encoder\.onnx counts positions in another way"):
        fixed_cache(exported().graph("encoder"), CAPACITY)


def test_it_needs_half_the_memory_and_reads_the_whole_capacity(opened):
    growing = fit_bundle(opened, RTX, "fp32")
    fixed = fit_bundle(opened, RTX, "fp32", cache="fixed")
    assert 2 * fixed.cache_bytes == growing.cache_bytes
    for level, stages in growing.stages.items():
        before = next(s for s in stages if s.stage.startswith("decode"))
        after = next(s for s in fixed.stages[level] if s.stage.startswith("decode"))
        assert after.mbytes > before.mbytes


def test_it_builds_with_all_profiles_and_another_cache_builds_the_llm_again(exported, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    root = shutil.copytree(exported(dtype="fp16").bundle, tmp_path / "bundle")

    def build(cache):
        bundle = Bundle.open(root)
        return build_bundle(
            bundle, bundle.manifest, RTX, "fp16", Machine("linux"),
            BuildOptions(sm=("8.6",), cache=cache), graphs=("llm",),
        )  # fmt: skip

    record, built = build("fixed")
    [file] = record.engines["llm"]
    assert built
    assert not build("fixed")[1]
    manifest = Bundle.open(root).manifest
    assert list(file.profiles) == profiles_of(manifest, cache="fixed")["llm"]
    capacity = limits_of(manifest).capacity
    past = next(p for p in file.inputs if p["name"] == "past_key_values.0.key")
    assert past["axes"][2] == capacity
    assert BuildRecord.from_json(record.to_json()).options["cache"] == "fixed"
    assert build("growing")[1]


# the runtime, on the stand-in


@pytest.fixture(autouse=True)
def own_logger(monkeypatch):
    monkeypatch.setattr(log_module, "_LOGGERS", {})


@pytest.fixture(scope="module")
def engines(opened, tmp_path_factory):
    """A bundle with the stand-in's engines of every graph, the LLM's with a fixed cache."""
    return built(opened, tmp_path_factory.mktemp("engines"), cache="fixed")


@pytest.fixture(scope="module")
def reference(opened):
    with Pipeline.load(opened, "ort-cpu") as pipe:
        yield pipe


@pytest.fixture
def open_on(engines, make_tensorrt):
    """(device) -> the engine on it."""

    def make(device):
        return TensorRtEngine("tensorrt-rtx", engines, "fp32", device, make_tensorrt(device.driver))

    return make


@pytest.mark.parametrize("integrated", [False, True])
def test_answers_are_those_of_the_growing_cache_and_decoding_is_replayed(
    open_on, reference, make_device, picture, integrated
):
    device = make_device(integrated=integrated)
    with pipeline(open_on(device)) as pipe:
        for prompt in ("segment the ships", "where is the pier?", "segment the ships"):
            ours = pipe(picture, prompt, "pixel", 6, "[SEG]")
            theirs = reference(picture, prompt, "pixel", 6, "[SEG]")
            assert ours.token_ids == theirs.token_ids
            for one, other in zip(ours.masks, theirs.masks, strict=True):
                assert np.mean(np.asarray(one) != np.asarray(other)) < 1e-3
        llm = pipe.chain.sessions["llm"]
        assert sum(r.replayed for r in llm._replays.values()) > 5
    cache = {*present_names(9), *past_names(9)}
    assert not cache & {*device.to_host_bytes, *device.to_device_bytes}


def test_every_graph_answers_the_reference_inputs(open_on, device, engines):
    samples = load_reference(*(engines.file(f"reference/{name}") for name in FILES))
    with pipeline(open_on(device)) as pipe:
        report = verify(pipe.chain, samples, TOLERANCES["fp32"])
    assert report.ok, report.first_drift
    assert {d.output for d in report.graphs} >= {"logits", "present.0.key"}


def llm_feeds(manifest, length, past=None):
    shape = manifest.decoder
    rng = np.random.default_rng(3)
    embeds = rng.normal(0, 0.3, (1, length, shape.hidden)).astype(np.float32)
    nothing = np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
    return {
        "inputs_embeds": embeds, "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length)[None],
        **{name: nothing for name in past_names(shape.layers)},
    }  # fmt: skip


def test_a_nan_of_an_earlier_prompt_is_not_seen_by_the_next(open_on, device, engines):
    llm, kept = open_on(device).session("llm"), frozenset(present_names(9))
    feeds = llm_feeds(engines.manifest, 3)
    clean = llm.run(feeds, kept)["logits"]
    broken = llm_feeds(engines.manifest, 30)
    broken["inputs_embeds"][0, 20:] = np.nan
    assert np.isnan(llm.run(broken, kept)["logits"]).any()
    np.testing.assert_array_equal(llm.run(feeds, kept)["logits"], clean)


def test_what_is_kept_is_one_memory_and_what_is_not_comes_at_its_length(open_on, device, engines):
    llm, shape = open_on(device).session("llm"), engines.manifest.decoder
    names = present_names(shape.layers)
    first = llm.run(llm_feeds(engines.manifest, 5), frozenset(names))
    step = {
        "inputs_embeds": np.full((1, 1, shape.hidden), 0.1, np.float32),
        "attention_mask": np.ones((1, 6), np.int64), "position_ids": np.array([[5]]),
        **dict(zip(past_names(shape.layers), (first[n] for n in names), strict=True)),
    }  # fmt: skip
    second = llm.run(step, frozenset(names[1:]))
    assert second[names[0]].shape == (1, shape.kv_heads, 6, shape.head_dim)
    assert [second[n].pointer for n in names[1:]] == [first[n].pointer for n in names[1:]]


def test_a_full_cache_and_a_past_of_another_length_are_refused(open_on, device, engines):
    llm = open_on(device).session("llm")
    capacity = limits_of(engines.manifest).capacity
    feeds = llm_feeds(engines.manifest, 2)
    with pytest.raises(
        EngineError, match=rf"holds {capacity} tokens, this asks for {capacity + 1}"
    ):
        llm.run(feeds | {"attention_mask": np.ones((1, capacity + 1), np.int64)})
    with pytest.raises(EngineError, match=r"past_key_values\.0\.key has shape .*says 3 tokens"):
        llm.run(feeds | {"attention_mask": np.ones((1, 5), np.int64)})
    with pytest.raises(EngineError, match="needs the input 'attention_mask'"):
        llm.run({k: v for k, v in feeds.items() if k != "attention_mask"})


def test_gpu_check_stores_its_times_with_the_engines(engines, device, make_tensorrt, tmp_path):
    from geomag_edge.benchmarks.gpu.engines import store

    bundle = Bundle.open(shutil.copytree(engines.root, tmp_path / "bundle"))
    flavour = make_tensorrt(device.driver)
    engine = TensorRtEngine("tensorrt-rtx", bundle, "fp32", device, flavour)
    times = {"pixel": {"encode": 1.5, "decode, a token": 0.2}}
    assert store(bundle, engine, times) == f"{PLACE}/build.json"
    [entry] = load_record(Bundle.open(bundle.root), "tensorrt-rtx", "fp32").measured
    assert (entry["gpu"], entry["stages_ms"]) == ("stand-in", times)
    again = Bundle.open(bundle.root)
    assert all(again.file(f.file) for fs in engine.record.engines.values() for f in fs)
