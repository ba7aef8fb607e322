"""Add a narrower precision to a bundle, if it still answers as float32 does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from geomag_edge.cli.arguments import path, points, share
from geomag_edge.cli.bundle import add_bundle_argument, open_bundle
from geomag_edge.cli.commands.calibrate import METHODS
from geomag_edge.cli.commands.run import add_threads_argument
from geomag_edge.cli.console import needs_extra, print_json, say, steps
from geomag_edge.errors import InputError
from geomag_edge.graphs import TOLERANCES
from geomag_edge.printing import table

if TYPE_CHECKING:
    from geomag_edge.calibration.gate.blame import Blame
    from geomag_edge.calibration.gate.gate import Verdict
    from geomag_edge.calibration.gate.sensitivity import Search
    from geomag_edge.calibration.quantize import Quantized

RECIPES = tuple(p for p in TOLERANCES if p != "fp32" and "bf16" not in p)
BLAMED = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `quantize`."""
    add_bundle_argument(parser, help="with fp32 graphs")
    parser.add_argument(
        "--recipe",
        required=True,
        metavar="R",
        choices=RECIPES,
        help="fp16: everything that half can hold; int8: linear layers, weights and activations; "
        "int4-llm: the language model's weights; int8+int4-llm: both; fp8: linear layers, for "
        "TensorRT on sm 8.9 and later. All but fp16 need `geomag-edge calibrate` before",
    )
    _add_gate_arguments(parser)
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="the calibrator (default: what `calibrate` chose)",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="GRAPH/NODE",
        help="a node that stays wide (int4: gets 8 bits); * and ? match; may be given again",
    )
    parser.add_argument(
        "--relax",
        action="store_true",
        help="where the gate refuses, give back the noisiest layers (int4: to 8 bits) until it "
        "passes; the report names them",
    )
    parser.add_argument(
        "--search",
        metavar="E",
        choices=("ort-cpu", "openvino"),
        help="measure every layer's loss and its time on this engine, and quantise those alone "
        "that gain time and that the gate lets pass",
    )
    parser.add_argument(
        "--plot", type=path, metavar="PNG", help="with --search: time gained against loss"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="SLIM",
        help="also write a bundle with this precision alone, to ship to a device",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing SLIM")
    add_threads_argument(parser)


def _add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """What the answers are asked of and on, and what may be lost."""
    parser.add_argument(
        "--data",
        metavar="SET",
        help="questions to judge by, as in `eval`: scenes:SEED:COUNT[:SIZE] or a folder; needed "
        "unless the model was never trained",
    )
    parser.add_argument(
        "--engine",
        action="append",
        metavar="E",
        help="judge on this engine; may be given again (default: ort-cpu)",
    )
    parser.add_argument(
        "--max-miou-drop",
        type=points,
        default=0.5,
        metavar="POINTS",
        help="of 100, of masks' and of boxes' mIoU, against fp32 (default: 0.5)",
    )
    parser.add_argument(
        "--min-agreement",
        type=share,
        default=0.99,
        metavar="SHARE",
        help="of answers with fp32's words and found boxes (default: 0.99)",
    )


def execute(args: argparse.Namespace) -> int:
    """Writes, judges, keeps or refuses; 1 if the gate refuses."""
    with needs_extra("export"):
        from geomag_edge.calibration import open_dataset
        from geomag_edge.calibration.gate.gate import Gate
        from geomag_edge.calibration.quantization.slim import check_slim, write_slim
        from geomag_edge.calibration.quantize import STEPS, quantize
    from geomag_edge.manifest import Bundle

    if args.plot and not args.search:
        raise InputError("--plot draws what a search found: give --search too")
    gate = Gate(args.max_miou_drop, args.min_agreement)
    bundle = open_bundle(args)
    data = open_dataset(args.data) if args.data else None
    engines = tuple(dict.fromkeys(args.engine or ["ort-cpu"]))
    if args.output:
        check_slim(bundle, args.output, args.force)
    with steps(STEPS + 2 * len(engines), "quantize") as progress:
        result = quantize(
            bundle, args.recipe, data, gate, engines, args.method, args.keep, args.threads,
            args.search, args.relax, progress,
        )  # fmt: skip
    if args.plot and result.search:
        from geomag_edge.calibration.gate.pareto import draw_pareto

        draw_pareto(result.search, args.plot)
    if result.ok and args.output:
        write_slim(Bundle.open(args.bundle), args.recipe, args.output, args.force)
    if args.json:
        print_json(result.to_json())
    else:
        say(*text(result, args.bundle, args.output))
    return 0 if result.ok else 1


def text(result: Quantized, bundle: Path, slim: Path | None) -> list[str]:
    """The outcome as tables and a verdict, by lines."""
    lines = [f"{result.precision} of {bundle}", ""]
    rows = [
        (engine, d.graph, d.output, f"{d.relative:.1e}", f"{d.cosine:.6f}")
        for engine, parity in result.parity.items()
        for d in parity.graphs
        if not d.output.startswith("present.")
    ]
    lines += [*table(("engine", "graph", "output", "relative error", "cosine"), rows), ""]
    narrow = ", ".join(f"{graph} {len(nodes)}" for graph, nodes in result.quantized.items())
    lines.append(f"narrow layers  {narrow or 'every graph'}")
    if result.bits:
        four = sum(bits == 4 for bits in result.bits.values())
        wide = [name for name, bits in result.bits.items() if bits == 8]
        lines.append(f"4 bits         llm {four} of {len(result.bits)}; 8 bits: {', '.join(wide)}")
    if result.given_back:
        given = ", ".join(result.given_back)
        lines.append(f"given back     {len(result.given_back)} layers, to pass: {given}")
    share = result.bytes / result.source_bytes
    lines.append(
        f"size           {result.bytes / 1e6:.1f} MB, {share:.2f} of fp32's (what one runtime "
        f"alone reads: {result.special_bytes / 1e6:.1f} MB more)"
    )
    lines += [_judged(engine, v) for engine, v in result.verdicts.items()]
    lines += [f"note           {note}" for note in result.notes]
    if result.search:
        lines += ["", "layers by loss:", *layer_table(result.search), ""]
        lines.append(f"{len(result.search.wide)} of {len(result.search.layers)} layers stay wide")
    if result.blamed:
        lines += ["", "layers whose activations cost most:", *blame_table(result.blamed)]
    lines.append("")
    if result.ok:
        lines.append(f"kept: --precision {result.precision}")
        if slim:
            lines.append(f"written alone to {slim}")
    else:
        reasons = {r for v in result.verdicts.values() for r in v.reasons}
        lines.append(f"REFUSED, the bundle is unchanged: {'; '.join(sorted(reasons))}")
        if result.blamed:
            worst = result.blamed[0]
            lines.append(f"try --keep '{worst.graph}/{worst.node}'")
    return lines


def _judged(engine: str, v: Verdict) -> str:
    """What the gate measured on an engine, in a line."""
    parts = []
    for name, d in (("mIoU", v.masks), ("box mIoU", v.boxes)):
        if d is None:
            continue
        lost = f"{name} {d.value:.3f}, fp32 {d.reference:.3f}: {-d.points:+.2f} points"
        if d.low is not None and d.high is not None:
            lost += f" ({-d.high:+.2f} .. {-d.low:+.2f})"
        parts.append(lost)
    parts.append(
        f"{round(v.agreement * v.questions)} of {v.questions} answers have its words "
        f"({v.agreement:.2%}), {v.identical:.1%} are identical"
    )
    return f"gate           {engine}: {'; '.join(parts)}"


def layer_table(found: Search) -> list[str]:
    """The layers that cost most, and whether they stay wide."""
    wide = set(found.wide)
    rows = [
        (
            x.graph,
            x.node,
            f"{x.error:.1e}",
            f"{x.miou_drop:+.2f}",
            f"{x.changed:.1%}",
            f"{x.gain_ms:+.2f}",
            "wide" if (x.graph, x.node) in wide else "narrow",
        )
        for x in sorted(found.layers, key=lambda x: x.loss, reverse=True)[:BLAMED]
    ]
    head = ("graph", "node", "error", "mIoU drop", "answers changed", "ms gained", "")
    return table(head, rows)


def blame_table(blamed: list[Blame]) -> list[str]:
    """The worst layers."""
    rows = [(b.graph, b.node, f"{b.alone:.1e}", f"{b.saved:.1e}") for b in blamed[:BLAMED]]
    return table(("graph", "node", "error alone", "saved if wide"), rows)
