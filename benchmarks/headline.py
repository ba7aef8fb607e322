"""The figures that the README quotes: one command measures them all and writes one table.

    pip install -e ".[peers]"
    python -m geomag_edge.benchmarks.headline --work DIR

What is measured is made first, in DIR, and kept there: `base` (the preset with seeded random
weights) in fp32, int8 and int8+int4-llm, `nano` (the shipped checkpoint) in fp32 and int8 with its
accuracy by budget, and the rendered scenes. `--base` and `--nano` name bundles that are there
already. Each part is a script of its own, run in its own process, with its own result:

| part | script |
|---|---|
| query | `peers.query`: a pixel-level query against PyTorch eager, torch.compile, ONNX Runtime |
| decode | `peers.decode`: a decode step against onnxruntime-genai |
| extent | `peers.extent`: a 20,000 px scene against one of 2,048 px |
| tiling | `peers.tiling`: against tiling everything at native resolution |
| deadlines | `deadlines`: 500 queries under each of three deadlines |
| overhead | `geomag-edge bench`: what is spent outside the engines and the op |

It takes about two hours on two cores. A part that fails or whose peers are not installed is left
with its last committed result, and said so. `--only` runs some of them, `--only none` writes the
table from the results that are there. Folders within `--results` hold what the command gave on
other machines, one each (`--results RESULTS/NAME`); they are shown below.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.arguments import parser_of
from geomag_edge.benchmarks.machine import described
from geomag_edge.benchmarks.peers.tiling import times
from geomag_edge.disk.staging import write_whole
from geomag_edge.manifest import Bundle
from geomag_edge.model.presets import shipped_checkpoint
from geomag_edge.runtime.planning.frontier import frontier_of

Row = tuple[str, str, str]
"""What is compared, the goal, what was measured."""


RECIPES = {
    "base": (("int8",), ("int8+int4-llm",)),
    "nano": (("int8", "--relax", "--data", "scenes:8:24:512"),),
}
"""The precisions of each bundle; what was really trained must pass the gate."""
CALIBRATION = {"base": ("scenes:1:17", "--count", "128"), "nano": ("scenes:1:16",)}
FRONTIER = "scenes:7:24"
"""By what `nano`'s budgets are judged."""


def main() -> None:
    """Makes what is missing, runs the parts, then writes the table of all results there are."""
    parser = parser_of(__doc__, threads=1)
    parser.add_argument("--work", type=Path, help="bundles and scenes are made and kept here")
    parser.add_argument("--base", type=Path, help="bundle, in place of one made here")
    parser.add_argument("--checkpoint", type=Path, help="of --base, if it has moved")
    parser.add_argument("--nano", type=Path, help="bundle, in place of one made here")
    parser.add_argument("--genai-python", default=sys.executable, help="a Python that has it")
    parser.add_argument("--optimum-python", default=sys.executable, help="a Python that has it")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name != "none"]
    prepare(args, wanted)
    failed = []
    for name in wanted:
        command = _command(name, args)
        print(f"{name}: {' '.join(command[1:])}", file=sys.stderr)
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            failed.append(name)
    table = as_markdown(args.results, failed)
    write_whole(args.results / "headline.md", table)
    print(table)
    if failed:
        raise SystemExit(f"failed, with what was measured before in the table: {failed}")


def prepare(args: argparse.Namespace, wanted: list[str]) -> None:
    """Makes the bundles that the wanted parts need and nobody named, and notes their places.

    What an earlier run has made is taken as it is.

    Raises:
        SystemExit: an unknown part, no --work, or a step that failed.
    """
    if unknown := set(wanted) - set(PARTS):
        raise SystemExit(f"unknown part {min(unknown)!r}: there are {', '.join(PARTS)}")
    if wanted and args.work is None:
        raise SystemExit("give --work DIR: bundles and scenes are made and kept there")
    for kind in sorted({PARTS[name][0] for name in wanted}):
        if getattr(args, kind) is None:
            setattr(args, kind, _made(kind, args.work))


def _made(kind: str, work: Path) -> Path:
    """`base` or `nano` as a bundle in `work`."""
    bundle, checkpoint = work / kind, work / f"{kind}-checkpoint"
    shipped = shipped_checkpoint(kind)
    if shipped is None and not checkpoint.exists():
        _cli("compose", "--preset", kind, "-o", str(checkpoint))
    if not bundle.exists():
        _cli("export", str(shipped or checkpoint), "-o", str(bundle))
    made = Bundle.open(bundle)
    if not made.manifest.calibration:
        _cli("calibrate", str(bundle), "--data", *CALIBRATION[kind])
    for recipe, *more in RECIPES[kind]:
        if recipe not in made.manifest.graphs:
            _cli("quantize", str(bundle), "--recipe", recipe, *more)
    if kind == "nano" and frontier_of(made) is None:
        _cli("plan", str(bundle), "--data", FRONTIER)
    return bundle


def _cli(*words: str) -> None:
    print(f"geomag-edge {' '.join(words)}", file=sys.stderr)
    command = [sys.executable, "-m", "geomag_edge", *words]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"failed: geomag-edge {' '.join(words)}")


def _command(part: str, args: argparse.Namespace) -> list[str]:
    """How a part is run."""
    bundle = args.base if PARTS[part][0] == "base" else args.nano
    threads = ["--threads", str(args.threads)]
    if part == "overhead":
        return [
            sys.executable, "-m", "geomag_edge", "bench", str(bundle), "--engine", "auto",
            "--precision", "auto", "--budget", "pixel", "--size", "4096", "--rounds", "9",
            *threads, "-o", str(args.results / "bench_base"),
        ]  # fmt: skip
    command = [sys.executable, "-m", f"geomag_edge.benchmarks.{PARTS[part][1]}",
               "--bundle", str(bundle), "--results", str(args.results), *threads]  # fmt: skip
    if part in ("extent", "tiling"):
        command += ["--scenes", str(args.work / "scenes")]
    if part == "tiling":
        command += ["--engine", "auto", "--precision", "auto"]
    if part in ("query", "decode") and args.checkpoint:
        command += ["--checkpoint", str(args.checkpoint)]
    if part == "decode":
        command += ["--genai-python", args.genai_python]
        command += ["--optimum-python", args.optimum_python]
    return command


def as_markdown(results: Path, failed: Collection[str] = ()) -> str:
    """The table of all results that are there, each with its machine's line and command.

    Args:
        results: their folder. Folders inside hold those of other machines, with their own tables.
        failed: parts whose results are of an earlier run, because they failed in this one.
    """
    lines = [
        "# Headline figures",
        "",
        "`python -m geomag_edge.benchmarks.headline --work DIR`",
        "",
        *_table(results, "not measured", failed),
    ]
    for folder in sorted(path for path in results.glob("*/") if path.is_dir()):
        if any((folder / file).exists() for _, _, file, _ in PARTS.values()):
            lines += ["", f"## Another machine: {folder.name}", "", *_table(folder)]
    return "\n".join(lines) + "\n"


def _table(results: Path, absent: str = "", failed: Collection[str] = ()) -> list[str]:
    """The rows of one folder's results; a part without one is said to be `absent`, or left out."""
    lines = ["| comparison | goal | measured |", "|---|---|---|"]
    sources = []
    for part, (_, _, file, rows) in PARTS.items():
        path = results / file
        if path.exists():
            data = json.loads(path.read_text())
            lines += [f"| {what} | {goal} | {value} |" for what, goal, value in rows(data)]
            source = f"- {part}: `{data['command']}`; {described(data['machine'])}"
            sources.append(source + ("; **failed since, so of an earlier run**" * (part in failed)))
        elif absent:
            lines.append(f"| {part} | - | {absent} |")
    return [*lines, "", *sources]


def _times(found: dict[str, Any]) -> str:
    wall, cpu = found["wall_ms"], found["cpu_ms"]
    return (
        f"{wall['ratio']:.2f}x ({wall['low']:.2f} to {wall['high']:.2f}), "
        f"CPU time {cpu['ratio']:.2f}x"
    )


def query_rows(data: dict[str, Any]) -> list[Row]:
    """Against each peer, the whole query."""
    what = f"pixel-level query, {data['scene_px']} px scene, `base`, best forms, against"
    goals = {"eager": ">= 6x", "torch.compile": ">= 4x", "ort-cpu fp32": ">= 3x"}
    names = {
        "eager, reference": "Hugging Face `generate` in the model's own reference (PyTorch eager)",
        "eager": "PyTorch eager, hidden states kept while decoding",
        "torch.compile": "torch.compile",
        "ort-cpu fp32": "per-graph ONNX Runtime fp32",
    }
    return [
        (f"{what} {label}", goals.get(name, "-"), _times(data["ratios"][name]))
        for name, label in names.items()
        if name in data["ratios"]
    ]


def decode_rows(data: dict[str, Any]) -> list[Row]:
    """Against each peer, a decode step at the same precision."""
    rows = []
    for name, found in data["ratios"].items():
        values = {key.removeprefix("decode_"): v for key, v in found.items() if "decode" in key}
        rows.append((f"LLM decode against {name}", ">= 1.0x", _times(values)))
    return rows + [(f"LLM decode: {name}", "-", why) for name, why in data["missing"].items()]


def extent_rows(data: dict[str, Any]) -> list[Row]:
    """The largest scene against the smallest."""
    large = max(data["ratios"], key=int)
    return [
        (f"{large} px scene against {min(data['ratios'], key=int)} px, time", "<= 1.5x",
         _times(data["ratios"][large])),
        ("the same, peak memory", "<= +300 MB", f"{data['more_mb'][large]:+.0f} MB"),
    ]  # fmt: skip


def tiling_rows(data: dict[str, Any]) -> list[Row]:
    """Time for every scene, and masks where the scene was tiled completely."""
    rows = []
    sweep_px = data["sweep_px"]
    names = {"ours": "by itself", "swept": f"swept in views of {sweep_px} px"}
    for scene in data["scenes"]:
        size = scene["size_px"]
        goal = ">= 50x" if size >= 20_000 else "-"
        part = f"{scene['tiles_timed']['tiling']} of {scene['tiles']['tiling']} tiles timed"
        for way, name in names.items():
            ratio = scene["ratio"]["tiling"][way]
            rows.append(
                (f"{size} px scene {name} against tiling everything, time", goal,
                 f"{times(ratio['wall_ms'])}, CPU time {times(ratio['cpu_ms'])} "
                 f"(mean of {scene['questions_timed']} questions; {part})")
            )  # fmt: skip
        ratio = scene["ratio"]["coarse"]["swept"]
        rows.append(
            (
                f"the same, swept against tiling with tiles of {sweep_px} px",
                "-",
                f"{times(ratio['wall_ms'])}, CPU time {times(ratio['cpu_ms'])}",
            )
        )
        if quality := scene.get("quality"):
            small, every = quality["small_miou"], quality["present_miou"]
            for way, name in names.items():
                rows.append(
                    (f"{size} px scene {name}, mIoU of small targets against tiling's",
                     "at least equal",
                     f"{_share(small[way])} against {_share(small['tiling'])}, tiles of {sweep_px} "
                     f"px {_share(small['coarse'])} ({quality['small_questions']} questions; all "
                     f"targets {_share(every[way])} against {_share(every['tiling'])})")
                )  # fmt: skip
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def deadline_rows(data: dict[str, Any]) -> list[Row]:
    """The share of queries inside each deadline."""
    return [
        (
            f"{data['queries']} queries within {run['factor']:g}x the smallest budget's median",
            ">= 99 %",
            f"{run['kept']:.1%}",
        )
        for run in data["runs"]
    ]


def overhead_rows(data: dict[str, Any]) -> list[Row]:
    """What of a query is spent outside the engines and the op."""
    rows = []
    for case in data["cases"]:
        ms = case["stages_ms"]
        unwritten = ms["total"]["p50"] - ms["write"]["p50"]
        share = ms["outside"]["p50"] / unwritten
        rows.append(
            (f"overhead outside engines and op, `{data['bundle']}`, {case['image_px']} px, "
             f"{case['engine']} {case['precision']}", "<= 5 %",
             f"{share:.1%} ({ms['outside']['p50']:.1f} of {unwritten:.0f} ms, files not written)")
        )  # fmt: skip
    return rows


PARTS: dict[str, tuple[str, str, str, Callable[[dict[str, Any]], list[Row]]]] = {
    "query": ("base", "peers.query", "peers_query_base.json", query_rows),
    "decode": ("base", "peers.decode", "peers_decode_base.json", decode_rows),
    "extent": ("nano", "peers.extent", "peers_extent_nano.json", extent_rows),
    "tiling": ("nano", "peers.tiling", "peers_tiling_nano.json", tiling_rows),
    "deadlines": ("nano", "speed.deadlines", "deadlines_nano.json", deadline_rows),
    "overhead": ("base", "bench", "bench_base/bench.json", overhead_rows),
}
"""Part -> whose bundle, its module, its result, and its rows."""


if __name__ == "__main__":
    main()
