"""Show what a bundle holds, and check every file's sha256."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.console import print_json, say
from geomag_edge.manifest import Manifest
from geomag_edge.printing import table
from geomag_edge.runtime.engines.tensorrt.profiles import GROWING
from geomag_edge.runtime.engines.tensorrt.record import BuildRecord, load_records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `inspect`."""
    add_bundle_argument(parser)


def execute(args: argparse.Namespace) -> None:
    """Checks all files and prints the manifest as tables."""
    bundle = open_bundle(args)
    manifest = bundle.manifest
    sizes = {name: bundle.file(name).stat().st_size for name in manifest.files}
    if args.json:
        print_json(manifest.to_json() | {"sizes_bytes": sizes})
        return
    say(*_about(args.bundle, manifest, sum(sizes.values())), "")
    say(*_graphs(manifest, sizes), "")
    say(*_budgets(manifest), "")
    say(*_parity(manifest))
    if built := load_records(bundle):
        say("", *_engines(built))


def _about(place: Path, manifest: Manifest, size: int) -> list[str]:
    configs = [manifest.model_config.get(f"{p}_config", {}) for p in ("vision", "prompt", "text")]
    view = manifest.view
    lines = [
        f"bundle      {place} ({size / 1e6:.1f} MB, all sha256 good)",
        f"created by  {manifest.created_by}",
        "model       " + ", ".join(config.get("model_type", "unknown") for config in configs),
        f"views       {view.view_px} px, {view.grid} x {view.grid} patches",
    ]
    if manifest.untrained:
        lines.append(f"UNTRAINED   {', '.join(manifest.untrained)}: answers mean nothing yet")
    return lines


def _graphs(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    rows = [
        (precision, name, record["opset"],
         f"{sum(sizes[f] for f in [record['file'], *record['data']]) / 1e6:.1f}",
         _signature(record["inputs"]), _signature(record["outputs"]))
        for precision, records in manifest.graphs.items()
        for name, record in records.items()
    ]  # fmt: skip
    return table(("precision", "graph", "opset", "MB", "inputs", "outputs"), rows)


def _budgets(manifest: Manifest) -> list[str]:
    rows = [
        (level, b.visual_tokens, f"{b.global_grid} x {b.global_grid}", b.crops,
         f"{b.crop_grid} x {b.crop_grid}")
        for level, b in manifest.budgets.items()
    ]  # fmt: skip
    return table(("level", "visual tokens", "whole", "crops", "each"), rows)


def _parity(manifest: Manifest) -> list[str]:
    rows = [
        (p, r.get("engine", "-"), "ok" if r.get("ok") else r.get("first_drift") or "-",
         f"{_worst(r):.1e}")
        for p, found in manifest.parity.items()
        # one report from export, one for each engine from quantize
        for r in ([found] if {"engine", "ok"} & set(found) else found.values())
    ]  # fmt: skip
    return table(("parity", "engine", "verdict", "worst relative error"), rows)


def _engines(records: Sequence[BuildRecord]) -> list[str]:
    rows = [
        (r.target, r.precision, f"{r.flavour} {r.version}", ", ".join(r.loads_on_sm),
         r.options.get("cache", GROWING), f"{_bytes(r) / 1e6:.1f}")
        for r in records
    ]  # fmt: skip
    return table(("engines for", "precision", "built by", "run on sm", "cache", "MB"), rows)


def _worst(report: dict[str, Any]) -> float:
    """The largest error over its output's scale; one that was not finite is stored as null."""
    errors = [d.get("relative", 0.0) for d in report.get("graphs", [])]
    return max((math.inf if e is None else e for e in errors), default=0.0)


def _bytes(record: BuildRecord) -> int:
    return sum(file.bytes for files in record.engines.values() for file in files)


def _signature(ports: list[dict]) -> str:
    shown = [p for p in ports if not p["name"].startswith(("past_key", "present."))]
    text = ", ".join(f"{p['name']}[{','.join(str(a) for a in p['axes'])}]" for p in shown)
    return text + (f" + {len(ports) - len(shown)} of the cache" if len(ports) > len(shown) else "")
