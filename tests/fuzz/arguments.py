"""Command lines that nobody would type, for every command and every option that there is."""

from __future__ import annotations

import argparse
from pathlib import Path

from numpy.random import Generator

from geomag_edge.cli.parser import build_parser

from .jail import Case, Outside
from .mutate import NUMBERS, TEXTS, pick
from .world import World

HEAVY = {
    "quickstart",
    "export",
    "compose",
    "calibrate",
    "quantize",
    "build",
    "bench",
    "eval",
    "plan",
}
"""Honest work of minutes: these never get a bundle or checkpoint that is in order."""
WRITES = {"-o", "--output"}
MANY = 64
"""Scenes, or questions of each, that are drawn in seconds."""


def make(rng: Generator, world: World, outside: Outside, folder: Path) -> Case:
    """A command with some arguments right and at least one of them odd."""
    (folder / "in").mkdir()
    commands = _commands()
    name = pick(rng, sorted(commands))
    argv, odd = [name], 0
    actions = [a for a in commands[name]._actions if a.dest not in ("help", "debug")]
    for action in actions:
        if action.option_strings and not action.required and rng.random() > 0.25:
            continue
        flag = [pick(rng, action.option_strings)] if action.option_strings else []
        if action.nargs == 0:
            argv += flag
            continue
        sound = rng.random() < 0.6
        value = _sound(rng, action, world, folder, name) if sound else None
        if value is None:
            value, odd = _odd(rng), odd + 1
            if WRITES & set(action.option_strings) and ".." not in value:
                value = f"{folder}/out/{value}"  # what an odd name makes is looked at there
        argv += [f"{flag[0]}={value}"] if flag and flag[0].startswith("--") else [*flag, value]
    if rng.random() < 0.1 or not odd:
        argv.insert(int(rng.integers(1, len(argv) + 1)), _odd(rng))
    if name in HEAVY:
        argv = [str(folder / "in" / "none") if a in _sound_places(world) else a for a in argv]
        if name == "quickstart":  # it needs nothing, so only its output folder can stop it
            argv += ["-o", str(world.picture)]
    if name == "scenes" and any(_number(a) > MANY for a in argv):  # hours of honest work, too
        argv += ["-o", str(world.picture)]
    argv = [a.replace("\0", "") for a in argv]  # no shell can pass one on
    return Case(argv, " ".join(ascii(a)[:40] for a in argv), folder, _out(argv, folder), long=True)


def _number(word: str) -> int:
    """What Python reads as a whole number: `1_000`, too."""
    last = word.rpartition("=")[2].strip().replace("_", "")
    return int(last[:9]) if last.isdecimal() else 0


def _sound_places(world: World) -> set[str]:
    return {str(world.bundle), str(world.checkpoint)}


def _out(argv: list[str], folder: Path) -> Path | None:
    return folder / "out" / "a" if str(folder / "out" / "a") in argv else None


def _commands() -> dict[str, argparse.ArgumentParser]:
    parser = build_parser()
    found = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def _odd(rng: Generator) -> str:
    """A word that may be anything."""
    return pick(rng, (*TEXTS, *NUMBERS)) if rng.random() < 0.8 else _noise(rng)


def _noise(rng: Generator) -> str:
    return rng.bytes(int(rng.integers(1, 30))).decode("utf-8", "surrogateescape")


def _sound(
    rng: Generator, action: argparse.Action, world: World, folder: Path, command: str
) -> str | None:
    """A value that the argument would take, as far as its kind is known here."""
    if action.choices:
        return str(pick(rng, list(action.choices)))
    if WRITES & set(action.option_strings):
        return str(folder / "out" / "a")
    known = {
        "bundle": str(world.bundle), "checkpoint": str(world.checkpoint),
        "image": str(world.picture), "prompt": "segment the ships", "engine": "ort-cpu",
        "precision": "fp32", "threads": "1", "budget": "pixel", "max_new_tokens": "4",
        "data": str(world.questions), "answer_prefix": "[SEG]", "bands": "1,2,3", "seed": "3",
        "value_range": "0,255", "count": "2", "target": "portable", "catalog": str(world.picture),
    }  # fmt: skip
    return known.get(action.dest)
