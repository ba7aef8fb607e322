"""What the `auto` engine has measured on this machine, one small JSON file a graph.

A file's name holds a digest of all that the measurement depended on: the graph's files, the
reference inputs, the candidates, their versions, the machine and the threads. So whatever changes,
the old file is simply not found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from geomag_edge.cores import threads_of
from geomag_edge.disk.caches import cache_root
from geomag_edge.disk.staging import staged_file
from geomag_edge.disk.stored import read_json
from geomag_edge.errors import BundleError
from geomag_edge.machine import machine
from geomag_edge.manifest import Bundle
from geomag_edge.version import VERSION

FORMAT_VERSION = 1

PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
)  # fmt: skip
"""Whose versions decide how fast a graph runs."""


def cache_folder() -> Path | None:
    """Where `auto` remembers its measurements."""
    root = cache_root()
    return root and root / "engines"


def versions() -> dict[str, str]:
    """This program's version and those of the installed engines."""
    found = {"geomag-edge": VERSION}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def conditions(
    bundle: Bundle,
    graph: str,
    stored: Sequence[str],
    candidates: Sequence[str],
    threads: int | None,
) -> dict[str, Any]:
    """All that a measurement of one graph depends on, as plain data.

    Args:
        bundle: the bundle.
        graph: the graph's name.
        stored: the sets of the bundle's graphs that may run.
        candidates: names of the engines to be measured.
        threads: CPU threads asked for, or None.
    """
    forms = []
    for precision in stored:
        record = bundle.record(graph, precision)
        own = record.get("forms", {})
        forms += [record, *(own[name] for name in sorted(own))]
    files = [name for form in forms for name in (form["file"], *form["data"])]
    hashes = bundle.manifest.files
    return {
        "format": FORMAT_VERSION,
        "graph_sha256": {name: hashes[name] for name in files},
        "reference_sha256": hashes.get("reference/arrays.npz"),
        "engines": engines_of(bundle),
        "candidates": list(candidates),
        "threads": threads_of(threads),
        "versions": versions(),
        "machine": machine(),
    }


def engines_of(bundle: Bundle) -> dict[str, str]:
    """sha256 of the report of every build in a bundle: what is built later is a new candidate."""
    files = bundle.manifest.files
    return {n: files[n] for n in files if n.startswith("engines/") and n.endswith("/build.json")}


def place(graph: str, precision: str, measured_under: dict[str, Any]) -> Path | None:
    """The file that remembers one graph's choice under these conditions."""
    text = json.dumps(measured_under, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_folder()
    return folder and folder / f"{graph}-{precision}-{digest}.json"


def recall(path: Path | None) -> dict[str, Any] | None:
    """What a file remembers; None where there is none, or one that is no such record."""
    try:
        record = path and read_json(path)
    except BundleError:
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT_VERSION else None


def remember(path: Path | None, record: dict[str, Any]) -> str | None:
    """Writes a record, whole or not at all; why it could not, in plain words, or None."""
    if path is None:
        return "the measurement is not remembered: this user has no home; set XDG_CACHE_HOME"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as part:
            text = json.dumps({"format": FORMAT_VERSION} | record, indent=1)
            part.write_text(text, encoding="utf-8")
    except OSError as e:
        return f"the measurement is not remembered: cannot write {path.parent}: {e.strerror}"
    return None


def everything() -> list[dict[str, Any]]:
    """Every record in the cache folder, by graph and precision."""
    folder = cache_folder()
    try:
        paths = sorted(folder.glob("*.json")) if folder else []
    except OSError:  # a home that may not be looked into
        return []
    found = [recall(path) for path in paths]
    return [record for record in found if record is not None]
