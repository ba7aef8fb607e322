"""Show what a bundle holds, and check every file's sha256."""

from __future__ import annotations

import argparse
import math
from typing import Any

from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.console import print_json, say
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
    view = manifest.view
    say(f"bundle      {args.bundle} ({sum(sizes.values()) / 1e6:.1f} MB, all sha256 good)")
    say(f"created by  {manifest.created_by}")
    parts = (
        manifest.model_config.get(f"{part}_config", {}) for part in ("vision", "prompt", "text")
    )
    say("model       " + ", ".join(part.get("model_type", "unknown") for part in parts))
    say(f"views       {view.view_px} px, {view.grid} x {view.grid} patches")
    if manifest.untrained:
        say(f"UNTRAINED   {', '.join(manifest.untrained)}: answers mean nothing yet")
    say("")
    rows = []
    for precision, records in manifest.graphs.items():
        for name, record in records.items():
            size = sum(sizes[f] for f in [record["file"], *record["data"]])
            rows.append(
                (precision, name, record["opset"], f"{size / 1e6:.1f}",
                 _signature(record["inputs"]), _signature(record["outputs"]))
            )  # fmt: skip
    say(*table(("precision", "graph", "opset", "MB", "inputs", "outputs"), rows))
    say("")
    budgets = [
        (
            level,
            b.visual_tokens,
            f"{b.global_grid} x {b.global_grid}",
            b.crops,
            f"{b.crop_grid} x {b.crop_grid}",
        )
        for level, b in manifest.budgets.items()
    ]
    say(*table(("level", "visual tokens", "whole", "crops", "each"), budgets))
    say("")
    parity = [
        (
            p,
            r.get("engine", "-"),
            "ok" if r.get("ok") else r.get("first_drift") or "-",
            f"{_worst(r):.1e}",
        )
        for p, found in manifest.parity.items()
        # one report from export, one for each engine from quantize
        for r in ([found] if {"engine", "ok"} & set(found) else found.values())
    ]
    say(*table(("parity", "engine", "verdict", "worst relative error"), parity))
    if built := load_records(bundle):
        engines = [
            (
                r.target,
                r.precision,
                f"{r.flavour} {r.version}",
                ", ".join(r.loads_on_sm),
                r.options.get("cache", GROWING),
                f"{_bytes(r) / 1e6:.1f}",
            )
            for r in built
        ]
        say("")
        header = ("engines for", "precision", "built by", "run on sm", "cache", "MB")
        say(*table(header, engines))


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
