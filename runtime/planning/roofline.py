"""A `LatencyModel` for a device that is not at hand: the least that its peaks allow.

No real engine reaches the roofline; `SLOWER` is what plans allow for that. It is a guess, and the
model's source says so; a measurement on the device (`geomag-edge bench --quick`) takes its place.
"""

from __future__ import annotations

from geomag_edge.budgets import TokenBudget
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.engine import default_precision
from geomag_edge.runtime.planning.fit import graph_ms
from geomag_edge.runtime.planning.frontier import candidates
from geomag_edge.runtime.planning.latency import LatencyModel, fitted
from geomag_edge.targets import load_catalog

SLOWER = 2.0
"""How much slower than its roofline a device is taken to be."""

TEXT_TOKENS = 24


def roofline_model(bundle: Bundle, device_name: str, precision: str | None = None) -> LatencyModel:
    """Predicts each stage from the graphs' arithmetic and traffic at a device's peaks.

    Args:
        bundle: whose graphs.
        device_name: one of `geomag-edge targets`.
        precision: which set of graphs; None for fp32 or the bundle's only one.

    Raises:
        BundleError, InputError, MissingExtraError.
    """
    precision = precision or default_precision(bundle)
    device = load_catalog().device(device_name)
    manifest = bundle.manifest
    every: list[TokenBudget] = [b for bs in candidates(manifest.budgets).values() for b in bs]
    most = max(1, max(b.crops for b in every))
    views = sorted({1, most})
    grids = sorted({1, manifest.view.grid})
    longest = max(b.visual_tokens for b in every) + TEXT_TOKENS
    lengths = sorted({longest // 4, longest // 2, longest})

    def ms(graph: str, **sizes: int) -> float:
        return graph_ms(bundle, graph, precision, sizes, device)

    prompt_ids = manifest.prompt.psc_pad_to or 16
    return LatencyModel(
        crop=(0.0,),  # too little beside the encoder to matter
        encode=fitted(views, [ms("encoder", n=n) for n in views], 1),
        select=(ms("psc_select", L=prompt_ids),),
        project=fitted([g * g for g in grids], [ms("projector", n=1, q=g * g) for g in grids], 1),
        prefill=fitted(
            lengths, [ms("llm", **{"B": 1, "T": t, "N": 0, "N+T": t}) for t in lengths], 2
        ),
        step=fitted(
            lengths, [ms("llm", **{"B": 1, "T": 1, "N": t, "N+T": t + 1}) for t in lengths], 1
        ),
        mask=fitted([1, 1 + most], [ms("mask_head", n=n, m=1) for n in (1, 1 + most)], 1),
        spread=SLOWER,
        source=f"the roofline of {device.label}, not measured: {SLOWER:g}x it is allowed for",
    )
