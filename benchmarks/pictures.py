"""Plots of what was measured. Needs matplotlib (the `plot` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.benchmarks.queries import STAGES
from geomag_edge.plots import figure, write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geomag_edge.runtime.planning.planner import Plan


def svg(drawn: Figure) -> str:
    """A figure as an SVG element, to be put into a page."""
    out = StringIO()
    drawn.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]


def stage_bars(cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Medians of each stage, stacked, one bar a case."""
    drawn = figure(10, 1.2 + 0.34 * len(cases))
    axes = drawn.subplots()
    left = [0.0] * len(cases)
    colours = _colours(len(STAGES))
    for stage, colour in zip(STAGES, colours, strict=True):
        widths = [max(0.0, c["stages_ms"][stage]["p50"]) for c in cases]
        axes.barh(range(len(cases)), widths, left=left, label=stage, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(cases)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms, medians of each stage")
    axes.legend(fontsize=7, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn


def budget_lines(cases: Sequence[Mapping[str, Any]]) -> Figure:
    """Latency over visual tokens, a line for each engine, precision and image size."""
    drawn = figure(7, 4)
    axes = drawn.subplots()
    groups: dict[str, list[tuple[int, float, float]]] = {}
    for case in cases:
        name = f"{case['engine']} {case['precision']}, {case['image_px']} px"
        total = case["stages_ms"]["total"]
        tokens = case["ran_budget"]["visual_tokens"]
        groups.setdefault(name, []).append((tokens, total["p50"], total["p90"]))
    for name, points in groups.items():
        points.sort()
        tokens = [p[0] for p in points]
        (line,) = axes.plot(tokens, [p[1] for p in points], "o-", label=name)
        axes.fill_between(
            tokens, [p[1] for p in points], [p[2] for p in points], alpha=0.15, lw=0,
            color=line.get_color(),
        )  # fmt: skip
    axes.set_xlabel("visual tokens")
    axes.set_ylabel("ms a query, median to 90th percentile")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    return drawn


def frontier(plans: Sequence[Plan]) -> Figure:
    """What the answers are worth over what they take, one panel a level, the choice marked."""
    drawn = figure(4.2 * len(plans), 3.6)
    for axes, plan in zip(drawn.subplots(1, len(plans), squeeze=False)[0], plans, strict=True):
        known = [o for o in plan.options if o.expected is not None]
        shown = known or plan.options
        worth = [_worth(o) for o in shown]
        axes.scatter([o.ms for o in shown], worth, s=16)
        for option, y in zip(shown, worth, strict=True):
            axes.annotate(str(option.budget), (option.ms, y), fontsize=6, xytext=(2, 2),
                          textcoords="offset points")  # fmt: skip
        axes.scatter([plan.chosen.ms], [_worth(plan.chosen)], s=70, facecolors="none", color="red")
        axes.axvline(plan.latency_ms, c="grey", ls=":", lw=1)
        axes.set_title(f"{plan.level} within {plan.latency_ms:g} ms: {plan.chosen.budget}")
        axes.set_xlabel("predicted ms a query")
        axes.set_ylabel(plan.metric if known else "visual tokens (accuracy not measured)")
        axes.set_xlim(left=0)
    return drawn


def frontier_picture(plans: Sequence[Plan], path: Path) -> None:
    """Writes `frontier` as a PNG."""
    write_png(frontier(plans), path)


def _worth(option: Any) -> float:
    return option.budget.visual_tokens if option.expected is None else option.expected


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab20"](i) for i in range(count)]
