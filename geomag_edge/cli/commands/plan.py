"""What a latency buys: the token budget it allows, and what the answers are then worth."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from geomag_edge.budgets import LEVELS
from geomag_edge.cli.arguments import milliseconds, path, positive
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.commands.run import add_engine_arguments, open_pipeline
from geomag_edge.cli.console import counted, print_json, say, steps
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.printing import table

if TYPE_CHECKING:
    from geomag_edge.runtime.planning.planner import Plan, Planner

IMAGE_PX = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plan`."""
    add_bundle_argument(parser)
    parser.add_argument(
        "--latency-ms",
        type=milliseconds,
        metavar="L",
        help="from an image in memory and a prompt to the answer",
    )
    parser.add_argument(
        "--level", choices=LEVELS, action="append", help="only this task level; may be repeated"
    )
    parser.add_argument(
        "--image-px",
        type=positive,
        default=IMAGE_PX,
        metavar="PX",
        help=f"longer side of the images to come (default {IMAGE_PX}): decides how often PSC looks",
    )
    parser.add_argument(
        "--data",
        metavar="SET",
        help="first measure what every budget's answers are worth, on scenes:SEED:COUNT[:SIZE] or "
        "a folder, and keep it in the bundle",
    )
    parser.add_argument(
        "--device",
        metavar="D",
        help="plan for this device's roofline in place of this machine (see `targets`)",
    )
    parser.add_argument("--plot", type=path, metavar="PNG", help="the frontier as a picture")
    add_engine_arguments(parser)


def execute(args: argparse.Namespace) -> None:
    """Measures, plans, prints."""
    from geomag_edge.runtime.planning.planner import Planner
    from geomag_edge.views import useful_levels

    if args.latency_ms is None and not args.data:
        raise InputError("nothing to plan: give --latency-ms, or --data to measure accuracy")
    bundle = open_bundle(args)
    if args.data:
        bundle = _measure(args, bundle)
    if args.latency_ms is None:
        if args.json:
            print_json({"bundle": str(args.bundle), "data": args.data, "measured": True})
        else:
            say(f"what each budget is worth on {args.data} is now part of {args.bundle}")
        return
    if args.device:
        from geomag_edge.runtime.planning.roofline import roofline_model

        planner = Planner.of(bundle, roofline_model(bundle, args.device, args.precision))
    else:
        from geomag_edge.runtime.chain.probe import PARTS

        with (
            open_pipeline(args, bundle) as pipe,
            steps(PARTS, "measuring this machine") as progress,
        ):
            planner = pipe.planner(progress)
    view, psc = bundle.manifest.view, bundle.manifest.psc
    looks = useful_levels(args.image_px, args.image_px, view.view_px, view.grid, psc)
    plans = [planner.plan(level, args.latency_ms, looks) for level in args.level or LEVELS]
    if args.plot:
        from geomag_edge.benchmarks.pictures import frontier_picture

        frontier_picture(plans, args.plot)
    if args.json:
        print_json(
            {
                "bundle": str(args.bundle),
                "latency_ms": args.latency_ms,
                "model": planner.model.to_json(),
                "accuracy": planner.frontier and planner.frontier.data,
                "plans": [p.to_json() for p in plans],
            }
        )
    else:
        say(*plan_text(planner, plans))


def _measure(args: argparse.Namespace, bundle: Bundle) -> Bundle:
    from geomag_edge.calibration import open_dataset
    from geomag_edge.calibration.evaluation.budget_accuracy import keep, measure

    with counted(None, "check", "picture") as progress:
        dataset = open_dataset(args.data, None, progress)
    with open_pipeline(args, bundle) as pipe, counted(None, "budgets", "picture") as progress:
        frontier = measure(pipe, dataset, progress)
    keep(bundle, frontier)
    return Bundle.open(args.bundle)


def plan_text(planner: Planner, plans: list[Plan]) -> list[str]:
    """Every level's frontier as a table, the choice marked."""
    lines = [f"latency   {planner.model.source}; 95th percentile {planner.model.spread:.2f}x"]
    if planner.model.lost:
        lines.append(f"note      {planner.model.lost}")
    if planner.frontier is None:
        lines.append("accuracy  not measured: more tokens are taken to be better (see --data)")
    else:
        lines.append(f"accuracy  {planner.frontier.data} on {planner.frontier.engine}")
    for plan in plans:
        lines += ["", _head(plan), "", *_options(plan)]
    return lines


def _head(plan: Plan) -> str:
    chosen = plan.chosen
    head = f"{plan.level} within {plan.latency_ms:g} ms: {chosen.budget}"
    if not plan.fits:
        return f"{head} is the cheapest, and predicted at {chosen.safe_ms:.0f} ms: it does not fit"
    if plan.loss is not None:
        head += f", {plan.metric} {chosen.expected:.3f} expected, {plan.loss:.3f} below the best"
    return head


def _options(plan: Plan) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for o in plan.options:
        worth = "-" if o.expected is None else f"{o.expected:.3f}"
        mark = "<- chosen" if o is plan.chosen else ""
        rows.append(
            (str(o.budget), o.budget.visual_tokens, f"{o.ms:.1f}", f"{o.safe_ms:.1f}", worth, mark)
        )
    return table(("budget", "tokens", "ms", "p95 ms", plan.metric, ""), rows)
