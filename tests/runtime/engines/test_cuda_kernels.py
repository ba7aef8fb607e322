"""The runtime's small CUDA kernels: compiled by nvcc where it is, and run on the CPU, a thread for
each thread of a block."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from geomag_edge.runtime.engines.cuda import kernels

# What the two PTX conversions do, in C++.
CONVERSIONS = {
    r'asm\("cvt\.f32\.f16.*?\);': "_Float16 h; __builtin_memcpy(&h, &value.bits, 2); wide = h;",
    r'asm\("cvt\.rn\.f16\.f32.*?\);': "_Float16 h = value; __builtin_memcpy(&at->bits, &h, 2);",
}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    folder = tmp_path_factory.mktemp("kernels")
    source = kernels.source()
    for ptx, plain in CONVERSIONS.items():
        source, replaced = re.subn(ptx, plain, source)
        assert replaced == 1
    (folder / "kernels.cu").write_text(source)
    target = folder / "kernels.so"
    flags = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC"]
    flags.append(f'-DKERNELS="{folder / "kernels.cu"}"')
    emulator = Path(__file__).with_name("emulate_kernels.cpp")
    done = subprocess.run(
        [compiler, *flags, str(emulator), "-o", str(target)], capture_output=True, text=True
    )
    if "_Float16" in done.stderr:
        pytest.skip("this g++ has no _Float16")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))


def argmax(emulated, values):
    token = ctypes.c_longlong(-1)
    count = ctypes.c_longlong(values.size)
    emulated.argmax(
        ctypes.c_void_p(values.ctypes.data), count, ctypes.byref(token), values.dtype.itemsize == 2
    )
    return token.value


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 5000])
def test_the_token_is_numpys(emulated, dtype, count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count).astype(dtype)
    assert argmax(emulated, values) == values.argmax()
    ties = rng.integers(0, 3, count).astype(dtype)
    assert argmax(emulated, ties) == ties.argmax()


def test_the_token_is_in_range_whatever_the_logits(emulated):
    least = np.full(700, -np.inf, np.float32)
    least[650] = -1e30
    assert argmax(emulated, least) == 650
    assert argmax(emulated, np.full(700, -np.inf, np.float32)) == 0
    assert argmax(emulated, np.full(700, np.nan, np.float32)) == 0
    bad = np.full(700, np.nan, np.float32)
    bad[3] = -5
    assert argmax(emulated, bad) == 3


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("count", [1, 256, 1000])
def test_casts_are_numpys(emulated, count, blocks):
    wide = np.random.default_rng(0).normal(size=count).astype(np.float32) * 1000
    half, back = np.zeros(count, np.float16), np.zeros(count, np.float32)
    n = ctypes.c_longlong(count)
    for source, target, to_half in ((wide, half, 1), (half, back, 0)):
        emulated.cast(
            ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(target.ctypes.data),
            n, to_half, blocks,
        )  # fmt: skip
    np.testing.assert_array_equal(half, wide.astype(np.float16))
    np.testing.assert_array_equal(back, half.astype(np.float32))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
def test_nvcc_compiles_every_kernel(tmp_path):
    source, target = tmp_path / "kernels.cu", tmp_path / "kernels.ptx"
    source.write_text(kernels.source())
    subprocess.run(
        ["nvcc", "-std=c++17", "-ptx", "-arch=compute_75", str(source), "-o", str(target)],
        check=True,
    )
    entries = set(re.findall(r"\.visible \.entry (\w+)", target.read_text()))
    assert entries == set(re.findall(r"__global__ void (\w+)", kernels.SOURCE))
    assert ".extern" not in target.read_text()
