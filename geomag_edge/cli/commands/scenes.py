"""Render overhead scenes with exact masks, boxes, prompts and answers, ready for `eval`."""

from __future__ import annotations

import argparse

from geomag_edge.cli.arguments import path, positive, seed
from geomag_edge.cli.console import counted, print_json, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `scenes`."""
    parser.add_argument("-o", "--output", type=path, required=True, metavar="DIR")
    parser.add_argument("--count", type=positive, default=6, metavar="N", help="scenes (default 6)")
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PX",
        help="side of every scene, 64 to 32768; default: 512, 1024 and 2048 in turns",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="S",
        help="of the set, default 0: the scenes are those of `eval --data scenes:S:N[:PX]`",
    )
    parser.add_argument(
        "--questions",
        type=positive,
        metavar="N",
        help="questions of each level and scene (default 4, as in `eval --data scenes:..`)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing folder")


def execute(args: argparse.Namespace) -> None:
    """Renders and writes the folder."""
    from geomag_edge.calibration.sets.rendered import QUESTIONS_PER_LEVEL, RenderedSet, write_folder

    per_level = args.questions or QUESTIONS_PER_LEVEL
    dataset = RenderedSet(args.seed, args.count, args.size, per_level)
    with counted(len(dataset), "scenes", "scene") as progress:
        questions = write_folder(dataset, args.output, args.force, progress)
    if args.json:
        print_json(
            {
                "folder": str(args.output),
                "set": dataset.name,
                "scenes": len(dataset),
                "questions": questions,
            }
        )
    else:
        say(
            f"{len(dataset)} scenes with {questions} questions ({dataset.name}) written to "
            f"{args.output}",
            f"measure a bundle on them with: geomag-edge eval BUNDLE --data {args.output}",
        )
