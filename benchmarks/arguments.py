"""The arguments that benchmarks share, each worded once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.publish import RESULTS

REQUIRED = object()
"""In place of a default: the argument must be given."""

SHARED: dict[str, dict[str, Any]] = {
    "bundle": {"type": Path},
    "checkpoint": {"type": Path, "help": "the bundle's checkpoint, if it has moved"},
    "preset": {"help": "nano, base or half-b"},
    "name": {"help": "what the results are called"},
    "data": {},
    "scenes": {"type": Path, "help": "scenes are made and kept here"},
    "engine": {},
    "precision": {},
    "queries": {"type": int},
    "rounds": {"type": int},
    "threads": {"type": int},
    "results": {"type": Path},
}


def parser_of(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A script's parser: its docstring as help, `--results`, and what else of `SHARED` is named.

    Args:
        doc: the script's docstring.
        defaults: by argument, what holds where it is not given, or `REQUIRED`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in {**defaults, "results": RESULTS}.items():
        must = {"required": True} if default is REQUIRED else {"default": default}
        parser.add_argument(f"--{name}", **SHARED[name], **must)
    return parser
