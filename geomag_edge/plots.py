"""The one way to matplotlib, which is an extra: figures without a display and without pyplot."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from geomag_edge.disk.staging import write_whole
from geomag_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches.

    Raises:
        MissingExtraError: no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError(
            'the picture needs matplotlib: pip install "geomag-edge[plot]"'
        ) from e
    return Figure(figsize=(width, height), layout="constrained")


def write_png(drawn: Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = BytesIO()
    drawn.savefig(buffer, dpi=130, format="png")
    write_whole(path, buffer.getvalue())
