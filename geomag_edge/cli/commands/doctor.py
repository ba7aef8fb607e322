"""Say what is installed, which engines and devices work here, and what to install for the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

from geomag_edge.cli.console import print_json, say
from geomag_edge.printing import table

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "rasterio", "shapely", "tokenizers", "pillow",
    "torch", "transformers", "onnx", "onnxscript", "openvino", "tensorrt", "tensorrt-rtx-cu13",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`doctor` takes no arguments of its own."""


def execute(args: argparse.Namespace) -> None:
    """Looks around and prints what was found."""
    facts = examine()
    if args.json:
        print_json(facts)
        return
    say(f"machine   {facts['machine']}, {facts['cpus']} CPUs, Python {facts['python']}")
    say(f"CPU       {facts['cpu']}")
    say(f"PscCrop   {facts['psc_crop']}")
    say(f"GPU       {facts['gpu']}")
    say(f"PROJ      {facts['proj']}")
    say("")
    say(*table(("package", "version"), list(facts["packages"].items())))
    say("")
    rows = [(e["engine"], "yes" if e["works"] else "no", e["detail"]) for e in facts["engines"]]
    say(*table(("engine", "works here", "detail"), rows))
    say("")
    folder = facts["auto_folder"] or "no folder: this user has no home, so set XDG_CACHE_HOME"
    say(f"engine auto remembers {len(facts['auto'])} measurements in {folder}")
    if facts["auto"]:
        say(*table(("precision", "graph", "threads", "chosen", "ms", "measured"),
                    [_remembered_row(record) for record in facts["auto"]]))  # fmt: skip


def examine() -> dict[str, Any]:
    """Facts about this machine; every check is a real attempt, not a guess from a version."""
    from geomag_edge.runtime.engines.auto.remembered import cache_folder, everything

    folder = cache_folder()
    return {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "psc_crop": _psc_crop(),
        "gpu": _gpu(),
        "proj": _proj(),
        "engines": [_ort(), _openvino(), _torch()],
        "auto": everything(),
        "auto_folder": None if folder is None else str(folder),
    }


def _cpu() -> str:
    from geomag_edge.machine import machine

    found = machine()
    sets = " ".join(found["instruction_sets"]) or "instruction sets unknown"
    share = f", a quota of {found['quota']:g} cores" if found["quota"] else ""
    return f"{found['cpu']} ({sets}){share}"


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


def _proj() -> str:
    import rasterio

    from geomag_edge.runtime.images.proj import database_note

    return database_note() or f"{rasterio.__proj_version__}, coordinate systems are found"


def _ort() -> dict[str, Any]:
    try:
        import onnxruntime as ort
    except ImportError as e:
        return {"engine": "ort-cpu", "works": False, "detail": f"{e}; pip install onnxruntime"}
    providers = ort.get_available_providers()
    works = "CPUExecutionProvider" in providers
    from geomag_edge.runtime.engines.exact import PROBE, is_exact
    from geomag_edge.runtime.engines.ort import OrtSession

    detail = f"{', '.join(providers)}; {_int8(is_exact(OrtSession(PROBE, 1)))}"
    return {"engine": "ort-cpu", "works": works, "detail": detail}


def _openvino() -> dict[str, Any]:
    try:
        import openvino
    except ImportError:
        detail = 'not installed: pip install "geomag-edge[openvino]"'
        return {"engine": "openvino", "works": False, "detail": detail}
    from geomag_edge.runtime.engines.exact import PROBE, is_exact
    from geomag_edge.runtime.engines.openvino import OpenVinoSession, saturates

    try:
        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        exact = _int8(is_exact(OpenVinoSession(openvino.Core(), PROBE, "f32", 1)))
        exact += " as float: this CPU adds its bytes in 16 bits" if saturates() else ""
    except Exception as e:
        return {"engine": "openvino", "works": False, "detail": str(e).strip().splitlines()[-1]}
    form = "bf16 too" if "BF16" in able else "no bf16 on this CPU"
    return {"engine": "openvino", "works": True, "detail": f"CPU, {form}; {exact}"}


def _int8(exact: bool) -> str:
    return "int8 exact" if exact else "int8 NOT exact on this CPU"


def _remembered_row(record: dict[str, Any]) -> tuple[Any, ...]:
    times = ", ".join(f"{m['engine']} {m['ms']:.1f}" for m in record["measured"])
    return (
        record["precision"], record["graph"], record["under"]["threads"] or "-",
        record["engine"], times, record["measured_at"],
    )  # fmt: skip


def _torch() -> dict[str, Any]:
    missing = [m for m in ("torch", "transformers") if importlib.util.find_spec(m) is None]
    if missing:
        detail = f'needs {" and ".join(missing)}: pip install "geomag-edge[export]"'
        return {"engine": "torch", "works": False, "detail": detail}
    return {"engine": "torch", "works": True, "detail": f"PyTorch {_version('torch')} on the CPU"}
