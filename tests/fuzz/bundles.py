"""Bundles from strangers: changed where nobody was to see it, or wholly of a stranger's making."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.random import Generator
from onnx import TensorProto, helper

from .jail import Case, Outside
from .mutate import NO_FILE, TEXTS, no_file, pick, spoil_bytes, spoil_json
from .world import World

MANIFEST, SIGNATURE, TOKENIZERS = (
    "bundle.json",
    "bundle.json.sig",
    ("tokenizer.json", "psc_tokenizer.json"),
)
REFERENCE = "reference/reference.json"


def make(rng: Generator, world: World, outside: Outside, folder: Path) -> Case:
    """A command on a bundle that is not as it was exported."""
    given = folder / "in" / "bundle"
    for path in world.bundle.rglob("*"):
        if path.is_file():
            new = given / path.relative_to(world.bundle)
            new.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, new)
    names = [
        str(outside.root / "secret.data"),
        os.path.relpath(outside.root / "secret.data", given),
    ]
    build: Callable[..., tuple[str, str]] = pick(
        rng,
        (
            _manifest,
            _manifest,
            _flip,
            _signed,
            _graph,
            _graph,
            _tokenizer,
            _reference,
            _arrays,
            _kind,
        ),
    )
    command, note = build(rng, world, names, given)
    out = folder / "out" / "a"
    argv = {
        "run": ["run", str(given), str(world.picture), "segment the ships", "-o", str(out),
                "--max-new-tokens", "4"],
        "verify": ["verify", str(given)],
        "inspect": ["inspect", str(given)],
    }[command]  # fmt: skip
    flipped = build in (_flip, _signed)
    if build is _signed:
        argv += ["--trust", str(world.root / "key.pub")]
    return Case(argv, f"{command}: {note}", folder, out if command == "run" else None,
                must_fail=flipped, long=command == "verify")  # fmt: skip


def _put(path: Path, data: bytes) -> None:
    """Replaces a file; it is a link to the world's."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _vouch(given: Path, *names: str) -> None:
    """Writes the true digests of changed files into the manifest, as whoever made it would."""
    manifest = json.loads((given / MANIFEST).read_text())
    for name in names:
        manifest["files"][name] = hashlib.sha256((given / name).read_bytes()).hexdigest()
    _put(given / MANIFEST, json.dumps(manifest).encode())


def _manifest(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    data = json.loads((given / MANIFEST).read_text())
    if rng.random() < 0.15:
        spoilt, how = spoil_bytes(rng, (given / MANIFEST).read_bytes(), 10**6)
    else:
        spoilt, how = spoil_json(rng, data, names)
    _put(given / MANIFEST, spoilt)
    return pick(rng, ("run", "inspect", "verify", "run")), f"manifest: {how}"


def _flip(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    return "run", _flip_of(rng, given, pick(rng, world.opened))


def _flip_of(rng: Generator, given: Path, name: str) -> str:
    data = bytearray((given / name).read_bytes())
    at, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[at] ^= 1 << bit
    _put(given / name, bytes(data))
    return f"bit {bit} of byte {at} of {name}"


def _signed(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """One bit of what is signed, or of the signature."""
    name = pick(rng, (MANIFEST, MANIFEST, SIGNATURE, *world.opened))
    return pick(rng, ("run", "inspect", "verify")) if name in (MANIFEST, SIGNATURE) else "run", (
        "signed, " + _flip_of(rng, given, name)
    )


def _graph(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    name = pick(rng, [n for n in world.opened if n.endswith(".onnx")])
    if rng.random() < 0.3:
        data, how = spoil_bytes(rng, (given / name).read_bytes(), 2000)
    else:
        model = onnx.load(str(given / name), load_external_data=False)
        build: Callable[..., str] = pick(rng, (_location, _dims, _node, _loop, _ports, _weights))
        how = build(rng, model, names)
        data = model.SerializeToString()
    _put(given / name, data)
    _vouch(given, name)
    return pick(rng, ("run", "run", "verify", "inspect")), f"{Path(name).name}: {how}"


def _external(rng: Generator, model: onnx.ModelProto) -> onnx.TensorProto | None:
    found = [t for t in model.graph.initializer if t.external_data]
    return pick(rng, found) if found else None


def _location(rng: Generator, model: onnx.ModelProto, names: list[str]) -> str:
    tensor = _external(rng, model)
    if tensor is None:
        return _node(rng, model, names)
    entry = pick(rng, list(tensor.external_data))
    new = pick(rng, (*names, *(t for t in TEXTS if "\udcff" not in t), "0", "-1", "9" * 20, "4096"))
    entry.value = new
    return f"{entry.key} of {tensor.name} is {new[:40]!r}"


def _dims(rng: Generator, model: onnx.ModelProto, names: list[str]) -> str:
    tensor = pick(rng, list(model.graph.initializer))
    if not tensor.dims:
        return _node(rng, model, names)
    at, new = int(rng.integers(len(tensor.dims))), pick(rng, (0, -1, 2**31, 2**62, 10**6))
    tensor.dims[at] = new
    return f"dimension {at} of {tensor.name} is {new}"


def _node(rng: Generator, model: onnx.ModelProto, names: list[str]) -> str:
    node = pick(rng, list(model.graph.node))
    kind = pick(rng, ("op", "domain", "input", "gone", "attribute"))
    if kind == "op":
        node.op_type = pick(rng, ("Identity", "NoSuchOp", "Cast", "Expand", "Tile", "\x1b[1m"))
    elif kind == "domain":
        node.domain = pick(rng, ("evil", "com.microsoft", "ai.onnx.ml", "geomag", "\x1b[1m"))
    elif kind == "input" and node.input:
        node.input[int(rng.integers(len(node.input)))] = pick(rng, ("", "nothing", node.output[0]))
    elif kind == "attribute" and node.attribute:
        attribute = pick(rng, list(node.attribute))
        attribute.i, attribute.f = pick(rng, (0, -1, 2**62)), 1e38
    else:
        model.graph.node.remove(node)
    return f"{kind} of {node.name}"


def _loop(rng: Generator, model: onnx.ModelProto, names: list[str]) -> str:
    """A loop that never ends before the graph's first node."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )  # fmt: skip
    true = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(true)
    model.graph.node.insert(0, helper.make_node("Loop", ["", "always"], [], body=body))
    target = model.graph.output[0]
    target.type.tensor_type.elem_type = target.type.tensor_type.elem_type
    return "a loop without end"


def _ports(rng: Generator, model: onnx.ModelProto, names: list[str]) -> str:
    port = pick(rng, [*model.graph.input, *model.graph.output])
    kind = pick(rng, ("name", "type", "sequence", "dims"))
    old = port.name
    if kind == "name":
        port.name = pick(rng, ("x", "", "\x1b[1m", "a" * 1000))
    elif kind == "type":
        port.type.tensor_type.elem_type = pick(rng, (0, 1, 7, 8, 99))
    elif kind == "sequence":
        port.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif port.type.tensor_type.shape.dim:
        pick(rng, list(port.type.tensor_type.shape.dim)).dim_value = pick(rng, (0, 1, 3, 2**40))
    return f"{kind} of port {old}"


def _weights(rng: Generator, model: onnx.ModelProto, names: list[str]) -> str:
    """Weights that are there, of a kind or value that no layer can use."""
    tensor = pick(rng, list(model.graph.initializer))
    tensor.data_type = pick(rng, (0, 1, 2, 8, 10, 11, 16, 99))
    return f"type of {tensor.name} is {tensor.data_type}"


def _tokenizer(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    name = pick(rng, TOKENIZERS)
    data = json.loads((given / name).read_text())
    if rng.random() < 0.3:
        power = int(rng.integers(1, 6))
        data["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 10 ** power}
        ] * int(rng.integers(1, 4))}  # fmt: skip
        spoilt, how = json.dumps(data).encode(), "a normalizer that makes much of little"
    elif rng.random() < 0.6:  # not its words, of which it mostly consists
        words = {k: data["model"].pop(k) for k in ("vocab", "merges") if k in data["model"]}
        spoilt, how = spoil_json(rng, data, names)
        try:
            again = json.loads(spoilt)
            again["model"] |= words
            spoilt = json.dumps(again).encode()
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
    else:
        spoilt, how = spoil_json(rng, data, names)
    _put(given / name, spoilt)
    _vouch(given, name)
    return pick(rng, ("run", "run", "verify")), f"{name}: {how}"


def _reference(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    spoilt, how = spoil_json(rng, json.loads((given / REFERENCE).read_text()), names)
    _put(given / REFERENCE, spoilt)
    _vouch(given, REFERENCE)
    return "verify", f"reference: {how}"


def _arrays(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """The reference's arrays, spoilt or blown up."""
    name = "reference/arrays.npz"
    raw = (given / name).read_bytes()
    kind = pick(rng, ("bytes", "large", "pickle", "header"))
    if kind == "bytes":
        raw, how = spoil_bytes(rng, raw)
    else:
        how, made = kind, io.BytesIO()
        with (
            np.load(io.BytesIO(raw)) as arrays,
            zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out,
        ):
            bad = pick(rng, arrays.files)
            for key in arrays.files:
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, arrays[key])
                data = buffer.getvalue()
                if key == bad and kind == "large":
                    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**28},), }}"
                    data = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
                    data += shape.ljust(117).encode() + b"\n" + bytes(2**26)
                elif key == bad and kind == "pickle":
                    buffer = io.BytesIO()
                    np.save(buffer, np.array([{}], object), allow_pickle=True)
                    data = buffer.getvalue()
                elif key == bad:
                    data = spoil_bytes(rng, data, 128)[0]
                out.writestr(f"{key}.npy", data)
        raw = made.getvalue()
    _put(given / name, raw)
    _vouch(given, name)
    return "verify", f"arrays: {how}"


def _kind(rng: Generator, world: World, names: list[str], given: Path) -> tuple[str, str]:
    """A file of the bundle that is no file, or that leads away."""
    name = pick(rng, [MANIFEST, *world.opened])
    path, how = (
        given / name,
        pick(rng, (*NO_FILE, "link", "away")),
    )
    if how in ("link", "away"):
        path.unlink()
        path.symlink_to(names[0] if how == "link" else given)
    else:
        no_file(path, how)
    return pick(rng, ("run", "inspect", "verify")), f"{name} is a {how}"
