"""Say what is installed, which engines and devices work here, and what to install for the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

from geomag_edge.cli.console import print_json, table

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "rasterio", "tokenizers", "pillow", "torch",
    "transformers", "onnx", "onnxscript", "openvino", "tensorrt", "tensorrt-rtx-cu13",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`doctor` takes no arguments of its own."""


def execute(args: argparse.Namespace) -> None:
    """Looks around and prints what was found."""
    facts = examine()
    if args.json:
        print_json(facts)
        return
    print(f"machine   {facts['machine']}, {facts['cpus']} CPUs, Python {facts['python']}")
    print(f"PscCrop   {facts['psc_crop']}")
    print(f"GPU       {facts['gpu']}")
    print()
    print(table(("package", "version"), list(facts["packages"].items())))
    print()
    rows = [(e["engine"], "yes" if e["works"] else "no", e["detail"]) for e in facts["engines"]]
    print(table(("engine", "works here", "detail"), rows))


def examine() -> dict[str, Any]:
    """Facts about this machine; every check is a real attempt, not a guess from a version."""
    return {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "psc_crop": _psc_crop(),
        "gpu": _gpu(),
        "engines": [_ort(), _torch()],
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _psc_crop() -> str:
    from geomag_edge.cpp_ext import native

    loops = native.cpu_instruction_set()
    if loops == "numpy":
        return "numpy form, slow: install a C++ compiler (apt install g++) and geomag-edge again"
    return f"compiled CPU kernel, {loops} loops"


def _gpu() -> str:
    found = shutil.which("nvidia-smi")
    return "an NVIDIA driver is installed" if found else "none found (no NVIDIA driver)"


def _ort() -> dict[str, Any]:
    try:
        import onnxruntime as ort
    except ImportError as e:
        return {"engine": "ort-cpu", "works": False, "detail": f"{e}; pip install onnxruntime"}
    providers = ort.get_available_providers()
    works = "CPUExecutionProvider" in providers
    return {"engine": "ort-cpu", "works": works, "detail": ", ".join(providers)}


def _torch() -> dict[str, Any]:
    missing = [m for m in ("torch", "transformers") if importlib.util.find_spec(m) is None]
    if missing:
        detail = f'needs {" and ".join(missing)}: pip install "geomag-edge[export]"'
        return {"engine": "torch", "works": False, "detail": detail}
    return {"engine": "torch", "works": True, "detail": f"PyTorch {_version('torch')} on the CPU"}
