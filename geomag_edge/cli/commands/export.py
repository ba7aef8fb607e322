"""Turn a checkpoint into a bundle of ONNX graphs, with a parity report."""

from __future__ import annotations

import argparse

from geomag_edge.cli.arguments import path
from geomag_edge.cli.commands.targets import add_catalog_argument
from geomag_edge.cli.console import needs_extra, parity_table, print_json, say, steps, tell
from geomag_edge.targets import known, load_catalog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("checkpoint", type=path, metavar="CKPT", help="GeoMag checkpoint folder")
    parser.add_argument("-o", "--output", type=path, required=True, metavar="BUNDLE")
    parser.add_argument(
        "--target",
        default="portable",
        metavar="T",
        help="what the graphs are for: auto (this machine), or "
        + "; ".join(f"{t.name} (opset {t.opset}: {t.note})" for t in known().targets.values()),
    )
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16"))
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--sign",
        type=path,
        metavar="KEY",
        help="sign the bundle with this private ed25519 key, for --trust to check",
    )
    add_catalog_argument(parser)


def execute(args: argparse.Namespace) -> None:
    """Exports and prints the parity report."""
    catalog = load_catalog(args.targets_file)
    name = args.target
    if name == "auto":
        from geomag_edge.targets.detect import choose_target, look_around

        machine = look_around()
        name = choose_target(machine, catalog, engines=False)
        tell(f"export: saw {machine}: target {name}")
    target = catalog.target(name)
    with needs_extra("export"):
        from geomag_edge.export.exporter import STEPS, export_bundle
    with steps(STEPS, "export") as progress:
        report = export_bundle(
            args.checkpoint,
            args.output,
            args.dtype,
            target.opset,
            args.force,
            progress,
            target,
            args.sign,
        )
    if args.json:
        print_json({"bundle": str(args.output), "target": target.name, "parity": report.to_json()})
    else:
        say(*parity_table(report.to_json()))
        say(f"bundle for {target.name} written to {args.output}")
