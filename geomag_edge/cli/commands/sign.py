"""Sign a bundle's manifest, and with it every file that it lists, so that `--trust` opens it."""

from __future__ import annotations

import argparse

from geomag_edge.cli.arguments import path
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.console import print_json, say
from geomag_edge.manifest import MANIFEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `sign`."""
    add_bundle_argument(parser)
    parser.add_argument(
        "--key",
        type=path,
        required=True,
        metavar="KEY",
        help="the private ed25519 key's file, as openssl or ssh-keygen makes it",
    )


def execute(args: argparse.Namespace) -> None:
    """Checks every file, then signs: a signature vouches for what was there when it was made."""
    from geomag_edge.disk.signature import signing_key, write_signature

    key = signing_key(args.key)
    bundle = open_bundle(args)
    for name in bundle.manifest.files:
        bundle.file(name)
    place = write_signature(bundle.root / MANIFEST, key)
    if args.json:
        print_json({"bundle": str(args.bundle), "signature": str(place)})
    else:
        say(f"{args.bundle} is signed: {place}; --trust with the public key opens it")
