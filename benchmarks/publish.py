"""How every benchmark leaves its result: a JSON with all of it, and a table to read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from geomag_edge.disk.staging import write_whole

RESULTS = Path(__file__).parent / "results"
"""Where results are committed."""


def publish(report: dict[str, Any], table: str, folder: Path, name: str) -> None:
    """Writes NAME.json and NAME.md, whole or not at all, prints the table on stderr and the report
    as the last line of stdout.

    Raises:
        OutputError: cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.json", json.dumps(report, indent=1) + "\n")
    write_whole(folder / f"{name}.md", table)
    print(table, file=sys.stderr)
    print(json.dumps(report))
