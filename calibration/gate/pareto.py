"""The search's curve as a picture: time gained against what it costs."""

from __future__ import annotations

from pathlib import Path

from geomag_edge.plots import figure, write_png

from .sensitivity import Search


def draw_pareto(found: Search, path: Path) -> None:
    """Writes a PNG: agreement and mIoU over the milliseconds gained, and each layer's own place.

    Raises:
        MissingExtraError: no matplotlib.
    """
    drawn = figure(10, 4.2)
    left, right = drawn.subplots(1, 2)
    gains = [point.gain_ms for point in found.curve]
    left.plot(gains, [100 * p.agreement for p in found.curve], "o-", label="answers that match, %")
    if all(p.miou is not None for p in found.curve):
        left.plot(gains, [100 * (p.miou or 0) for p in found.curve], "s-", label="mIoU, points")
    left.axhline(100 * found.verdict.gate.min_agreement, ls=":", c="grey", lw=1, label="gate")
    chosen = len(found.layers) - len(found.wide)
    for point in found.curve:
        if point.layers == chosen:
            left.axvline(point.gain_ms, c="tab:green", lw=1, label=f"chosen: {chosen} layers")
            break
    left.set_xlabel(f"ms gained a question on {found.engine} (layers timed alone)")
    left.legend(fontsize=8)
    wide = set(map(tuple, found.wide))
    for is_wide, colour, label in ((False, "tab:green", "narrow"), (True, "tab:red", "stays wide")):
        some = [x for x in found.layers if ((x.graph, x.node) in wide) == is_wide]
        right.scatter([x.gain_ms for x in some], [x.error for x in some], s=14, c=colour,
                      label=f"{label} ({len(some)})")  # fmt: skip
    for layer in sorted(found.layers, key=lambda x: x.error)[-5:]:
        right.annotate(f"{layer.graph}/{layer.node}", (layer.gain_ms, layer.error), fontsize=6)
    if any(x.error > 0 for x in found.layers):
        right.set_yscale("log")
    right.axvline(0, c="grey", lw=0.5)
    right.set_xlabel("ms gained by this layer")
    right.set_ylabel("error of its graph, this layer alone quantised")
    right.legend(fontsize=8)
    write_png(drawn, path)
