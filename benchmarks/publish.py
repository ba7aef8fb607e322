"""How every benchmark leaves its result: a JSON with all of it, and a page to read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from geomag_edge.disk.staging import write_whole


def results_of(folder: Path) -> Path:
    """Where results go unless it is said: in a checkout where they are committed, of an installed
    package into the folder that it is called from, since its own is no place for results.

    Args:
        folder: this module's.
    """
    checkout = (folder.parent / "pyproject.toml").is_file()
    return folder / "results" if checkout else Path("geomag_edge_results")


RESULTS = results_of(Path(__file__).resolve().parent)


def publish(report: dict[str, Any], page: str | None, folder: Path, name: str) -> None:
    """Writes NAME.json and, if there is a page, NAME.md, whole or not at all, prints the page on
    stderr and the report as the last line of stdout.

    Raises:
        OutputError: cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.json", json.dumps(report, indent=1) + "\n")
    if page is not None:
        write_whole(folder / f"{name}.md", page)
        print(page, file=sys.stderr)
    print(json.dumps(report))


def page_of(title: str, report: Mapping[str, Any], *parts: str) -> str:
    """A result as Markdown: a title, the report's `command`, and paragraphs and tables below."""
    return "\n\n".join([f"# {title}", f"`{report['command']}`", *parts]) + "\n"


def table_of(heads: str, rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown.

    Args:
        heads: of the columns, as "scene, px | views | mIoU".
        rows: their cells.
    """
    lines = [f"| {heads} |", "|---" * (heads.count("|") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def stage_table(stages: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds by form and stage as a table, a row a stage."""
    rows = (
        (stage, *(f"{found[stage]:.1f}" for found in stages.values()))
        for stage in next(iter(stages.values()))
    )
    return table_of(" | ".join(("stage, ms", *stages)), rows)


def interval(found: Mapping[str, float]) -> str:
    """A `timing.ratio` as a cell."""
    return f"{found['ratio']:.2f}x ({found['low']:.2f}-{found['high']:.2f})"
