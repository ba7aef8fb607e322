"""The CPU kernel under sanitizers, another compiler, and another processor's instructions; the CUDA
kernel's body under a sanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import geomag_edge.cpp_ext

CSRC = Path(geomag_edge.cpp_ext.__file__).parent / "csrc"
FLAGS = ["-std=c++17", "-fno-math-errno", "-pthread", f"-I{CSRC}"]
ARM_EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

WAYS = {
    "address and undefined": (["g++", "-O1", "-g", "-fsanitize=address,undefined"], []),
    "data races": (["g++", "-O1", "-g", "-fsanitize=thread"], []),
    "clang": (["clang++", "-O3"], []),
    "aarch64": (["aarch64-linux-gnu-g++", "-O3", "-static"], [ARM_EMULATOR]),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_kernel_is_right_and_clean_everywhere(way, tmp_path):
    compile_with, run_with = WAYS[way]
    if shutil.which(compile_with[0]) is None or None in run_with:
        pytest.skip(f"no {compile_with[0]} or no emulator here")
    source = Path(__file__).with_name("check_kernel.cpp")
    program = tmp_path / "check"
    subprocess.run([*compile_with, *FLAGS, str(source), "-o", str(program)], check=True)
    done = subprocess.run(
        [*run_with, str(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "UBSAN_OPTIONS": "halt_on_error=1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr


def test_the_cuda_kernels_body_reads_no_byte_beside_the_image(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    source = Path(__file__).with_name("check_block.cpp")
    program = tmp_path / "check"
    flags = ["-std=c++20", "-O1", "-g", "-pthread", f"-I{CSRC}", "-fsanitize=address,undefined"]
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "264 images\n"
