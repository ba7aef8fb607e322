"""The CUDA kernel's machine code: a fat binary made by nvcc ahead of time, or NVRTC at first use.

`pip install` builds the fat binary where nvcc is, on PATH or in the toolkit's usual folder;

    python -m geomag_edge.cpp_ext.cuda_image

does it later. There may be one for each CUDA major version, because a driver of CUDA 12 does not
load what nvcc 13 makes.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from geomag_edge.errors import KernelError

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "csrc"

# Turing, Ampere (A100, GeForce, Orin), Ada, Hopper, Blackwell (datacenter, Thor, GeForce, Spark).
# A compiler takes those it knows; code for the newest as PTX serves what comes after.
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 101, 110, 120, 121)


TOOLKIT = Path("/usr/local/cuda/bin")
"""Where the CUDA toolkit's programs are; a Jetson's system does not put it on PATH."""


def find_tool(name: str) -> str | None:
    """The path of a program of the CUDA toolkit: on PATH, or where the toolkit is installed."""
    return shutil.which(name) or shutil.which(name, path=str(TOOLKIT))


def nvcc_architectures(nvcc: str) -> list[int]:
    """The architectures of ours that this nvcc compiles for."""
    listing = subprocess.run(
        [nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True
    ).stdout.split()
    return [number for number in ARCHITECTURES if f"sm_{number}" in listing]


def nvcc_major(nvcc: str) -> int:
    """The CUDA major version that this nvcc compiles for."""
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.", version)
    if found is None:
        raise KernelError(f"{nvcc} --version names no release")
    return int(found[1])


def fatbin_name(cuda_major: int) -> str:
    """The fat binary's file name: it holds the sources' digest, so a stale one is never loaded."""
    digest = hashlib.sha256()
    for name in ("psc_core.h", "psc_block.h", "psc_cuda.cu"):
        digest.update((SOURCES / name).read_bytes())
    return f"psc_cuda-{digest.hexdigest()[:12]}-cu{cuda_major}.fatbin"


def find_fatbin(driver_major: int, folder: Path = FOLDER) -> Path | None:
    """The newest fat binary of today's sources that a driver of this CUDA major version loads."""
    options = (folder / fatbin_name(major) for major in range(driver_major, 11, -1))
    return next((path for path in options if path.is_file()), None)


def build_fatbin(folder: Path = FOLDER, nvcc: str | None = None) -> Path:
    """Compile the kernel with nvcc for every architecture it knows; nothing to do if that is done.

    Args:
        folder: where the fat binary goes; written whole or not at all.
        nvcc: path of nvcc; None to look for it.

    Returns:
        The fat binary's path.

    Raises:
        KernelError: no nvcc, or it failed.
    """
    nvcc = nvcc or find_tool("nvcc")
    if nvcc is None:
        raise KernelError(
            f"nvcc is not on PATH nor in {TOOLKIT}; install the CUDA toolkit or rely on NVRTC"
        )
    target = folder / fatbin_name(nvcc_major(nvcc))
    if target.is_file():
        return target
    architectures = nvcc_architectures(nvcc)
    newest = architectures[-1]
    code = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in architectures]
    code.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    partial = target.with_suffix(".partial")
    _run_nvcc([nvcc, "-std=c++17", "-O3", "-fatbin", "--threads=2", *code], partial)
    partial.replace(target)
    return target


def compile_cubin(architecture: int) -> bytes:
    """The kernels' machine code by NVRTC, compiled once and kept; needs no GPU, driver or toolkit.

    Args:
        architecture: compute capability as a number, 87 for 8.7.

    Raises:
        MissingExtraError: NVRTC is not installed.
        KernelError: NVRTC refused the architecture or the source.
    """
    from .nvrtc import cubin  # setup.py runs this file without the package

    return cubin(*_translation_unit(), architecture)


def _translation_unit() -> tuple[str, bytes, dict[str, bytes]]:
    """The source's name, the source, and its headers, as NVRTC takes them."""
    headers = {name: (SOURCES / name).read_bytes() for name in ("psc_block.h", "psc_core.h")}
    return "psc_cuda.cu", (SOURCES / "psc_cuda.cu").read_bytes(), headers


def _run_nvcc(command: list[str], target: Path) -> None:
    source = SOURCES / "psc_cuda.cu"
    done = subprocess.run(
        [*command, str(source), "-o", str(target)], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise KernelError(f"nvcc could not compile {source.name}: {lines[0]}")


if __name__ == "__main__":
    try:
        made = build_fatbin()
    except KernelError as error:
        sys.exit(str(error))
    print(made)
