"""Assemble a GeoMag checkpoint from trained parts, or make a random one of a ready-made size."""

from __future__ import annotations

import argparse

from geomag_edge.cli.arguments import path, seed
from geomag_edge.cli.console import needs_extra, print_json, say
from geomag_edge.disk.staging import staged_folder
from geomag_edge.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compose`."""
    parser.add_argument("--vision", type=path, metavar="DIR", help="CLIP or SigLIP model")
    parser.add_argument("--prompt", type=path, metavar="DIR", help="CLIP or SigLIP model (text)")
    parser.add_argument("--llm", type=path, metavar="DIR", help="Llama, Qwen2 or Qwen3 model")
    parser.add_argument(
        "--preset", metavar="NAME", help="instead of parts: nano, base or half-b, random weights"
    )
    parser.add_argument("--seed", type=seed, default=0, help="for everything untrained (default 0)")
    parser.add_argument("-o", "--output", type=path, required=True, metavar="CKPT")
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")


def execute(args: argparse.Namespace) -> None:
    """Composes and names what is untrained."""
    parts = [args.vision, args.prompt, args.llm]
    if args.preset is None and None in parts:
        raise InputError("give --vision, --prompt and --llm, or --preset")
    if args.preset is not None and any(parts):
        raise InputError("--preset makes all parts: give it alone, or the three parts")
    with needs_extra("export"):
        from geomag_edge.model.loading.compose import compose
        from geomag_edge.model.presets import make_preset
    notes: list[str] = []
    given = [path for path in parts if path is not None]
    with staged_folder(args.output, args.force, "config.json", given) as stage:
        if args.preset is not None:
            make_preset(args.preset, stage, args.seed)
            untrained = ["all"]
        else:
            untrained = compose(args.vision, args.prompt, args.llm, stage, args.seed, notes.append)
    if args.json:
        print_json({"checkpoint": str(args.output), "untrained": untrained, "notes": notes})
    else:
        say(f"checkpoint written to {args.output}")
        for note in notes:
            say(f"note: {note}")
        say("untrained, its answers mean nothing yet: " + ", ".join(untrained))
