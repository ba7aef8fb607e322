"""The parser of every command; what it refuses is one line, too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from geomag_edge.cli.commands import (
    bench,
    build,
    calibrate,
    compose,
    doctor,
    eval,
    export,
    inspect,
    plan,
    quantize,
    quickstart,
    run,
    scenes,
    sign,
    targets,
    verify,
)
from geomag_edge.cli.console import show, tell
from geomag_edge.version import VERSION

COMMANDS = (
    quickstart,
    export,
    compose,
    scenes,
    run,
    verify,
    eval,
    calibrate,
    quantize,
    targets,
    build,
    bench,
    plan,
    inspect,
    sign,
    doctor,
)


class Parser(argparse.ArgumentParser):
    """Usage errors in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and where to find help."""
        tell(f"{self.prog}: error: {message} (see {self.prog} --help)")
        self.exit(2)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuses `--output=--`, which argparse takes for an option without a value."""
        if action.option_strings and "--" in arg_strings:
            raise argparse.ArgumentError(action, "-- is no value")
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version, on stdout; argparse would not notice that they cannot be written."""
        show(message)


def build_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(
        prog="geomag-edge",
        description="Takes a GeoMag checkpoint to the edge: graphs, parity, answers and masks.",
    )
    parser.add_argument("--version", action="version", version=f"geomag-edge {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=(module.__doc__ or "").splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument(
            "--json", action="store_true", help="a machine-readable result on stdout"
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(handler=module.execute)
    return parser


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of one command; ends the program, with 2, on those that are wrong."""
    import sys

    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if any("\0" in word for word in given):  # only a program can give one, and none means it
        parser.error("an argument holds a null character")
    return parser.parse_args(given)
