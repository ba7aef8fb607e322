"""The way in: signals and streams around one command, and errors as one line and an exit code.

Light, so that a signal counts from the first line on: all else is imported when signals are taken.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from geomag_edge.cli.signals import Signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: its words; None takes the process's own, whose streams and signals then stay ours
            until the process ends.

    Returns:
        The exit code: 0, 1 for a failure, 2 for bad input or usage, 128 and its number for a
        signal, and 141 where nobody reads what is printed.
    """
    signals = Signals(last=argv is None)
    try:
        with signals:
            return _run(argv, signals)
    except KeyboardInterrupt:  # before there was anything to end
        return 128 + (signals.heard or signal.SIGINT)


def _run(argv: Sequence[str] | None, signals: Signals) -> int:
    name, debug = "geomag-edge", False
    try:
        from geomag_edge.cli.console import alone, flush, safe_streams

        with safe_streams(last=argv is None):
            try:
                from geomag_edge.cli.parser import parsed

                args = parsed(argv)
                name, debug = f"geomag-edge {args.command}", args.debug
                with alone(debug, last=argv is None):
                    if getattr(args, "device_index", None) is not None:
                        from geomag_edge.targets.cuda import use_gpu

                        use_gpu(args.device_index)
                    code = args.handler(args) or 0
                    flush()
                    return code
            except SystemExit as e:  # --help, or arguments that are wrong
                flush()
                return e.code if isinstance(e.code, int) else 0
            except BaseException as e:
                return _told(e, name, debug, signals.heard)
    except BaseException as e:  # a signal while the above was imported, or the last was said
        return _told(e, name, debug, signals.heard)


def _told(e: BaseException, name: str, debug: bool, heard: int | None) -> int:
    """Says what went wrong; the exit code.

    Rust's panics are no `Exception`, hence all of them come here.
    """
    from geomag_edge.cli.console import tell
    from geomag_edge.errors import explained

    if debug:
        import traceback

        for line in "".join(traceback.format_exception(e)).splitlines():
            tell(line, None)
    if heard is not None or isinstance(e, KeyboardInterrupt):
        tell(f"{name}: interrupted, nothing half-written")
        return 128 + (heard or signal.SIGINT)
    if isinstance(e, BrokenPipeError):  # the reader has gone: a complaint helps nobody
        return 128 + signal.SIGPIPE
    message, code = explained(e)
    tell(f"{name}: error: {message}")
    return code
