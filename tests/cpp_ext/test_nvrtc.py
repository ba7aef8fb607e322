"""Kernels compiled by NVRTC: once, kept, and compiled anew wherever the kept code cannot serve."""

import re

import pytest

from geomag_edge.cpp_ext import cuda_image, nvrtc
from geomag_edge.errors import KernelError, MissingExtraError
from geomag_edge.runtime.engines.cuda import kernels

SOURCE = b'#include "h.h"\nextern "C" __global__ void f(float* x) { *x = VALUE; }'
HEADERS = {"h.h": b"#define VALUE 3.0f\n"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "geomag-edge" / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    """What is compiled, by a stand-in for NVRTC of version 13.5."""
    done = []

    def compiled(name, source, headers, architecture):
        done.append((name, architecture))
        return b"code of " + source + b"".join(headers.values()) + str(architecture).encode()

    monkeypatch.setattr(nvrtc, "compiled", compiled)
    monkeypatch.setattr(nvrtc, "compiler", lambda: {"nvrtc": "13.5"})
    return done


def test_a_kernel_is_compiled_once_and_kept(cache, compilations):
    code = nvrtc.cubin("k.cu", SOURCE, HEADERS, 87)
    assert nvrtc.cubin("k.cu", SOURCE, HEADERS, 87) == code
    assert compilations == [("k.cu", 87)]
    [file] = cache.iterdir()
    assert re.fullmatch(r"k-sm_87-[0-9a-f]{16}\.cubin", file.name)


def test_another_source_header_architecture_or_compiler_is_another_kernel(
    cache, compilations, monkeypatch
):
    asked = [
        ("k.cu", SOURCE, HEADERS, 87),
        ("k.cu", SOURCE + b" ", HEADERS, 87),
        ("k.cu", SOURCE, {"h.h": b"#define VALUE 4.0f\n"}, 87),
        ("k.cu", SOURCE, HEADERS, 90),
    ]
    for arguments in asked:
        nvrtc.cubin(*arguments)
    monkeypatch.setattr(nvrtc, "compiler", lambda: {"nvrtc": "12.9"})
    nvrtc.cubin(*asked[0])
    assert len(compilations) == len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "a folder", "huge"])
def test_a_damaged_entry_is_compiled_anew(damage, cache, compilations, monkeypatch):
    code = nvrtc.cubin("k.cu", SOURCE, HEADERS, 87)
    [file] = cache.iterdir()
    whole = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage == "huge":
        monkeypatch.setattr(nvrtc, "_MOST_BYTES", 10)
    else:
        file.write_bytes({"cut": whole[:-1], "changed": whole[:-1] + b"?", "empty": b""}[damage])
    assert nvrtc.cubin("k.cu", SOURCE, HEADERS, 87) == code
    assert len(compilations) == 2
    if damage in ("cut", "changed", "empty"):
        assert file.read_bytes() == whole
        nvrtc.cubin("k.cu", SOURCE, HEADERS, 87)
        assert len(compilations) == 2


@pytest.mark.parametrize("home", ["none", "a file", "/dev/null"])
def test_a_cache_that_cannot_be_used_is_no_failure(home, tmp_path, monkeypatch, compilations):
    if home == "none":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    else:
        (tmp_path / "file").write_text("")
        at = {"a file": tmp_path / "file", "/dev/null": "/dev/null"}[home]
        monkeypatch.setenv("XDG_CACHE_HOME", str(at))
    for _ in range(2):
        assert nvrtc.cubin("k.cu", SOURCE, HEADERS, 87).startswith(b"code of ")
    assert len(compilations) == 2


def test_a_write_that_fails_leaves_nothing(cache, compilations, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert nvrtc.cubin("k.cu", SOURCE, HEADERS, 87)
    assert list(cache.iterdir()) == []


def test_both_kernel_files_go_through_the_cache(cache, compilations):
    cuda_image.compile_cubin(87)
    kernels.compiled(87)
    assert [name for name, _ in compilations] == ["psc_cuda.cu", "kernels.cu"]
    cuda_image.compile_cubin(87)
    kernels.compiled(87)
    assert len(compilations) == 2


def test_without_nvrtc_one_line_says_what_to_install(cache, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(MissingExtraError, match="needs NVRTC: pip install cuda-bindings"):
        nvrtc.cubin("k.cu", SOURCE, HEADERS, 87)


def nvrtc_present():
    try:
        nvrtc.compiler()
    except MissingExtraError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not nvrtc_present(), reason="no NVRTC")


@needs_nvrtc
@pytest.mark.parametrize("architecture", [75, 87, 90, 120])
def test_nvrtc_compiles_the_runtimes_kernels_to_machine_code(cache, architecture):
    code = kernels.compiled(architecture)
    assert code[:4] == b"\x7fELF"
    for name in re.findall(r"__global__ void (\w+)", kernels.SOURCE):
        assert name.encode() in code
    assert kernels.compiled(architecture) == code


@needs_nvrtc
def test_nvrtc_compiles_the_crop_once(cache, monkeypatch):
    code = cuda_image.compile_cubin(87)
    assert code[:4] == b"\x7fELF"
    monkeypatch.setattr(nvrtc, "compiled", None)
    assert cuda_image.compile_cubin(87) == code


@needs_nvrtc
def test_what_nvrtc_refuses_is_one_line(cache):
    with pytest.raises(KernelError, match=r"could not compile k\.cu for sm_87") as caught:
        nvrtc.cubin("k.cu", b"nonsense", {}, 87)
    assert "\n" not in str(caught.value)
    with pytest.raises(KernelError, match="sm_13"):
        nvrtc.cubin("k.cu", SOURCE, HEADERS, 13)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_the_toolkits_programs_are_found_beside_path(monkeypatch, tmp_path):
    tool = tmp_path / "nvcc"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(cuda_image, "TOOLKIT", tmp_path)
    assert cuda_image.find_tool("nvcc") == str(tool)
    assert cuda_image.find_tool("ptxas") is None
