"""Checkpoints from strangers. `export` goes as far as PyTorch's exporter, which takes minutes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from numpy.random import Generator

from geomag_edge.errors import ExportError

from .jail import Case, Outside
from .mutate import NO_FILE, no_file, pick, spoil_bytes, spoil_json
from .world import World

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def make(rng: Generator, world: World, outside: Outside, folder: Path) -> Case:
    """`export` of a checkpoint that is not what it should be."""
    given = folder / "in" / "checkpoint"
    shutil.copytree(world.checkpoint, given)
    names = [
        str(outside.root / "secret.data"),
        os.path.relpath(outside.root / "secret.data", given),
    ]
    names.append("../pipe")
    os.mkfifo(given.parent / "pipe")
    kind = pick(
        rng, ("config", "config", "config", "tokenizer", "weights", "index", "kind", "code")
    )
    note = {"config": _config, "tokenizer": _tokenizer, "weights": _weights, "index": _index,
            "kind": _kind, "code": _code}[kind](rng, given, names)  # fmt: skip
    argv = ["export", str(given), "-o", str(folder / "out" / "a")]
    return Case(argv, f"{kind}: {note}", folder, folder / "out" / "a")


def stop_at_the_exporter() -> None:
    """In a case's process: what is loaded is not exported."""
    from geomag_edge.export import exporter

    def stop(*_: Any, **__: Any) -> None:
        raise ExportError("loaded, and not exported here")

    exporter._export_graphs = stop


def _config(rng: Generator, given: Path, names: list[str]) -> str:
    path = given / "config.json"
    data, how = spoil_json(rng, json.loads(path.read_text()), names)
    path.write_bytes(data)
    return how


def _tokenizer(rng: Generator, given: Path, names: list[str]) -> str:
    path = given / pick(rng, ("tokenizer.json", "psc_tokenizer.json"))
    data, how = spoil_json(rng, json.loads(path.read_text()), names)
    path.write_bytes(data)
    return how


def _weights(rng: Generator, given: Path, names: list[str]) -> str:
    path = given / WEIGHTS
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.5:
        raw, how = spoil_bytes(rng, raw, 8 + size)
    else:
        head, how = spoil_json(rng, json.loads(raw[8 : 8 + size]), names)
        raw = len(head).to_bytes(8, "little") + head + raw[8 + size :]
    path.write_bytes(raw)
    return how


def _index(rng: Generator, given: Path, names: list[str]) -> str:
    """Weights in parts, under an index that is spoilt."""
    raw = (given / WEIGHTS).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    shard = "model-00001-of-00001.safetensors"
    (given / WEIGHTS).rename(given / shard)
    index = {"metadata": {"total_size": len(raw)},
             "weight_map": {k: shard for k in header if k != "__metadata__"}}  # fmt: skip
    data, how = spoil_json(rng, index, names)
    (given / INDEX).write_bytes(data)
    return how


def _kind(rng: Generator, given: Path, names: list[str]) -> str:
    path = given / pick(rng, ("config.json", "tokenizer.json", WEIGHTS, "psc_tokenizer.json"))
    # No links: Hugging Face's cache consists of them, so they are followed.
    how = pick(rng, NO_FILE)
    no_file(path, how)
    return f"{path.name} is a {how}"


def _code(rng: Generator, given: Path, names: list[str]) -> str:
    """Code that asks to be run: pickled weights, classes of its own."""
    if rng.random() < 0.5:
        data = json.loads((given / "config.json").read_text())
        data["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
        (given / "config.json").write_text(json.dumps(data))
        (given / "evil.py").write_text(f"open({names[0]!r}).read()\n")
        return "auto_map"
    (given / WEIGHTS).unlink()
    pickled = b"c__builtin__\nopen\n(S" + repr(names[0]).encode() + b"\ntR."
    (given / "pytorch_model.bin").write_bytes(pickled)
    return "pickle"
