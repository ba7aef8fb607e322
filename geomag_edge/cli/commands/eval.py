"""Measure a bundle's answers on a set: masks, boxes, words, router, visual tokens."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from geomag_edge.cli.arguments import path, positive
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.commands.run import add_engine_arguments, add_nodata_argument, open_pipeline
from geomag_edge.cli.console import counted, print_json, say
from geomag_edge.printing import table

if TYPE_CHECKING:
    from geomag_edge.calibration import Comparison, Dataset, Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `eval`."""
    add_bundle_argument(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="SET",
        help="scenes:SEED:COUNT[:SIZE] renders scenes that no training has seen; or a folder with "
        "images/, masks/ and questions.jsonl (docs/DATA.md)",
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--budget",
        metavar="B",
        help="the same tokens for every question: a level, G+KxC (12+4x8), Nt (200t), or a grid "
        "alone (16), which turns PSC off; default: what the model's router asks for",
    )
    add_nodata_argument(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N questions")
    parser.add_argument(
        "--compare",
        type=path,
        metavar="OTHER",
        help="a bundle, asked with the same settings, or the report of an earlier run; prints "
        "this minus OTHER",
    )
    parser.add_argument(
        "-o", "--output", type=path, metavar="REPORT", help="write the JSON report here"
    )


def execute(args: argparse.Namespace) -> None:
    """Evaluates, compares, prints, writes."""
    from geomag_edge.calibration import compare, open_dataset, read_report, write_report
    from geomag_edge.calibration.evaluation.report import check_place
    from geomag_edge.manifest import Bundle

    if args.output:
        check_place(args.output)
    bundle, other = open_bundle(args), None
    if args.compare:
        other = (
            Bundle.open(args.compare, args.trust)
            if args.compare.is_dir()
            else read_report(args.compare)
        )
    with counted(None, "check", "picture") as progress:
        dataset = open_dataset(args.data, args.limit, progress)
    report = _ask(bundle, dataset, args, "eval")
    if isinstance(other, Bundle):
        other = _ask(other, dataset, args, "eval of the other")
    comparison = compare(report, other) if other is not None else None
    data = report.to_json()
    if comparison:
        data["comparison"] = comparison.to_json()
    if args.output:
        write_report(args.output, data)
    if args.json:
        print_json(data)
        return
    say(*report_text(report))
    if comparison:
        say("", *comparison_text(comparison))
    if args.output:
        say("", f"report written to {args.output}")


def _ask(bundle: Any, dataset: Dataset, args: argparse.Namespace, title: str) -> Report:
    from geomag_edge.calibration import evaluate

    with (
        open_pipeline(args, bundle) as pipe,
        counted(len(dataset), title, "picture") as progress,
    ):
        return evaluate(pipe, dataset, args.budget, args.max_new_tokens, progress, args.nodata)


def report_text(report: Report) -> list[str]:
    """A report as tables: every metric with its interval, then every group."""
    from geomag_edge.calibration.evaluation.records import ALL, group_order

    pictures = len({r.picture for r in report.records})
    providers = ", ".join(sorted(set(report.providers.values())))
    lines = [
        f"set       {report.dataset}: {pictures} pictures, {len(report.records)} questions",
        f"bundle    {report.bundle} on {report.engine} {report.precision} ({providers})",
        f"budget    {report.budget or 'as routed'}",
    ]
    if report.untrained:
        lines.append(f"UNTRAINED {', '.join(report.untrained)}: these numbers mean nothing yet")
    every = [e for e in report.estimates if e.group == ALL]
    rows = [
        (e.metric, _number(e.metric, e.value), _interval(e.metric, e.low, e.high), e.questions)
        for e in every
    ]
    lines += ["", *table(("metric", "value", "95 % interval", "questions"), rows), ""]
    metrics = [e.metric for e in every]
    cells = {(e.metric, e.group): _number(e.metric, e.value) for e in report.estimates}
    counts: dict[str, int] = {}
    for e in report.estimates:
        counts[e.group] = max(counts.get(e.group, 0), e.questions)
    groups = sorted((g for g in counts if g != ALL), key=group_order)
    grid = [(g, counts[g], *(cells.get((m, g), "-") for m in metrics)) for g in groups]
    lines += [*table(("group", "questions", *metrics), grid), ""]
    times = ", ".join(f"{stage} {ms:.1f}" for stage, ms in report.latency_ms.items())
    lines.append(f"median ms  {times} (views shared by a picture's questions)")
    return lines


def comparison_text(comparison: Comparison) -> list[str]:
    """A comparison as a table of what differs, whole set and sizes."""
    from geomag_edge.calibration.evaluation.records import ALL

    rows = [
        (
            d.metric if d.group == ALL else f"  {d.group}",
            _number(d.metric, d.value),
            _number(d.metric, d.other),
            _number(d.metric, d.difference, "+"),
            _interval(d.metric, d.low, d.high, "+"),
            d.questions,
        )
        for d in comparison.differences
        if d.group == ALL or (d.group.startswith("size") and d.metric in ("mIoU", "box IoU@0.5"))
    ]
    head = ("metric", "this", "other", "difference", "95 % interval", "questions")
    return [
        f"this      {comparison.report}",
        f"other     {comparison.other}",
        f"answers   {comparison.identical:.1%} of {comparison.questions} identical",
        "",
        *table(head, rows),
    ]


def _number(metric: str, value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return format(value, f"{sign}.{1 if metric == 'visual tokens' else 3}f")


def _interval(metric: str, low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return "-"
    return f"{_number(metric, low, sign)} .. {_number(metric, high, sign)}"
