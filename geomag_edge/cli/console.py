"""What commands print: tables, JSON, progress. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from geomag_edge.errors import MissingExtraError

LOG_EVERY_S = 10.0


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(data, indent=2, allow_nan=False, default=str))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain table; numbers to the right, text to the left."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(x) for x in column) for column in zip(header, *cells, strict=True)]
    numeric = [
        all(isinstance(row[i], int | float) or _numeric(row[i]) for row in rows)
        for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *(line(r) for r in cells)])


def _numeric(cell: Any) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


@contextmanager
def steps(total: int, title: str) -> Iterator[Callable[[str], None]]:
    """A progress bar over named steps; plain lines where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda step: print(f"{title}: {step}", file=sys.stderr, flush=True)
        return
    with tqdm(total=total, desc=title, unit="step", leave=False, file=sys.stderr) as bar:

        def advance(step: str) -> None:
            bar.set_postfix_str(step, refresh=False)
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
            print(f"{title}: {done}{of} {unit}s done", file=sys.stderr, flush=True)
            shown = time.monotonic()
        done += 1

    if not sys.stderr.isatty():
        yield line
        return
    with tqdm(total=total, desc=title, unit=unit, leave=False, file=sys.stderr) as bar:

        def advance(name: str) -> None:
            nonlocal done
            bar.set_postfix_str(name, refresh=False)
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


def parity_table(report: dict[str, Any]) -> str:
    """A verification report as two tables and a verdict."""
    graphs = [
        (d["graph"], d["output"], d["calls"], f"{d['max_abs']:.1e}", d["unit"],
         f"{d['relative']:.1e}", f"{d['cosine']:.7f}", "ok" if d["ok"] else "DRIFT")
        for d in report["graphs"]
        if not d["output"].startswith("present.") or not d["ok"]
    ]  # fmt: skip
    caches = [d for d in report["graphs"] if d["output"].startswith("present.") and d["ok"]]
    if caches:
        worst = max(caches, key=lambda d: d["relative"])
        graphs.append(
            ("llm", f"present.* ({len(caches)})", worst["calls"], f"{worst['max_abs']:.1e}",
             "unit", f"{worst['relative']:.1e}", f"{worst['cosine']:.7f}", "ok")
        )  # fmt: skip
    chain = [
        (c["budget"], c["tokens"], "all" if c["first_token"] is None else f"to {c['first_token']}",
         f"{c['max_crop_px']:.2g}", c["masks"],
         "-" if c["mask_iou"] is None else f"{c['mask_iou']:.5f}", "ok" if c["ok"] else "DRIFT")
        for c in report["chain"]
    ]  # fmt: skip
    verdict = (
        f"{report['engine']} {report['precision']}: within tolerance "
        f"({report['tolerance']['relative']:.0e} of each output's scale, mask IoU >= "
        f"{report['tolerance']['mask_iou']})"
        if report["ok"]
        else f"{report['engine']} {report['precision']}: PAST TOLERANCE. {report['first_drift']}"
    )
    if sets := report.get("instruction_sets"):
        verdict += f"; CPU with {' '.join(sets)}"
    return "\n".join(
        [
            table(
                ("graph", "output", "calls", "max error", "unit", "relative", "cosine", ""), graphs
            ),
            "",
            table(
                ("chain at budget", "tokens", "equal", "crops px", "masks", "mask IoU", ""), chain
            ),
            "",
            verdict,
        ]
    )
