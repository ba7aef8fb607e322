"""The whole chain with its values on a device: the same answers, and nothing between two stages
comes to the host but token ids and what PSC chose.

ONNX Runtime's CPU provider takes the CUDA provider's place, on host memory that plays the device's.
"""

import numpy as np
import pytest

from geomag_edge.errors import EngineError, MissingExtraError
from geomag_edge.manifest import Bundle
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines import ort_cuda
from geomag_edge.runtime.engines.ort_cuda import OrtCudaEngine, OrtCudaSession, described

TO_HOST = {"token", "mask_logits", "quality", "granularity", "boxes", "scores", "relevance"}
"""Token ids, masks, and PSC's answer, by which the host chooses budget and crops."""

TO_DEVICE = {
    "image", "prompt_ids", "view_box", "image_shape", "pooling", "positions", "input_ids",
    "attention_mask", "position_ids",
}  # fmt: skip
"""The image, the prompt's ids, and what the host computes from boxes and lengths."""


class OnTheCpu(OrtCudaEngine):
    """The engine, on host memory and the CPU provider."""

    def session(self, graph):
        path = self.bundle.graph(graph, self.precision, "onnxruntime")
        return OrtCudaSession(path, self.device, ("CPUExecutionProvider", {}), "cpu")


def pipeline(bundle, engine):
    coder = PromptCoder.load(
        bundle.manifest.prompt, bundle.file("tokenizer.json"), bundle.file("psc_tokenizer.json")
    )
    return Pipeline(bundle, Chain(engine, bundle.manifest, coder))


@pytest.fixture(scope="module")
def opened(bundle):
    return Bundle.open(bundle)


@pytest.fixture(scope="module")
def reference(opened):
    with Pipeline.load(opened, "ort-cpu") as pipe:
        yield pipe


# ONNX Runtime's CPU provider does not wait for our stream, so the stand-in does all at once here.
@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def on_device(request, opened, make_device):
    device = make_device(late=False, integrated=request.param)
    with pipeline(opened, OnTheCpu(opened, "fp32", device)) as pipe:
        yield pipe, device


def same(a, b):
    assert a.token_ids == b.token_ids
    assert a.stopped == b.stopped
    np.testing.assert_array_equal(a.crop_boxes, b.crop_boxes)
    assert len(a.masks) == len(b.masks)
    for one, other in zip(a.masks, b.masks, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("budget", ["image", "region", "pixel"])
def test_answers_are_those_of_the_host(on_device, reference, picture, budget):
    pipe, _ = on_device
    for prompt in ("segment the ships", "how many planes are there?"):
        ours = pipe(picture, prompt, budget, 6, "[SEG]")
        same(ours, reference(picture, prompt, budget, 6, "[SEG]"))
        assert ours.engine == "ort-cuda"
        assert {"crop", "encode", "prefill", "decode", "mask", "total"} <= ours.timings_ms.keys()


def test_prompts_share_the_encoded_views_on_the_device(on_device, reference, picture):
    pipe, device = on_device
    with pipe.open(picture) as scene, reference.open(picture) as expected:
        for prompt in ("segment the ships", "where is the pier?", "segment the ships"):
            same(scene.ask(prompt, "pixel", 4, "[SEG]"), expected.ask(prompt, "pixel", 4, "[SEG]"))
    assert device.driver.launched.count("psc_crop") <= 4


def test_no_array_comes_to_the_host_between_stages(opened, picture, make_device):
    device = make_device(late=False)
    with pipeline(opened, OnTheCpu(opened, "fp32", device)) as pipe:
        result = pipe(picture, "segment the ships", "pixel", 6, "[SEG]")
    assert set(device.to_host_bytes) <= TO_HOST
    assert set(device.to_device_bytes) <= TO_DEVICE
    assert device.to_host_bytes["token"] == 8 * (result.decode_steps + 1)
    assert device.to_device_bytes["image"] == picture.nbytes
    small = sum(n for name, n in device.to_host_bytes.items() if name not in ("mask_logits",))
    assert small < 8192


def test_an_integrated_device_copies_nothing(opened, picture, make_device):
    """But what ONNX Runtime made in its own memory."""
    device = make_device(late=False, integrated=True)
    with pipeline(opened, OnTheCpu(opened, "fp32", device)) as pipe:
        pipe(picture, "segment the ships", "pixel", 6, "[SEG]")
    assert not device.to_device_bytes
    assert "token" not in device.to_host_bytes


def test_an_image_read_by_windows_is_cut_on_the_host(on_device, reference, picture, monkeypatch):
    from geomag_edge.runtime.images.scene import Scene

    monkeypatch.setattr(Scene, "resident", lambda self, mean_std: None)
    pipe, device = on_device
    ours = pipe(picture, "segment the ships", "pixel", 6, "[SEG]")
    same(ours, reference(picture, "segment the ships", "pixel", 6, "[SEG]"))
    assert "image" not in device.to_device_bytes


def test_every_graph_run_alone_gives_numpy(on_device, reference):
    pipe, _ = on_device
    ids = {"input_ids": np.array([[5, 6]])}
    ours = pipe.chain.sessions["embed"].run(ids)["inputs_embeds"]
    assert isinstance(ours, np.ndarray)
    np.testing.assert_array_equal(ours, reference.chain.sessions["embed"].run(ids)["inputs_embeds"])


def test_small_nodes_on_the_cpu_are_reported():
    assert described("llm.onnx", "CUDA", {}) == "CUDA"
    elsewhere = {"a": "Shape", "b": "Gather", "c": "Shape"}
    expected = "CUDA (3 small nodes on the CPU: 2 Shape, 1 Gather)"
    assert described("llm.onnx", "CUDA", elsewhere) == expected


def test_heavy_nodes_on_the_cpu_are_refused():
    with pytest.raises(EngineError, match=r"1 nodes of llm\.onnx would run on the CPU, q_proj "
                       r"\(MatMul\) first: .*--engine ort-cpu"):  # fmt: skip
        described("llm.onnx", "CUDA", {"a": "Shape", "q_proj": "MatMul"})


def test_nodes_are_seen_where_onnx_runtime_put_them(opened, device):
    path = opened.graph("llm", "fp32", "onnxruntime")
    session = OrtCudaSession(path, device, ("CPUExecutionProvider", {}), "cpu")._session
    ops = set(ort_cuda._elsewhere(session, "CUDAExecutionProvider").values())
    assert {"MatMul", "Attention"} <= ops
    assert not ort_cuda._elsewhere(session, "CPUExecutionProvider")


@pytest.mark.skipif(ort_cuda.lacking() is None, reason="this onnxruntime has CUDA")
def test_without_onnxruntime_gpu_one_line_says_what_to_install(opened):
    with pytest.raises(MissingExtraError, match="pip install onnxruntime-gpu") as caught:
        OrtCudaEngine(opened, "fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(ort_cuda.lacking() is None, reason="this onnxruntime has CUDA")
def test_a_provider_that_does_not_load_is_no_silent_cpu(opened, device):
    path = opened.graph("embed", "fp32", "onnxruntime")
    with pytest.raises(EngineError, match=r"would run embed\.onnx on CPUExecutionProvider|cannot "
                       r"load embed\.onnx: .*CUDAExecutionProvider"):  # fmt: skip
        OrtCudaSession(path, device, ort_cuda.cuda_provider(device, "fp32"))
