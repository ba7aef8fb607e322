"""One self-contained HTML page of a bench run: machine, table, plots; it fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from geomag_edge.benchmarks import pictures
from geomag_edge.benchmarks.machine import described
from geomag_edge.benchmarks.queries import STAGES

if TYPE_CHECKING:
    from geomag_edge.runtime.planning.planner import Plan

STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
    "code{background:#f3f3f3;padding:0 .3rem}"
)


def page(report: Mapping[str, Any], plans: Sequence[Plan] = ()) -> str:
    """The page's HTML.

    Args:
        report: of `geomag_edge.benchmarks.queries.report`.
        plans: a frontier to show, latency against accuracy.

    Raises:
        MissingExtraError: no matplotlib.
    """
    cases = report["cases"]
    names = [_name(c) for c in cases]
    parts = [
        f"<h1>geomag-edge bench: {escape(report['bundle'])}</h1>",
        f"<p><code>{escape(report['command'])}</code></p>",
        f"<p>{escape(described(report['machine']))}. Prompt &ldquo;{escape(report['prompt'])}"
        f"&rdquo;, answer begun with {escape(report['answer_prefix'] or 'nothing')}, at most "
        f"{report['new_tokens']} tokens; {report['rounds']} rounds, interleaved.</p>",
        _table(cases, names),
        "<h2>Where the time goes</h2>",
        pictures.svg(pictures.stage_bars(cases, names)),
        "<h2>Budget against latency</h2>",
        pictures.svg(pictures.budget_lines(cases)),
    ]
    if plans:
        parts += [
            "<h2>Latency against accuracy</h2>",
            "<p>Predicted from this machine's measurement; accuracy as measured and kept in the "
            "bundle.</p>",
            pictures.svg(pictures.frontier(plans)),
        ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>geomag-edge bench: {escape(report['bundle'])}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _name(case: Mapping[str, Any]) -> str:
    budget = case["budget"] or "as routed"
    return f"{case['engine']} {case['precision']}, {budget}, {case['image_px']} px"


def _table(cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    heads = ("case", "tokens", "total p50", "p90", "p99", "first token", "tokens/s", "peak MB",
             *STAGES)  # fmt: skip
    rows = []
    for case, name in zip(cases, names, strict=True):
        ms = case["stages_ms"]
        cells = [
            name, str(case["ran_budget"]["visual_tokens"]),
            *(f"{ms['total'][p]:.1f}" for p in ("p50", "p90", "p99")),
            f"{ms['first_token']['p50']:.1f}",
            "-" if case["tokens_per_s"] is None else f"{case['tokens_per_s']:.1f}",
            "-" if case["query_peak_mb"] is None else f"{case['query_peak_mb']:.0f}",
            *(f"{ms[s]['p50']:.1f}" for s in STAGES),
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>\n<p>Milliseconds.</p>"
