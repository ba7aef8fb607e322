"""int8 answers as exact integer arithmetic does, on whatever CPU this runs.

Weights and activations lie at the ends of their range, where sums of pairs of products leave 16
bits; inputs are whole steps, so that no rounding of an activation is left to chance.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.runtime.engines.exact import PROBE, integer_error, mentions
from geomag_edge.runtime.engines.ort import OrtSession

ROOT = Path(__file__).parents[3]
STEP, W_STEP = np.float32(0.02), np.float32(0.01)
ENGINES = ["ort-cpu", "openvino"]


def opened(engine, path):
    if engine == "ort-cpu":
        return OrtSession(path, threads=1)
    openvino = pytest.importorskip("openvino")
    from geomag_edge.runtime.engines.openvino import OpenVinoSession

    return OpenVinoSession(openvino.Core(), path, "f32", threads=1)


def model_of(nodes, x_shape, constants, opset=20, kind=TensorProto.FLOAT):
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(
        nodes, "one",
        [helper.make_tensor_value_info("x", kind, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def quantised(op, weight, axis, x_shape, **attributes):
    """One layer as `calibration.quantization.qdq` writes it."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node(op, ["d", "wd"], ["y"], **attributes),
    ]
    channels = weight.shape[axis]
    constants = {
        "s": STEP, "z": np.int8(0), "w": weight, "ws": np.full(channels, W_STEP),
        "wz": np.zeros(channels, np.int8),
    }  # fmt: skip
    return model_of(nodes, x_shape, constants)


def exact(op, q, weight, **attributes):
    """The layer in whole numbers: its answer is the steps times this."""
    q, w = q.astype(np.int64), weight.astype(np.int64)
    if op == "MatMul":
        return q @ w
    if op == "Gemm":
        return q @ w.T
    if op == "ConvTranspose":  # a stride as wide as the kernel: no two inputs meet in an output
        n, _, h, wide = q.shape
        out = np.einsum("nchw,cokl->nohkwl", q, w)
        return out.reshape(n, w.shape[1], h * w.shape[2], wide * w.shape[3])
    side, pad = w.shape[2], attributes.get("pads", [0])[0]
    q = np.pad(q, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    step = attributes.get("strides", [1])[0]
    windows = np.lib.stride_tricks.sliding_window_view(q, (side, side), axis=(2, 3))
    return np.einsum("nchwkl,ockl->nohw", windows[:, :, ::step, ::step], w)


LAYERS = {
    "MatMul": ("MatMul", (192, 96), 1, (7, 192), {}),
    "MatMul of one row": ("MatMul", (192, 96), 1, (1, 192), {}),
    "MatMul of a batch": ("MatMul", (64, 48), 1, (2, 5, 64), {}),
    "MatMul of odd sides": ("MatMul", (63, 17), 1, (3, 63), {}),
    "Gemm": ("Gemm", (96, 192), 0, (7, 192), {"transB": 1}),
    "Conv": ("Conv", (48, 64, 3, 3), 0, (1, 64, 7, 7), {"pads": [1] * 4}),
    "Conv of patches": ("Conv", (48, 3, 16, 16), 0, (1, 3, 32, 32), {"strides": [16, 16]}),
    "Conv of single pixels": ("Conv", (48, 64, 1, 1), 0, (1, 64, 6, 6), {}),
    "ConvTranspose": ("ConvTranspose", (64, 48, 2, 2), 1, (1, 64, 5, 5), {"strides": [2, 2]}),
}
RNG = np.random.default_rng(0)
ENDS = {
    "all at one end": lambda shape: np.full(shape, 127, np.int8),
    "at opposite ends": lambda shape: np.full(shape, -127, np.int8),
    "at either end": lambda shape: RNG.choice(np.array([-127, 127], np.int8), shape),
    "anywhere": lambda shape: RNG.integers(-127, 128, shape).astype(np.int8),
}


def worst(engine, path, q, right):
    got = opened(engine, path).run({"x": q.astype(np.float32) * STEP})["y"]
    right = right * float(STEP) * float(W_STEP)
    return np.abs(got - right).max() / max(np.abs(right).max(), 1e-9)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_computed_exactly(engine, layer, ends, tmp_path):
    op, w_shape, axis, x_shape, attributes = LAYERS[layer]
    weight, q = ENDS[ends](w_shape), ENDS[ends](x_shape)
    path = tmp_path / "layer.onnx"
    onnx.save(quantised(op, weight, axis, list(x_shape), **attributes), path)
    assert worst(engine, path, q, exact(op, q, weight, **attributes)) < 1e-5


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_a_product_of_any_size_is_exact_in_onnx_runtime(tmp_path_factory, m, k, n, seed):
    rng = np.random.default_rng(seed)
    q, weight = (rng.choice([-127, -126, 126, 127], s).astype(np.int8) for s in ((m, k), (k, n)))
    path = tmp_path_factory.mktemp("any") / "layer.onnx"
    onnx.save(quantised("MatMul", weight, 1, [m, k]), path)
    assert worst("ort-cpu", path, q, exact("MatMul", q, weight)) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_in_blocks_do_not_cost_the_layers_beside_them_their_exactness(engine, tmp_path):
    """The language model's form: int8 weights in blocks of 128 rows, beside a Q/DQ layer."""
    weight, blocks = ENDS["at either end"]((256, 64)), ENDS["at either end"]((64, 64))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["h"]),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0, block_size=32),
        helper.make_node("MatMul", ["h", "bd"], ["y"]),
    ]
    constants = {
        "s": STEP, "z": np.int8(0), "w": weight, "ws": np.full(64, W_STEP),
        "wz": np.zeros(64, np.int8), "b": blocks, "bs": np.full((2, 64), W_STEP),
    }  # fmt: skip
    path = tmp_path / "two.onnx"
    onnx.save(model_of(nodes, [5, 256], constants, opset=21), path)
    q = ENDS["at either end"]((5, 256))
    hidden = exact("MatMul", q, weight) * float(STEP) * float(W_STEP)
    right = hidden @ (blocks * float(W_STEP))
    got = opened(engine, path).run({"x": q.astype(np.float32) * STEP})["y"]
    # ONNX Runtime rounds what enters weights in blocks to 8 bits, block by block, on every CPU.
    near = 0.01 if engine == "ort-cpu" else 1e-5
    assert np.abs(got - right).max() < near * np.abs(right).max()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv"])
@pytest.mark.parametrize("tiny", [1.0, 1e-4, 1e-6, 1e-8])
def test_a_bias_before_the_next_layer_is_not_rounded_to_whole_steps(engine, op, tiny, tmp_path):
    """In steps of activation times weight it leaves 32 bits where a channel's weights are tiny."""
    rng = np.random.default_rng(7)
    channels = 16
    kernel = (channels, channels, 1, 1) if op == "Conv" else (channels, channels)
    axis = 0 if op == "Conv" else 1
    first, second = (rng.integers(-127, 128, kernel).astype(np.int8) for _ in range(2))
    steps = np.where(np.arange(channels) % 4, W_STEP, np.float32(W_STEP * tiny)).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32) * 20
    into = [(op, ["d", "wd", "b"], "h")] if op != "MatMul" else [
        ("MatMul", ["d", "wd"], "m"), ("Add", ["m", "b"], "h")]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        *(helper.make_node(kind, names, [out]) for kind, names, out in into),
        helper.make_node("QuantizeLinear", ["h", "hs", "hz"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "hs", "hz"], ["hd"]),
        helper.make_node("DequantizeLinear", ["v", "vs", "vz"], ["vd"], axis=axis),
        helper.make_node(op, ["hd", "vd"], ["y"]),
    ]
    constants = {
        "s": STEP, "z": np.int8(0), "w": first, "ws": steps, "wz": np.zeros(channels, np.int8),
        "b": bias, "hs": np.float32(1.0), "v": second, "vs": np.full(channels, W_STEP),
        "hz": np.int8(0), "vz": np.zeros(channels, np.int8),
    }  # fmt: skip
    shape = [1, channels, 5, 5] if op == "Conv" else [9, channels]
    path = tmp_path / "two.onnx"
    onnx.save(model_of(nodes, shape, constants), path)
    q = rng.integers(-127, 128, shape).astype(np.float32)
    product = exact("Conv" if op == "Conv" else "MatMul", q, first).astype(np.float64)
    over = (1, -1, 1, 1) if op == "Conv" else (1, -1)
    hidden = product * float(STEP) * steps.reshape(over) + bias.reshape(over)
    hidden = np.clip(np.rint(hidden), -128, 127)
    right = exact("Conv" if op == "Conv" else "MatMul", hidden, second) * float(W_STEP)
    got = opened(engine, path).run({"x": q * STEP})["y"]
    # One activation in a thousand lies so near to half a step that float rounding turns it over.
    one_step = 127 * float(W_STEP)
    assert np.quantile(np.abs(got - right), 0.9) < 1e-5 * np.abs(right).max()
    assert np.abs(got - right).max() <= 2.01 * one_step


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [8, 4])
def test_weights_in_blocks_are_multiplied_exactly(engine, bits, tmp_path):
    """With activations of one magnitude, which rounding to 8 bits leaves as they are."""
    top = 127 if bits == 8 else 7
    weight = RNG.choice(np.array([-top, top], np.int8), (256, 64))
    kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0, block_size=128),
        helper.make_node("MatMul", ["x", "bd"], ["y"]),
    ]
    made = model_of(nodes, ["M", 256], {"bs": np.full((2, 64), W_STEP)}, opset=21)
    made.graph.initializer.append(helper.make_tensor("b", kind, (256, 64), weight.ravel().tolist()))
    onnx.save(made, tmp_path / "blocks.onnx")
    for rows in (1, 9):
        q = ENDS["at either end"]((rows, 256))
        assert worst(engine, tmp_path / "blocks.onnx", q, exact("MatMul", q, weight)) < 1e-5


def test_the_probe_is_what_it_says(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["x_i8"]),
        helper.make_node("DequantizeLinear", ["x_i8", "step", "zero"], ["x_f32"]),
        helper.make_node("DequantizeLinear", ["w", "w_step", "w_zero"], ["w_f32"], axis=1),
        helper.make_node("MatMul", ["x_f32", "w_f32"], ["y"]),
    ]
    step = np.float32(0.01)
    constants = {
        "step": step, "zero": np.int8(0), "w": np.full((64, 64), 127, np.int8),
        "w_step": np.full(64, step), "w_zero": np.zeros(64, np.int8),
    }  # fmt: skip
    made = model_of(nodes, [16, 64], constants)
    shipped = onnx.load(PROBE)
    assert list(shipped.graph.node) == list(made.graph.node)
    for one, other in zip(shipped.graph.initializer, made.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_probe_finds_our_engines_exact(engine):
    session = opened(engine, PROBE)
    assert integer_error(lambda x: session.run({"x": x})["y"]) == 0


def test_the_probe_sees_sums_that_are_cut_to_16_bits():
    def saturating(x):
        u = np.rint(x / 0.01).astype(int) + 128  # as kernels for u8 x s8 see a signed activation
        pairs = np.minimum(u[:, ::2] * 127 + u[:, 1::2] * 127, 2**15 - 1)
        return np.repeat((pairs.sum(1) - 128 * 127 * 64)[:, None], 64, 1) * 1e-4

    assert integer_error(saturating) > 0.3


def test_a_name_is_found_in_a_file_and_in_bytes():
    assert mentions(PROBE, b"QuantizeLinear")
    assert mentions(PROBE.read_bytes(), b"QuantizeLinear")
    assert not mentions(PROBE, b"block_size")


def test_no_other_file_of_the_package_opens_onnx_runtime_on_the_cpu():
    """A session made elsewhere would saturate on some CPUs again. Another's code (peers) may, and a
    benchmark that shows what comes of it."""
    allowed = {
        Path("runtime/engines/ort.py"),
        Path("runtime/engines/ort_cuda.py"),
        Path("benchmarks/studies/exact_int8.py"),
    }
    for room in ("runtime", "calibration", "export", "geomag_edge", "model", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            names = {getattr(call.func, "attr", None) for call in calls}
            known = path.relative_to(ROOT) in allowed or "peers" in path.parts
            assert known or "InferenceSession" not in names, path


SCRIPT = """
from geomag_edge.runtime.engines.exact import PROBE, integer_error
{session}
print("error", integer_error(lambda x: session.run({{"x": x}})["y"]))
"""
ON_ORT = """
from geomag_edge.runtime.engines.ort import OrtSession
session = OrtSession(PROBE, 1)
"""
ON_OPENVINO = """
import openvino
from geomag_edge.runtime.engines.openvino import OpenVinoSession, saturates
assert saturates()
session = OpenVinoSession(openvino.Core(), PROBE, "f32", 1)
"""


def probed(command, session, env=None):
    code = SCRIPT.format(session=session)
    return subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env=os.environ | (env or {}),
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="apt install qemu-user")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="emulates an x86 CPU")
def test_onnx_runtime_is_exact_on_an_emulated_cpu_without_vnni():
    done = probed(["qemu-x86_64", "-cpu", "Haswell"], ON_ORT)
    assert "error 0.0" in done.stdout, done.stderr[-2000:]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="oneDNN's names of x86 instruction sets")
def test_openvino_is_exact_where_its_kernels_know_no_vnni():
    pytest.importorskip("openvino")
    done = probed([], ON_OPENVINO, {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert "error 0.0" in done.stdout, done.stderr[-2000:]
