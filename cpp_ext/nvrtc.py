"""NVRTC, the CUDA compiler in a library: CUDA C++ to machine code at run time.

Compiling takes seconds, so machine code is kept in the user's cache folder, under a name that holds
the digest of all that it was made of: the source and its headers, the architecture, the options
and the compiler's version. It needs no GPU, no driver and no CUDA toolkit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from geomag_edge.disk.caches import keep, kept
from geomag_edge.errors import KernelError, MissingExtraError

PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
"""Where the library comes from, unless it is the CUDA toolkit's."""

_OPTIONS = ("--std=c++17",)
_MOST_BYTES = 1 << 26


def cubin(name: str, source: bytes, headers: Mapping[str, bytes], architecture: int) -> bytes:
    """Machine code for one architecture, from the cache or compiled now and kept there.

    Args:
        name: the source's name, for messages and the file in the cache.
        source: CUDA C++.
        headers: what it includes, by the name that it includes it by.
        architecture: compute capability as a number, 87 for 8.7.

    Raises:
        MissingExtraError: NVRTC is not installed.
        KernelError: NVRTC refused the architecture or the source.
    """
    place = f"kernels/{_place(name, source, headers, architecture)}.cubin"
    code = kept(place, _MOST_BYTES)
    if code is None:
        code = compiled(name, source, headers, architecture)
        keep(place, code)
    return code


def _place(name: str, source: bytes, headers: Mapping[str, bytes], architecture: int) -> str:
    texts = {name: source, **headers}
    made_of = {
        "texts": {n: hashlib.sha256(text).hexdigest() for n, text in texts.items()},
        "options": _OPTIONS,
        "compiler": compiler(),
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return f"{name.partition('.')[0]}-sm_{architecture}-{digest}"


def compiler() -> dict[str, str]:
    """NVRTC's own version, and those of the packages that it may come from.

    Raises:
        MissingExtraError: NVRTC is not installed.
    """
    _, major, minor = _bindings().nvrtcVersion()
    found = {"nvrtc": f"{major}.{minor}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def compiled(name: str, source: bytes, headers: Mapping[str, bytes], architecture: int) -> bytes:
    """Machine code for one architecture; see `cubin`.

    Raises:
        MissingExtraError: NVRTC is not installed.
        KernelError: NVRTC refused the architecture or the source.
    """
    nvrtc = _bindings()
    status, program = nvrtc.nvrtcCreateProgram(
        source,
        name.encode(),
        len(headers),
        list(headers.values()),
        [header.encode() for header in headers],
    )
    if int(status):
        raise KernelError(f"NVRTC could not take {name}: {status}")
    try:
        return _compile(nvrtc, program, name, f"sm_{architecture}")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _compile(nvrtc: Any, program: Any, name: str, architecture: str) -> bytes:
    options = [f"--gpu-architecture={architecture}".encode(), *(o.encode() for o in _OPTIONS)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status):
        _, length = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * length
        nvrtc.nvrtcGetProgramLog(program, log)
        lines = log.decode(errors="replace").strip(" \0\n").splitlines() or [str(status)]
        raise KernelError(f"NVRTC could not compile {name} for {architecture}: {lines[0]}")
    status, length = nvrtc.nvrtcGetCUBINSize(program)
    code = b" " * length
    if int(status) or int(nvrtc.nvrtcGetCUBIN(program, code)[0]) or not length:
        raise KernelError(f"NVRTC gave no code of {name} for {architecture}")
    return code


def _bindings() -> Any:
    """cuda.bindings.nvrtc, its library loaded.

    Raises:
        MissingExtraError: one of the two is missing.
    """
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception as cause:  # without the library the bindings raise classes of their own
        raise MissingExtraError(
            "compiling a CUDA kernel needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc "
            "('cuda-bindings==12.*' and nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12)"
        ) from cause
    return nvrtc
