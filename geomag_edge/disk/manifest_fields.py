"""What `bundle.json` must look like: every field's type and bounds, as docs/BUNDLE.md has them."""

from __future__ import annotations

from typing import Any

from geomag_edge import graphs
from geomag_edge.budgets import LEVELS
from geomag_edge.disk.bounds import (
    FILES,
    MOST,
    PRECISIONS,
    TEMPLATE_CHARACTERS,
    TOKEN_ID,
    VIEW_PIXELS,
    WINDOWS,
    check_inside,
    check_word,
)
from geomag_edge.disk.fields import (
    Check,
    anything,
    flag,
    listed,
    maybe,
    one_of,
    real,
    record,
    refuse,
    table,
    text,
    whole,
)
from geomag_edge.errors import BundleError
from geomag_edge.graphs import CHAIN, FORMS
from geomag_edge.spelling import FORMS as SPELLINGS


def check_manifest(data: dict[str, Any], name: str) -> None:
    """Every field by itself, then those that must agree with each other.

    Raises:
        BundleError: says which field is wrong and what it should be.
    """
    _MANIFEST(data, name)
    _check_ports(data["graphs"], data["decoder"]["layers"], name)
    check_looks(data, name)


def _check_ports(records: dict[str, Any], layers: int, name: str) -> None:
    """Inputs and outputs are shown, compared and built for as they are listed."""
    contracts = {spec.name: spec for spec in graphs.all_graphs(layers)}
    for precision, made in records.items():
        for graph, found in made.items():
            spec = contracts[graph]
            for form in (found, *found.get("forms", {}).values()):
                if not any(
                    form["inputs"] == graphs.port_records(spec.inputs, wide)
                    and form["outputs"] == graphs.port_records(spec.outputs, wide)
                    for wide in ("float32", "float16")
                ):
                    raise BundleError(
                        f"{name} lists other inputs or outputs of the {precision} graph {graph} "
                        "than it has: get it again"
                    )


def check_looks(data: dict[str, Any], name: str) -> None:
    """Views, crops and budgets, each of which is sound, together: what a query would take.

    Raises:
        BundleError: more than a machine would bear, or more than the model has.
    """
    view, psc = data["preprocessing"], data["psc"]
    if psc["max_crops"] * view["view_px"] ** 2 > VIEW_PIXELS:
        raise BundleError(
            f"{name} wants {psc['max_crops']} crops of {view['view_px']} px at once, which is more "
            f"than {VIEW_PIXELS} pixels: this bundle is not opened"
        )
    windows = sum((view["grid"] - min(w, view["grid"]) + 1) ** 2 for w in {*psc["windows"]})
    if windows > WINDOWS:
        raise BundleError(
            f"{name} wants {windows} windows scored on a view, more than {WINDOWS}: this bundle is "
            "not opened"
        )
    for level in LEVELS:
        budget = data["token_budgets"][level]
        for key, limit in (("global_grid", view["grid"]), ("crops", psc["max_crops"]),
                           ("crop_grid", view["grid"])):  # fmt: skip
            if budget[key] > limit:
                raise BundleError(
                    f"{name} gives the level {level} a {key} of {budget[key]}, and the model has "
                    f"{limit} at most: this bundle is not opened"
                )


def _size(name: str, least: int = 1) -> Check:
    return whole(least, MOST[name])


def _path(value: Any, place: str) -> None:
    check_inside(value)


def _onnx(value: Any, place: str) -> None:
    """Runtimes tell formats by the name, and only this one is looked into."""
    if not check_inside(value).endswith(".onnx"):
        refuse(value, place, "a path that ends in .onnx")


def _precision(value: Any, place: str) -> None:
    check_word(value, "a set of graphs")


def _graph(value: Any, place: str) -> None:
    if value not in (*CHAIN, graphs.PSC.name):
        raise BundleError(f"the manifest holds a graph {str(value)[:60]!r}, which is unknown")


def _form(value: Any, place: str) -> None:
    if value not in FORMS:
        raise BundleError(f"the manifest holds a form {str(value)[:60]!r}, which is unknown")


def _axis(value: Any, place: str) -> None:
    (text(32) if isinstance(value, str) else whole(0, 2**31))(value, place)


_THREE = {"most": 3, "least": 3}
_TOKEN = whole(0, TOKEN_ID)
_PORT = record({"name": text(100), "dtype": text(20), "axes": listed(_axis, 8)})
PORTS = listed(_PORT, most=2 * MOST["layers"] + 16)
"""Inputs or outputs of a graph."""

_FILE = {
    "file": _onnx,
    "data": listed(_path, 64),
    "precision": text(64),
    "opset": whole(1, 1000),
    "inputs": PORTS,
    "outputs": PORTS,
}
_RECORD = record(_FILE, {"forms": table(record(_FILE), len(FORMS), _form)})
BUDGET = record(
    {key: _size(key, least) for key, least in (("global_grid", 1), ("crops", 0), ("crop_grid", 0))}
)
PSC: dict[str, Check] = {
    "max_crops": _size("max_crops"),
    "windows": listed(_size("windows"), 64, 1),
    "overlap": real(0, 1),
    "levels": _size("levels"),
}
_DRIFT = record({}, {"relative": maybe(real())})
_PARITY = record(
    {},
    {
        "engine": text(),
        "ok": flag,
        "first_drift": maybe(text(10_000)),
        "graphs": listed(_DRIFT, 10_000),
    },
)
_VERDICT = record({}, {"ok": flag, "instruction_sets": maybe(listed(text(), 64))})
_ACCURACY = record({}, {"gate": maybe(table(_VERDICT, 16))})


def _parity(value: Any, place: str) -> None:
    """One report of an export, or one for each engine of a `quantize`."""
    table(anything, 64)(value, place)
    if {"engine", "ok"} & set(value):
        _PARITY(value, place)
    else:
        table(_PARITY, 64)(value, place)


def _beside(value: Any, place: str) -> None:
    text(4096, r"[^/\\\0][^\\\0]*", "a relative path")(value, place)


_MANIFEST = record(
    {
        "created_by": text(),
        "preprocessing": record(
            {
                "view_px": _size("view_px"),
                "grid": _size("grid"),
                "mean": listed(real(-100, 100), **_THREE),
                "std": listed(real(1e-6, 1e6), **_THREE),
            }
        ),
        "prompt": record(
            {
                "template": text(TEMPLATE_CHARACTERS),
                "bos_token_id": maybe(_TOKEN),
                "eos_token_ids": listed(_TOKEN, 256),
                "seg_token_id": _TOKEN,
                "context": _size("context"),
                "psc_context": _size("psc_context"),
                "psc_pad_to": maybe(_size("psc_pad_to")),
                "psc_pad_id": _TOKEN,
            },
            {key: maybe(one_of(*SPELLINGS)) for key in ("text_form", "psc_text_form")},
        ),
        "psc": record(PSC),
        "token_budgets": record(dict.fromkeys(LEVELS, BUDGET)),
        "decoder": record({k: _size(k) for k in ("layers", "kv_heads", "head_dim", "hidden")}),
        "graphs": table(table(_RECORD, len(CHAIN) + 1, _graph), PRECISIONS, _precision),
        "files": table(text(64, "[0-9a-f]{64}", "a sha256"), FILES, _path),
        "checkpoint": record({}, {"sha256": maybe(text()), "path": maybe(_beside)}),
        "calibration": maybe(record({}, {"method": maybe(text())})),
        "parity": table(_parity, 64),
        "accuracy": table(_ACCURACY, 64),
        "untrained": listed(text(), 1000),
        "model_config": record(
            {},
            {f"{part}_config": record({}, {"model_type": text()})
             for part in ("vision", "prompt", "text")},
        ),
    }
)  # fmt: skip
