"""Parses the command line, runs a command, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from geomag_edge import __version__
from geomag_edge.cli import (
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
    targets,
    verify,
)
from geomag_edge.errors import GeoMagError

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
    doctor,
)


class Parser(argparse.ArgumentParser):
    """Usage errors in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and where to find help."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(
        prog="geomag-edge",
        description="Takes a GeoMag checkpoint to the edge: graphs, parity, answers and masks.",
    )
    parser.add_argument("--version", action="version", version=f"geomag-edge {__version__}")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 for a failure, 2 for bad input or usage."""
    args = build_parser().parse_args(argv)
    prefix = f"geomag-edge {args.command}: error:"
    try:
        with _terminated_as_interrupted():
            return args.handler(args) or 0
    except KeyboardInterrupt:
        print(f"geomag-edge {args.command}: interrupted, nothing half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; a second complaint helps nobody
        return 1
    except GeoMagError as e:
        if args.debug:
            traceback.print_exc()
        print(f"{prefix} {_one_line(e)}", file=sys.stderr)
        return e.exit_code
    except MemoryError:
        print(
            f"{prefix} out of memory: use a smaller budget, or a raster with overviews",
            file=sys.stderr,
        )
        return 1
    except Exception as e:
        if args.debug:
            traceback.print_exc()
        print(
            f"{prefix} {type(e).__name__}: {_one_line(e)} (run again with --debug and report it)",
            file=sys.stderr,
        )
        return 1


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """`kill` ends a command as Ctrl-C does, so that it leaves nothing half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split())
