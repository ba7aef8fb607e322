"""Question sets from strangers, for `eval` and `calibrate`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from numpy.random import Generator

from .jail import Case, Outside
from .mutate import pick, spoil_bytes, spoil_json
from .world import RECORDS, World


def make(rng: Generator, world: World, outside: Outside, folder: Path) -> Case:
    """A command on a set that is not what it should be."""
    given = folder / "in" / "set"
    shutil.copytree(world.questions, given)
    names = [str(outside.root / "secret.tif"), os.path.relpath(outside.root / "secret.tif", given),
             "../pipe", "/dev/zero", f"{outside.url}/a.tif",
             f"/vsicurl/{outside.url}/a.tif"]  # fmt: skip
    os.mkfifo(given.parent / "pipe")
    kind = pick(rng, ("record", "record", "record", "lines", "image", "mask"))
    if kind == "record":
        lines = [json.dumps(r).encode() for r in RECORDS]
        at = int(rng.integers(len(lines)))
        lines[at], note = spoil_json(rng, RECORDS[at], names)
        (given / "questions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    else:
        path = (
            given
            / {"lines": "questions.jsonl", "image": "images/a.png", "mask": "masks/a.png"}[kind]
        )
        data, note = spoil_bytes(rng, path.read_bytes())
        path.write_bytes(_whole(rng, data) if kind == "lines" else data)
    command = pick(rng, ("eval", "calibrate"))
    argv = [command, str(world.bundle), "--data", str(given)]
    if command == "calibrate":
        argv += ["-o", str(folder / "out" / "a")]
    return Case(argv, f"{command}: {kind}: {note}", folder,
                folder / "out" / "a" if command == "calibrate" else None)  # fmt: skip


def _whole(rng: Generator, data: bytes) -> bytes:
    """Bytes as other programs may have written them."""
    kind = pick(rng, ("as it is", "bom", "utf-16", "crlf", "latin-1", "long"))
    if kind == "bom":
        return b"\xef\xbb\xbf" + data
    if kind == "utf-16":
        return data.decode("latin-1").encode("utf-16")
    if kind == "crlf":
        return data.replace(b"\n", b"\r\n")
    if kind == "latin-1":
        return data + b'{"id": "\xe9"}\n'
    if kind == "long":
        return data + b'{"id": "' + b"a" * 10_000_000 + b'"}\n'
    return data
