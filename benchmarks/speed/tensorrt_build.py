"""What the fit check predicts, against what TensorRT for RTX's builder says it built.

    python -m geomag_edge.benchmarks.speed.tensorrt_build nano=BUNDLE base=BUNDLE -o FOLDER

Every engine of a bundle is built without a GPU, in a process of its own, so that its time and peak
memory are its own. The bundle's files are linked, not changed. Compared are the bytes of each
engine file, and its activations as the builder reports them for the largest of its profiles; no
engine is loaded or run. The physics: an engine file is weights plus kernel code, activations are
the tensors alive at once plus the matrix products' workspace. The fit check's three constants (code
a kernel, code a distinct kernel, workspace) were chosen on the fp16 engines of nano and base.

Writes tensorrt_build.json and .md; the last line on stdout is the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.publish import page_of, publish
from geomag_edge.machine import machine as hardware
from geomag_edge.manifest import Bundle
from geomag_edge.printing import table

TARGET = "tensorrt-rtx"


def main(argv: list[str] | None = None) -> None:
    """Builds, compares, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE")
    parser.add_argument("--precision", action="append", metavar="P", help="default: all it has")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    runs = []
    for item in args.bundles:
        name, _, root = item.partition("=")
        have = list(Bundle.open(root).manifest.graphs)
        for precision in args.precision or have:
            if precision in have:
                print(f"{name} {precision}", file=sys.stderr, flush=True)
                runs.append(measure(name, Path(root), precision))
    report = {
        "command": "python -m geomag_edge.benchmarks.speed.tensorrt_build "
        + " ".join(i.partition("=")[0] + "=BUNDLE" for i in args.bundles)
        + "".join(f" --precision {p}" for p in args.precision or []),
        "machine": f"{hardware()['cpu']}, {os.cpu_count()} cores, no GPU",
        "python": platform.python_version(),
        "target": TARGET,
        "runs": runs,
    }
    publish(report, as_markdown(report), args.output, "tensorrt_build")


def measure(name: str, root: Path, precision: str) -> dict[str, Any]:
    """Builds all engines of one bundle and precision in a process of its own."""
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(root, copy, copy_function=_link, ignore=shutil.ignore_patterns("engines"))
        data = json.loads((root / "bundle.json").read_text())
        data["files"] = {n: s for n, s in data["files"].items() if not n.startswith("engines/")}
        (copy / "bundle.json").unlink()
        (copy / "bundle.json").write_text(json.dumps(data))
        done = subprocess.run(
            [sys.executable, "-m", "geomag_edge", "build", str(copy), "--target", TARGET,
             "--precision", precision, "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} {precision}: {done.stderr.strip().splitlines()[-1]}")
    return compared(name, json.loads(done.stdout))


def compared(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Prediction and builder's word for each engine, and for all."""
    engines = []
    predicted = {e["stem"]: e for e in record["fit"]["engines"]}
    for files in record["engines"].values():
        for file in files:
            guess = predicted[Path(file["file"]).stem]
            engines.append(
                {
                    "engine": Path(file["file"]).stem,
                    "profiles": [p["name"] for p in file["profiles"]],
                    "predicted_engine_bytes": guess["engine_bytes"],
                    "built_engine_bytes": file["bytes"],
                    "predicted_activation_bytes": guess["activation_bytes"],
                    "built_activation_bytes": file["memory"]["activation_bytes"],
                    "layers": file["layer_precisions"],
                    "build_s": file["build_s"],
                }
            )
    total = {
        kind: sum(e[f"{kind}_engine_bytes"] + e[f"{kind}_activation_bytes"] for e in engines)
        for kind in ("predicted", "built")
    }
    return {
        "model": name,
        "precision": record["precision"],
        "version": record["version"],
        "sm": record["loads_on_sm"],
        "engines": engines,
        "predicted_bytes": total["predicted"],
        "built_bytes": total["built"],
        "error": total["predicted"] / total["built"] - 1,
        "build_s": record["build_s"],
        "peak_rss_bytes": record["peak_rss_bytes"],
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    first = report["runs"][0]
    said = (
        f"{report['machine']}; version {first['version']}; for sm {', '.join(first['sm'])}.\n"
        "MB of the engine files and of the activations that the builder reports for the largest\n"
        "profile. Nothing was run: the engines were never loaded on a GPU. The fit check's\n"
        "constants were chosen on the fp16 rows; the others are predictions."
    )
    summary = [
        (r["model"], r["precision"], _mb(r["predicted_bytes"]), _mb(r["built_bytes"]),
         f"{100 * r['error']:+.0f} %", f"{r['build_s']:.0f}", f"{r['peak_rss_bytes'] / 1e9:.1f}")
        for r in report["runs"]
    ]  # fmt: skip
    heads = ["model", "precision", "predicted", "built", "error", "build s", "peak GB"]
    parts = [said, _fenced(heads, summary)]
    heads = ["engine", "file, predicted", "built", "activations, predicted", "built", "layers"]
    for run in report["runs"]:
        rows = [
            (e["engine"], _mb(e["predicted_engine_bytes"]), _mb(e["built_engine_bytes"]),
             _mb(e["predicted_activation_bytes"]), _mb(e["built_activation_bytes"]),
             " ".join(f"{k}:{v}" for k, v in e["layers"].items()) or "-")
            for e in run["engines"]
        ]  # fmt: skip
        parts += [f"## {run['model']}, {run['precision']}", _fenced(heads, rows)]
    return page_of("Predicted and built: TensorRT for RTX", report, *parts)


def _fenced(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(["```", *table(heads, rows), "```"])


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def _link(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


if __name__ == "__main__":
    main()
