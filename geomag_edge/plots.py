"""The one way to matplotlib, which is an extra: figures without a display and without pyplot."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
