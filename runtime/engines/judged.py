"""Where a precision was judged, and whether what runs here is the arithmetic that was judged."""

from __future__ import annotations

from geomag_edge.machine import instruction_sets
from geomag_edge.manifest import Manifest
from geomag_edge.runtime.engines.engine import BF16, Engine


def judged_elsewhere(manifest: Manifest, engine: Engine) -> str | None:
    """One sentence where integers were judged in another arithmetic than this machine's, or None.

    Kernels for int8 are chosen by the CPU's instruction sets. Where both the judge's and this
    machine's were tried and found exact they are the same arithmetic; elsewhere the sets must be.

    Args:
        manifest: holds the gate's verdicts.
        engine: an open one that runs on the CPU, or `auto` with those that it opened; others are
            passed over.
    """
    parts = getattr(engine, "opened", None)
    if parts is not None:
        return next(filter(None, (judged_elsewhere(manifest, part) for part in parts)), None)
    precision = engine.precision
    verdicts = manifest.accuracy.get(precision.removesuffix(f"+{BF16}"), {}).get("gate") or {}
    exact = getattr(engine, "exact_integers", None) if verdicts and "int" in precision else None
    if exact is None:
        return None
    verdict = verdicts.get(engine.name) or next(iter(verdicts.values()))
    there, here = verdict.get("instruction_sets"), instruction_sets()
    if there is None:
        return (
            f"{precision} was judged by a version that named no CPU and whose integers were not "
            "exact on every one: `geomag-edge quantize` judges it again"
        )
    if there == here or (exact and verdict.get("exact_integers")):
        return None
    return (
        f"{precision} was judged on a CPU with {' '.join(there) or 'unknown instruction sets'}, "
        f"this one has {' '.join(here) or 'unknown ones'} and computes int8 otherwise: "
        "`geomag-edge verify` says how far it drifts"
    )
