"""What each recipe costs a trained model in answers: the gate's verdicts, on unseen scenes.

    python -m geomag_edge.benchmarks.studies.precisions [--checkpoint CKPT] [--data scenes:8:24:512]

What is measured: the checkpoint is exported, calibrated on rendered scenes that no training and no
evaluation uses, and quantised by every recipe with `--relax`; each is asked the same questions on
`ort-cpu` and `openvino` and compared with float32 on `ort-cpu`. Last come the forms that `--engine
auto --precision auto` mixes here, each from a precision that passed: judged as one, since
losses add up. No time is measured here.

What bounds it: a small model is unsure of many answers, and any rounding turns those over. What a
recipe could not keep, it gave back: the table says how many layers.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.arguments import parser_of
from geomag_edge.benchmarks.machine import machine
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.calibration import Dataset, open_dataset
from geomag_edge.calibration.evaluation.evaluate import evaluate
from geomag_edge.calibration.gate.gate import Gate, judge
from geomag_edge.calibration.gate.sensitivity import FirstQuestions
from geomag_edge.calibration.quantization.capture import capture
from geomag_edge.calibration.quantization.scales import save_scales
from geomag_edge.calibration.quantize import quantize
from geomag_edge.calibration.sets.calibrating import open_calibration_set
from geomag_edge.export.exporter import export_bundle
from geomag_edge.manifest import Bundle
from geomag_edge.model.presets import shipped_checkpoint
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.auto.auto import AutoEngine

ENGINES = ("ort-cpu", "openvino")
USUAL = "fp16,int8,int4-llm"
EVERY = 1 << 30
"""Questions of the set to keep in memory."""


def main() -> None:
    """Parses, quantises, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, data="scenes:8:24:512", name="nano", threads=1)
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint("nano"))
    parser.add_argument("--calibration", default="scenes:1:16")
    parser.add_argument("--recipes", default=USUAL, help="which, in this order")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="geomag-precisions-") as folder:
        root = Path(folder) / args.name
        export_bundle(args.checkpoint, root)
        seen = capture(Bundle.open(root), open_calibration_set(args.calibration), args.threads)
        save_scales(Bundle.open(root), seen.scales, "mse")
        data = FirstQuestions(open_dataset(args.data), EVERY)  # rendered once
        rows = [_row(root, recipe, data, args.threads) for recipe in args.recipes.split(",")]
        mixture = _mixture(root, data, args.threads)
    report = {
        "name": args.name,
        "command": f"python -m geomag_edge.benchmarks.studies.precisions "
        f"--calibration {args.calibration} --data {args.data} --recipes {args.recipes} "
        f"--name {args.name} --threads {args.threads}",
        "machine": machine(args.threads, ("onnxruntime", "openvino", "numpy")),
        "recipes": rows,
        "mixture": mixture,
    }
    publish(report, as_markdown(report), args.results, f"precisions_{args.name}")


def _row(root: Path, recipe: str, data: Dataset, threads: int) -> dict[str, Any]:
    print(f"{recipe}:", file=sys.stderr)
    result = quantize(
        Bundle.open(root),
        recipe,
        data,
        Gate(),
        ENGINES,
        threads=threads,
        relax=True,
        progress=lambda step: print(f"  {step}", file=sys.stderr, flush=True),
    )
    made = result.to_json()
    kept = (
        "precision", "ok", "bytes", "source_bytes", "special_bytes", "bits", "given_back", "notes",
        "gate",
    )  # fmt: skip
    layers = {graph: len(nodes) for graph, nodes in result.quantized.items()}
    return {key: made[key] for key in kept} | {"narrow_layers": layers}


def _mixture(root: Path, data: Dataset, threads: int) -> dict[str, Any]:
    """The gate's verdict on what `auto` mixes; its `providers` say what ran each graph."""
    print("auto:", file=sys.stderr)
    bundle = Bundle.open(root)
    with Pipeline.load(bundle, "ort-cpu", "fp32", threads) as pipe:
        reference = evaluate(pipe, data)
    engine = AutoEngine(bundle, "auto", threads, anew=True)
    with Pipeline.load(bundle, engine) as pipe:
        return judge(evaluate(pipe, data), reference, Gate()).to_json()


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    host = report["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in host["versions"].items())
    said = (
        f"{host['cpu']}; {versions}. Points lost against float32 on ort-cpu, with 95 % intervals; "
        "negative: gained. Given back: layers that stay wide, or get 8 bits in place of 4, because "
        "the gate refused without."
    )
    rows: list[tuple[object, ...]] = []
    for row in report["recipes"]:
        given = str(len(row["given_back"]) or "none")
        if row["bits"]:
            four = sum(bits == 4 for bits in row["bits"].values())
            given += f"; {four} of the LLM's {len(row['bits'])} have 4 bits"
        size = f"{row['bytes'] / row['source_bytes']:.2f}"
        rows += [(row["precision"], e, *_verdict(v), size, given) for e, v in row["gate"].items()]
    mixed = report["mixture"]
    rows.append(("auto", "auto", *_verdict(mixed), "-", "-"))
    forms = ", ".join(f"{graph}: {form}" for graph, form in mixed["providers"].items())
    heads = (
        "recipe | engine | kept | mIoU lost | box mIoU lost | same words | identical | size "
        "| given back"
    )
    return page_of(
        f"Precisions of `{report['name']}`: what they cost in answers",
        report,
        said,
        table_of(heads, rows),
        f"What auto mixed here: {forms}.",
    )


def _verdict(found: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a verdict."""
    same = round(found["agreement"] * found["questions"])
    return (
        "yes" if found["ok"] else "**no**", _points(found["masks"]), _points(found["boxes"]),
        f"{same} of {found['questions']}", f"{found['identical']:.1%}",
    )  # fmt: skip


def _points(drop: dict[str, Any] | None) -> str:
    if drop is None:
        return "-"
    if drop["low"] is None:
        return f"{drop['points']:+.2f}"
    return f"{drop['points']:+.2f} ({drop['low']:+.2f} .. {drop['high']:+.2f})"


if __name__ == "__main__":
    main()
