"""List the targets and devices that graphs and engines can be made for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping

from geomag_edge.cli.arguments import path
from geomag_edge.cli.console import print_json, say
from geomag_edge.errors import TargetError
from geomag_edge.printing import table
from geomag_edge.targets import Catalog, Target, load_catalog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `targets`."""
    add_catalog_argument(parser)


def add_catalog_argument(parser: argparse.ArgumentParser) -> None:
    """`--targets-file`, for every command that takes a target."""
    parser.add_argument(
        "--targets-file",
        type=path,
        metavar="FILE",
        help="JSON with targets or devices of your own (docs/TARGETS.md)",
    )


def execute(args: argparse.Namespace) -> None:
    """Prints targets, devices and what this machine is."""
    from geomag_edge.targets.detect import choose_target, look_around

    catalog = load_catalog(args.targets_file)
    machine = look_around()
    here: dict[str, str | None] = {"saw": str(machine)}
    for use, engines in (("export", False), ("build", True)):
        try:
            here[use] = choose_target(machine, catalog, engines)
        except TargetError as e:  # a list is shown on every machine
            here |= {use: None, "why": str(e)}
    if args.json:
        print_json(
            {
                "targets": [_target(t) for t in catalog.targets.values()],
                "devices": [dataclasses.asdict(d) for d in catalog.devices.values()],
                "here": here | {"machine": machine.to_json()},
            }
        )
        return
    say(*_targets(catalog), "", *_devices(catalog), "")
    say(f"this machine: {here['saw']}; {_auto(here)}")


def _auto(here: Mapping[str, str | None]) -> str:
    if here["build"] is None and here["export"] is None:
        return f"--target auto ends with: {here['why']}"
    built = f"builds for {here['build']}" if here["build"] else f"does not build: {here['why']}"
    return f"--target auto exports for {here['export']} and {built}"


def _targets(catalog: Catalog) -> list[str]:
    rows = [
        (t.name, _versions(t), t.opset, t.attention, " ".join(t.dtypes), t.profiles,
         " ".join(t.sm) or "-")
        for t in catalog.targets.values()
    ]  # fmt: skip
    head = ("target", "TensorRT", "opset", "attention", "dtypes", "profiles", "sm")
    return table(head, rows)


def _devices(catalog: Catalog) -> list[str]:
    rows = [
        (d.name, d.sm, d.fp16_tflops, d.int8_tops or "-", d.gb_s, d.gb,
         "/".join(f"{w:g}" for w in d.watts), " ".join(d.targets))
        for d in catalog.devices.values()
    ]  # fmt: skip
    head = ("device", "sm", "FP16 TFLOP/s", "INT8 TOPS", "GB/s", "GB", "W", "targets")
    return table(head, rows)


def _versions(target: Target) -> str:
    if target.versions is None:
        return "-"
    kind = "RTX " if target.flavour == "tensorrt_rtx" else ""
    return f"{kind}{target.versions[0]} to < {target.versions[1]}"


def _target(target: Target) -> dict:
    record = dataclasses.asdict(target)
    record["operators"] = sorted(target.operators) if target.operators is not None else None
    return record
