"""What commands print: answers, tables and JSON on stdout; errors, remarks and progress on stderr.

Everything goes through `say`, `show`, `print_json`, `tell` and the progress bars. They make what
came from outside harmless, whatever the terminal's encoding.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from geomag_edge.errors import GeoMagWarning, MissingExtraError, OutputError
from geomag_edge.printing import LINE_CHARS, one_line, plain, printable, shortened, table

LOG_EVERY_S = 10.0
SAID_CHARS = 480
"""The longest line of a result; `--json` has everything whole."""
NAME_CHARS = 60
"""Of a file or step that a progress bar names."""

_out: TextIO | None = None
_err: TextIO | None = None
"""Where a command writes while `alone` keeps others from `sys.stdout` and `sys.stderr`."""


def say(*lines: str) -> None:
    """Lines of a result, on stdout.

    Raises:
        OutputError: it cannot be written, on a full disk say.
        BrokenPipeError: nobody reads it.
    """
    _print("".join(f"{shortened(printable(line), SAID_CHARS)}\n" for line in lines))


def show(piece: str) -> None:
    """A piece of an answer, on stdout at once; its own line feeds stay."""
    _print(printable(piece, keep="\n\t"))
    flush()


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    _print(json.dumps(plain(data), indent=2, allow_nan=False, default=str) + "\n")


def tell(line: str, most: int | None = LINE_CHARS) -> None:
    """A line on stderr; whoever has closed it wants to hear nothing."""
    err = _err or sys.stderr
    if err is not None:
        text = printable(line) if most is None else one_line(line, most)
        with contextlib.suppress(OSError, ValueError):
            err.write(f"{text}\n")
            _arrives(err)


def flush() -> None:
    """Sees that what was said has arrived; raises as `say`."""
    _print("", at_once=True)


def _print(text: str, at_once: bool = False) -> None:
    out = _out or sys.stdout
    if out is None or getattr(out, "closed", False):  # before the command began
        return
    try:
        if text:  # a full device refuses even nothing
            out.write(text)
        if at_once:
            _arrives(out)
    except BrokenPipeError:
        raise
    except OSError as e:
        raise OutputError(f"cannot write to standard output: {e.strerror}") from e


def _arrives(stream: Any) -> None:
    """Flushes a stream; a program's own may be any object with a `write`, as for `print`."""
    if hasattr(stream, "flush"):
        stream.flush()


@contextmanager
def safe_streams(last: bool) -> Iterator[None]:
    """What a terminal's encoding lacks is spelt out, for whoever writes.

    Args:
        last: nothing follows but the process's end: streams are left so.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # or the first file would be stdout
        pass
    os.close(spare)
    streams: list[Any] = [
        stream
        for stream in (sys.stdout, sys.stderr)
        if hasattr(stream, "reconfigure") and not stream.closed
    ]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if last:
                _given_up(stream)
            elif not stream.closed:
                with contextlib.suppress(OSError):  # what could not be written is its program's
                    stream.reconfigure(errors=errors)


def _given_up(stream: Any) -> None:
    """What could not be written is lost: else Python complains again at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()


@contextmanager
def alone(debug: bool, last: bool) -> Iterator[None]:
    """Keeps stdout and stderr to the command itself: warnings, logs and what libraries of any
    language write there by themselves goes nowhere. `--debug` lets it through.

    Args:
        debug: let it through.
        last: nothing follows but the process's end: streams are left so.
    """
    global _out, _err
    if debug or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.stdout, sys.stderr, warnings.showwarning
    _out, _err = sys.stdout, sys.stderr
    sink = open(os.devnull, "w")  # noqa: SIM115
    native = None
    if _descriptor(_err) == 2:
        native = os.dup(2)
        encoding = getattr(_err, "encoding", None)
        _err = open(native, "w", 1, encoding, "backslashreplace", closefd=False)  # noqa: SIM115
        os.dup2(sink.fileno(), 2)
        if last:  # or a crash would be silent
            faulthandler.enable(_err, all_threads=False)
    sys.stdout = sys.stderr = sink
    warnings.showwarning = _warned
    try:
        yield
    finally:
        if not last:
            sys.stdout, sys.stderr, warnings.showwarning = before
            _out = _err = None
            if native is not None:
                os.dup2(native, 2)
                os.close(native)
            sink.close()


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # none, or one in memory
        return None


def _warned(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, GeoMagWarning):
        tell(f"geomag-edge: warning: {message}")


def terminal() -> bool:
    """Whether somebody sees progress on stderr."""
    try:
        return (_err or sys.stderr).isatty()
    except (AttributeError, ValueError):  # none, closed, or an object of a program's own
        return False


def bar_of(**settings: Any) -> Any:
    """A progress bar on stderr, removed at its end; `settings` are tqdm's."""
    from tqdm import tqdm

    return tqdm(leave=False, file=_err or sys.stderr, **settings)


@contextmanager
def steps(total: int, title: str) -> Iterator[Callable[[str], None]]:
    """A progress bar over named steps; plain lines where stderr is not a terminal."""
    if not terminal():
        yield lambda step: tell(f"{title}: {step}")
        return
    with bar_of(total=total, desc=title, unit="step") as bar:

        def advance(step: str) -> None:
            bar.set_postfix_str(one_line(step, NAME_CHARS), refresh=False)
            bar.update(1)

        yield advance


@contextmanager
def counted(total: int | None, title: str, unit: str) -> Iterator[Callable[[str], None]]:
    """A progress bar over many like things, each named as its work starts.

    Where stderr is not a terminal: a line now and then, so that a log stays short.
    """
    done, shown = 0, time.monotonic()
    of = "" if total is None else f" of {total}"

    def line(name: str) -> None:
        nonlocal done, shown
        if time.monotonic() - shown >= LOG_EVERY_S:
            tell(f"{title}: {done}{of} {unit}s done")
            shown = time.monotonic()
        done += 1

    if not terminal():
        yield line
        return
    with bar_of(total=total, desc=title, unit=unit) as bar:

        def advance(name: str) -> None:
            nonlocal done
            bar.set_postfix_str(one_line(name, NAME_CHARS), refresh=False)
            bar.update(min(done, 1))  # a name says that the one before is done
            done += 1

        yield advance


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turns a missing optional package into the line that says how to install it."""
    try:
        yield
    except ImportError as e:
        raise MissingExtraError(
            f"this needs the package {e.name!r}, which is not installed: "
            f'pip install "geomag-edge[{extra}]"'
        ) from e


def parity_table(report: dict[str, Any]) -> list[str]:
    """A verification report as two tables and a verdict, by lines."""
    graphs = [
        (
            d["graph"],
            d["output"],
            d["calls"],
            f"{d['max_abs']:.1e}",
            d["unit"],
            f"{d['relative']:.1e}",
            f"{d['cosine']:.7f}",
            "ok" if d["ok"] else "DRIFT",
        )
        for d in report["graphs"]
        if not d["output"].startswith("present.") or not d["ok"]
    ]
    caches = [d for d in report["graphs"] if d["output"].startswith("present.") and d["ok"]]
    if caches:
        worst = max(caches, key=lambda d: d["relative"])
        graphs.append(
            ("llm", f"present.* ({len(caches)})", worst["calls"], f"{worst['max_abs']:.1e}",
             "unit", f"{worst['relative']:.1e}", f"{worst['cosine']:.7f}", "ok")
        )  # fmt: skip
    chain = [
        (
            c["budget"],
            c["tokens"],
            "all" if c["first_token"] is None else f"to {c['first_token']}",
            f"{c['max_crop_px']:.2g}",
            c["masks"],
            "-" if c["mask_iou"] is None else f"{c['mask_iou']:.5f}",
            "ok" if c["ok"] else "DRIFT",
        )
        for c in report["chain"]
    ]
    verdict = (
        f"{report['engine']} {report['precision']}: within tolerance "
        f"({report['tolerance']['relative']:.0e} of each output's scale, mask IoU >= "
        f"{report['tolerance']['mask_iou']})"
        if report["ok"]
        else f"{report['engine']} {report['precision']}: PAST TOLERANCE. {report['first_drift']}"
    )
    if sets := report.get("instruction_sets"):
        verdict += f"; CPU with {' '.join(sets)}"
    return [
        *table(("graph", "output", "calls", "max error", "unit", "relative", "cosine", ""), graphs),
        "",
        *table(("chain at budget", "tokens", "equal", "crops px", "masks", "mask IoU", ""), chain),
        "",
        verdict,
    ]
