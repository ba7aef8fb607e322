"""One graph on recorded inputs: how far its outputs are from those that were recorded.

Each graph is replayed on the reference's own inputs, so an error is the graph's alone and does
not pile up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomag_edge.graphs import Tolerance
from geomag_edge.runtime.engines.engine import Session
from geomag_edge.runtime.engines.reference import Call

UNITS = {"boxes": "px", "crops": "std", "views": "std", "granularity": "logit", "logits": "logit",
         "mask_logits": "logit"}  # fmt: skip


@dataclass(frozen=True)
class Drift:
    """How far one output of one graph is from the reference, over all its calls.

    `max_abs` is in the output's own `unit`; `relative` divides it by the reference's largest
    magnitude; `cosine` is the smallest over the calls.
    """

    graph: str
    output: str
    unit: str
    calls: int
    max_abs: float
    relative: float
    cosine: float
    ok: bool


def replay(session: Session, calls: list[Call], tolerance: Tolerance) -> list[Drift]:
    """Runs one graph on recorded inputs and compares each output."""
    errors: dict[str, list[tuple[float, float, float]]] = {}
    for call in calls:
        outputs = session.run(call.inputs)
        for name, expected in call.outputs.items():
            errors.setdefault(name, []).append(difference(expected, outputs[name]))
    drifts = []
    for name, found in errors.items():
        max_abs, relative, cosine = (np.array(column) for column in zip(*found, strict=True))
        drifts.append(
            Drift(
                graph=calls[0].graph,
                output=name,
                unit=UNITS.get(name, "unit"),
                calls=len(found),
                max_abs=float(max_abs.max()),
                relative=float(relative.max()),
                cosine=float(cosine.min()),
                ok=bool(relative.max() <= tolerance.relative),
            )
        )
    return drifts


def difference(expected: NDArray, got: NDArray) -> tuple[float, float, float]:
    """Max abs error, that over the expected scale, and cosine. NaN or another shape is infinite."""
    if expected.shape != got.shape:
        return float("inf"), float("inf"), 0.0
    if expected.size == 0:
        return 0.0, 0.0, 1.0
    a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if not np.isfinite(b).all():
        return float("inf"), float("inf"), 0.0
    max_abs = float(np.abs(a - b).max())
    scale = float(np.abs(a).max())
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b / norm) if norm else float(not a.any() and not b.any())
    return max_abs, max_abs / scale if scale else max_abs, cosine
