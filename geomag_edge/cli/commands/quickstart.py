"""The whole story on this machine: checkpoint, ONNX graphs, parity, answers and masks."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.cli.arguments import path
from geomag_edge.cli.commands.run import describe, print_answer, write
from geomag_edge.cli.console import flush, needs_extra, parity_table, print_json, say, steps

if TYPE_CHECKING:
    from geomag_edge.runtime.chain.scene_session import SceneSession

QUESTIONS = (
    ("image", "how many ships are in the image?", ""),
    ("region", "find the box of the large building", "<box>0:300,300,700,600</box>"),
    ("pixel", "segment the ships near the pier", "[SEG]"),
)
"""Level, prompt, and how an untrained model's answer is made to start, so that every part runs."""

TRAINED = (
    "The checkpoint is a small test article, trained for a few hours on rendered scenes:",
    "expect wrong answers, ragged masks and misplaced boxes among them. What it can and cannot do:",
)

UNTRAINED = (
    "THIS CHECKPOINT IS UNTRAINED (random weights, seeded): the answers, boxes and masks below "
    "mean nothing.",
    "They show that every stage runs; box and mask answers are started by force.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `quickstart`."""
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        default=Path("geomag-quickstart"),
        metavar="DIR",
        help="where everything goes (default: geomag-quickstart)",
    )


def execute(args: argparse.Namespace) -> None:
    """Runs the story from start to end."""
    with needs_extra("export"):
        from geomag_edge.export.exporter import STEPS, export_bundle
        from geomag_edge.model.presets import make_preset, shipped_checkpoint
    from geomag_edge.runtime.chain.pipeline import Pipeline
    from geomag_edge.scenes import sample_scene

    out: Path = args.output

    def told(*lines: str) -> None:
        if not args.json:
            say(*lines)
            flush()

    started = time.perf_counter()
    checkpoint = shipped_checkpoint("nano")
    if checkpoint is None:
        from geomag_edge.disk.staging import staged_folder

        checkpoint = out / "checkpoint"
        with staged_folder(checkpoint, True, "config.json") as stage:
            make_preset("nano", stage)
    told(f"1. checkpoint  {checkpoint}")
    out.mkdir(parents=True, exist_ok=True)
    scene = sample_scene(out / "scene.tif")
    told(f"2. scene       {scene}, georeferenced")
    bundle = out / "bundle"
    with steps(STEPS, "export") as progress:
        report = export_bundle(checkpoint, bundle, force=True, progress=progress).to_json()
    told(f"3. bundle      {bundle}", "")
    told("4. parity of ONNX Runtime with PyTorch at every boundary", "")
    told(*parity_table(report))

    answers: list[dict[str, Any]] = []
    with Pipeline.load(bundle) as pipe, pipe.open(scene) as session:
        untrained = bool(pipe.bundle.manifest.untrained)
        told("", "5. three questions about the scene", "")
        if untrained:
            told(*UNTRAINED, "")
        else:
            told(*TRAINED[:-1], f"{TRAINED[-1]} {checkpoint / 'README.md'}", "")
        for answer in _asked(session, scene, out, untrained):
            answers.append(answer)
            told(f"> {answer['prompt']}", answer["text"])
            if not args.json:
                print_answer(answer)
                say(f"  picture   {answer['files']['overlay']}", "")
    seconds = time.perf_counter() - started
    told(f"done in {seconds:.0f} s; everything is in {out}")
    if args.json:
        print_json(
            {
                "checkpoint": str(checkpoint), "untrained": untrained, "bundle": str(bundle),
                "scene": str(scene), "parity": report, "answers": answers, "seconds": seconds,
            }
        )  # fmt: skip


def _asked(
    session: SceneSession, scene: Path, out: Path, untrained: bool
) -> Iterator[dict[str, Any]]:
    """The answers, one by one, each with its files below `out`."""
    for level, prompt, forced in QUESTIONS:
        result = session.ask(
            prompt,
            budget=level if untrained else None,
            max_new_tokens=8 if untrained else 64,
            answer_prefix=forced if untrained else "",
        )
        answer = describe(result, scene)
        files = write(session, result, answer, out / level)
        yield answer | {"files": {k: str(v) for k, v in files.items()}}
