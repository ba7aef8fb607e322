"""The whole chain with its values on a device: the same answers, and nothing between two stages
comes to the host but token ids and what PSC chose.

ONNX Runtime's CPU provider takes the CUDA provider's place, on host memory that plays the device's.
"""

import subprocess
import venv
import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

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


def test_an_integrated_device_copies_nothing_but_the_image(opened, picture, make_device):
    """But what ONNX Runtime made in its own memory."""
    device = make_device(late=False, integrated=True)
    with pipeline(opened, OnTheCpu(opened, "fp32", device)) as pipe:
        pipe(picture, "segment the ships", "pixel", 6, "[SEG]")
    assert device.to_device_bytes == {"image": picture.nbytes}
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


@pytest.fixture
def small(tmp_path):
    """x[n,4] -> its length, doubled, as a shape; and the sine of x."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "zero"], ["n"], name="take"),
        helper.make_node("Mul", ["n", "two"], ["m"], name="double"),
        helper.make_node("Concat", ["m", "two"], ["new"], name="join", axis=0),
        helper.make_node("Sin", ["x"], ["y"], name="sine"),
        helper.make_node("Concat", ["y", "y"], ["z"], name="stack", axis=0),
    ]
    path = tmp_path / "llm.onnx"
    one = [numpy_helper.from_array(np.array([v]), n) for n, v in (("zero", 0), ("two", 2))]
    x, z = (helper.make_tensor_value_info(n, 1, ["n", 4]) for n in "xz")
    new = helper.make_tensor_value_info("new", 7, [2])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [z, new], one)), str(path))
    return path


SHAPES = [("take", "Gather"), ("double", "Mul"), ("join", "Concat")]


def test_arithmetic_on_shapes_is_where_it_belongs(small):
    assert described(small, "CUDA", []) == "CUDA"
    assert described(small, "CUDA", SHAPES) == "CUDA (3 nodes on shapes on the CPU)"


def test_every_node_on_data_is_a_round_trip_whatever_its_operator(small):
    """The same operator is cheap on a shape and a copy there and back on data."""
    found = described(small, "CUDA", [*SHAPES, ("stack", "Concat"), ("sine", "Sin")])
    assert found == (
        "CUDA (3 nodes on shapes on the CPU; 2 round trips to the host: 1 Concat, 1 Sin)"
    )


def test_what_onnx_runtime_made_itself_is_data_but_for_a_shape_turned_round(small):
    turned = described(small, "CUDA", [("Gather_token_1", "Gather")])
    assert turned == "CUDA (1 nodes on shapes on the CPU)"
    made = described(
        small, "CUDA", [("Transpose_token_1", "Transpose"), ("", "Cast"), ("", "Cast")]
    )
    assert made == (
        "CUDA (0 nodes on shapes on the CPU; 3 round trips to the host: 2 Cast, 1 Transpose)"
    )


def test_heavy_nodes_on_the_cpu_are_refused(small):
    with pytest.raises(EngineError, match=r"1 nodes of llm\.onnx would run on the CPU, q_proj "
                       r"\(MatMul\) first: .*--target older .*--engine ort-cpu"):  # fmt: skip
        described(small, "CUDA", [*SHAPES, ("q_proj", "MatMul")])


@pytest.mark.parametrize(
    ("opset", "version", "whole"),
    [
        (20, "1.23.2", True), (20, "1.26.0", True), (20, "1.31.1", True), (23, "1.27.0", True),
        (24, "1.31.1", True), (23, "2.0", True), (23, "1.26.0", False), (23, "1.24.4", False),
        (21, "1.23.2", False),
    ],
)  # fmt: skip
def test_graphs_are_run_by_versions_that_have_their_kernels(opset, version, whole):
    """As the wheels place the nodes of our graphs; half precision hides what it casts."""
    said = ort_cuda.kernels_for(opset, version)
    assert (said is None) == whole
    if said:
        assert f"onnxruntime-gpu {version}" in said
        assert "--target older (opset 20)" in said
        assert "\n" not in said


def test_an_engine_says_what_to_export_before_it_asks_for_a_gpu(opened, monkeypatch):
    monkeypatch.setattr(ort_cuda, "lacking", lambda: None)
    monkeypatch.setattr(ort_cuda.ort, "__version__", "1.26.0")
    with pytest.raises(EngineError, match=r"opset 23, which these graphs have: export the bundle"):
        OrtCudaEngine(opened, "fp32")


@pytest.mark.parametrize(
    ("cuda", "version", "works"),
    [("12.6", "1.31.1", False), ("12.6", "1.26.0", True), ("13.0", "1.31.1", True),
     ("13.0", "1.26.0", True), (None, "1.31.1", True)],
)  # fmt: skip
def test_wheels_newer_than_the_driver_are_named(monkeypatch, cuda, version, works):
    monkeypatch.setattr(ort_cuda.ort, "get_available_providers", lambda: [ort_cuda.PROVIDER])
    monkeypatch.setattr(ort_cuda.ort, "__version__", version)
    monkeypatch.setattr(ort_cuda, "driver_cuda", lambda: cuda)
    said = ort_cuda.lacking()
    assert (said is None) == works
    if said:
        assert "1.31.1 is for CUDA 13, and this driver knows CUDA 12.6: pip uninstall -y" in said
        assert "'onnxruntime-gpu<1.27'" in said


# the command that leaves one working ONNX Runtime


@pytest.mark.parametrize(
    ("cuda", "wheels"), [("12.6", "<1.27"), ("13.0", ">=1.27"), (None, ">=1.27")]
)
def test_the_command_takes_both_away_before_it_brings_the_drivers_one(monkeypatch, cuda, wheels):
    monkeypatch.setattr(ort_cuda, "driver_cuda", lambda: cuda)
    assert ort_cuda.install_line().startswith(
        f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu{wheels}'"
    )


def wheel(folder, name, version, content):
    """A package that owns the module `onnxruntime`."""
    info = f"{name}-{version}.dist-info"
    files = {
        "onnxruntime/__init__.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{n},,\n" for n in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as made:
        for path, text in files.items():
            made.writestr(path, text)


def test_the_command_leaves_a_module_that_imports(tmp_path, monkeypatch):
    """With both packages installed, one after the other; they share the module."""
    monkeypatch.setattr(ort_cuda, "driver_cuda", lambda: None)
    wheel(tmp_path, "onnxruntime", "1.32.0", "NAME = 'cpu'\n")
    wheel(tmp_path, "onnxruntime_gpu", "1.31.1", "NAME = 'gpu'\n")
    venv.create(tmp_path / "venv", with_pip=True)
    here = {"PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin", "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # fmt: skip

    def shell(line):
        done = subprocess.run(["bash", "-c", line], env=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell("pip install onnxruntime-gpu && pip install onnxruntime")
    shell(ort_cuda.install_line().split(" (")[0])
    assert shell("python -c 'import onnxruntime; print(onnxruntime.NAME)'") == "gpu\n"


def test_nodes_are_seen_where_onnx_runtime_put_them(opened, device):
    path = opened.graph("llm", "fp32", "onnxruntime")
    session = OrtCudaSession(path, device, ("CPUExecutionProvider", {}), "cpu")._session
    ops = {op for _, op in ort_cuda._elsewhere(session, "CUDAExecutionProvider")}
    assert {"MatMul", "Attention"} <= ops
    assert not ort_cuda._elsewhere(session, "CPUExecutionProvider")


@pytest.mark.skipif(ort_cuda.lacking() is None, reason="this onnxruntime has CUDA")
def test_without_onnxruntime_gpu_one_line_says_what_to_install(opened):
    with pytest.raises(MissingExtraError, match="pip install 'onnxruntime-gpu") as caught:
        OrtCudaEngine(opened, "fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(ort_cuda.lacking() is None, reason="this onnxruntime has CUDA")
def test_a_provider_that_does_not_load_is_no_silent_cpu(opened, device):
    path = opened.graph("embed", "fp32", "onnxruntime")
    with pytest.raises(EngineError, match=r"would run embed\.onnx on CPUExecutionProvider|cannot "
                       r"load embed\.onnx: .*CUDAExecutionProvider"):  # fmt: skip
        OrtCudaSession(path, device, ort_cuda.cuda_provider(device))
