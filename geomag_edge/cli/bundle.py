"""The bundle that a command works on, and whose signature it must have."""

from __future__ import annotations

import argparse
from typing import Any

from geomag_edge.cli.arguments import path
from geomag_edge.manifest import Bundle


def add_bundle_argument(parser: argparse.ArgumentParser, **more: Any) -> None:
    """BUNDLE and --trust; `more` goes to `add_argument` of BUNDLE."""
    parser.add_argument("bundle", type=path, metavar="BUNDLE", **more)
    parser.add_argument(
        "--trust",
        type=path,
        metavar="KEY",
        help="refuse a bundle that the owner of this public ed25519 key has not signed",
    )


def open_bundle(args: argparse.Namespace) -> Bundle:
    """The bundle as the arguments ask for it."""
    return Bundle.open(args.bundle, args.trust)
