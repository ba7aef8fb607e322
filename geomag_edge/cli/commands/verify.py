"""Replay the bundle's reference inputs on this machine's engine and say what drifted first."""

from __future__ import annotations

import argparse

from geomag_edge.cli.bundle import add_bundle_argument
from geomag_edge.cli.commands.run import add_engine_arguments, open_pipeline
from geomag_edge.cli.console import parity_table, print_json, say, steps
from geomag_edge.errors import ParityError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `verify`."""
    add_bundle_argument(parser)
    add_engine_arguments(parser)


def execute(args: argparse.Namespace) -> None:
    """Verifies and prints the report; drift past tolerance is a failure."""
    from geomag_edge.runtime.engines.reference import reference_of
    from geomag_edge.runtime.proof.verify import REPLAYED, tolerance_of, verify

    with open_pipeline(args) as pipe:
        samples = reference_of(pipe.bundle)
        with steps(len(REPLAYED) + len(samples), "verify") as progress:
            tolerance = tolerance_of(pipe.chain.engine.precision)
            report = verify(pipe.chain, samples, tolerance, progress)
    if args.json:
        print_json(report.to_json())
    else:
        say(*parity_table(report.to_json()))
    if not report.ok:
        raise ParityError(f"{args.bundle} drifted on {args.engine}: {report.first_drift}")
