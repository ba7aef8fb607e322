"""The command line: `geomag-edge COMMAND`. One file a command; each parses, calls, prints."""

from geomag_edge.cli.main import main

__all__ = ["main"]
