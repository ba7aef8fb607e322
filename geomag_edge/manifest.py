"""`bundle.json`: what a bundle holds, read and checked before anything in it is opened.

docs/BUNDLE.md is the specification of the format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from geomag_edge import arguments
from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.disk.bounds import MANIFEST_BYTES, check_inside
from geomag_edge.disk.manifest_fields import check_manifest
from geomag_edge.disk.onnx_file import KINDS, OnnxFile, read_onnx
from geomag_edge.disk.pending import pending
from geomag_edge.disk.signature import check_signature
from geomag_edge.disk.staging import found_again
from geomag_edge.disk.stored import open_regular, parse_json, read_bytes
from geomag_edge.errors import BundleError, InputError
from geomag_edge.graphs import all_graphs
from geomag_edge.printing import plain
from geomag_edge.prompts import PromptSettings
from geomag_edge.views import PscSettings

MANIFEST = "bundle.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ViewSettings:
    """How pixels become views: side S, patch grid G, and the normalisation (0..1 units)."""

    view_px: int
    grid: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.view_px < 1 or self.grid < 1:
            raise BundleError(f"views of {self.view_px} px in {self.grid} patches are not possible")
        if not (_three_finite(self.mean) and _three_finite(self.std) and min(self.std) > 0):
            raise BundleError(
                f"mean {self.mean} and std {self.std} must be three numbers each, std above 0"
            )


def _colour(values: Iterable[Any]) -> tuple[float, float, float]:
    red, green, blue = (float(x) for x in values)
    return red, green, blue


def _three_finite(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(math.isfinite(v) for v in values)


@dataclass(frozen=True)
class DecoderShape:
    """What the runtime must know to keep the LLM's cache."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int


@dataclass
class Manifest:
    """The parsed manifest.

    Attributes:
        created_by: program and version.
        model_config: the checkpoint's config.json, without paths of the exporting machine.
        view, prompt, psc, budgets, decoder: what the chain needs, without any model library.
        graphs: precision -> graph name -> record (file, data, inputs, outputs, opset; `forms`
            where some runtimes want a file of their own, each with the same fields).
        files: every other file and every graph's file -> sha256.
        checkpoint: sha256 digest and relative path of the checkpoint that was exported.
        parity, accuracy: reports.
        untrained: parts of the model that were never trained.
    """

    created_by: str
    model_config: dict[str, Any]
    view: ViewSettings
    prompt: PromptSettings
    psc: PscSettings
    budgets: dict[str, TokenBudget]
    decoder: DecoderShape
    graphs: dict[str, dict[str, dict[str, Any]]]
    files: dict[str, str]
    checkpoint: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    parity: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    untrained: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The form written to bundle.json."""
        return {
            "format_version": FORMAT_VERSION,
            "created_by": self.created_by,
            "preprocessing": {
                "view_px": self.view.view_px,
                "grid": self.view.grid,
                "mean": list(self.view.mean),
                "std": list(self.view.std),
            },
            "prompt": self.prompt.to_json(),
            "psc": {
                "max_crops": self.psc.max_crops,
                "windows": list(self.psc.windows),
                "overlap": self.psc.overlap,
                "levels": self.psc.levels,
            },
            "token_budgets": {k: b.to_json() for k, b in self.budgets.items()},
            "decoder": vars(self.decoder),
            "graphs": self.graphs,
            "files": self.files,
            "checkpoint": self.checkpoint,
            "calibration": self.calibration,
            "parity": self.parity,
            "accuracy": self.accuracy,
            "untrained": self.untrained,
            "model_config": self.model_config,
        }

    def to_text(self) -> str:
        """The text of bundle.json; a report's number that is not finite becomes null."""
        return json.dumps(plain(self.to_json()), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Reads `to_json`'s form.

        Raises:
            BundleError: another version, a field missing or of the wrong kind, a path that
                leaves the bundle.
        """
        if not isinstance(data, dict) or "format_version" not in data:
            raise BundleError(f"{MANIFEST} is not a geomag-edge manifest: it has no format_version")
        version = data["format_version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format version {version!r}, this program reads {FORMAT_VERSION}: "
                "export it again, or install the matching geomag-edge"
            )
        check_manifest(data, MANIFEST)
        pre = data["preprocessing"]
        try:
            manifest = cls(
                created_by=data["created_by"],
                model_config=data["model_config"],
                view=ViewSettings(
                    pre["view_px"], pre["grid"], _colour(pre["mean"]), _colour(pre["std"])
                ),
                prompt=PromptSettings.from_json(data["prompt"]),
                psc=PscSettings.from_json(data["psc"]),
                budgets={k: TokenBudget.from_json(data["token_budgets"][k]) for k in LEVELS},
                decoder=DecoderShape(
                    **{k.name: data["decoder"][k.name] for k in fields(DecoderShape)}
                ),
                graphs=data["graphs"],
                files=data["files"],
                checkpoint=data["checkpoint"],
                calibration=data["calibration"],
                parity=data["parity"],
                accuracy=data["accuracy"],
                untrained=data["untrained"],
            )
        except InputError as e:  # parts that cannot be, such as crops without a grid
            raise BundleError(f"{MANIFEST} is damaged: {e}") from e
        unlisted = [f for f in _graph_files(manifest.graphs) if f not in manifest.files]
        if unlisted:
            raise BundleError(f"{MANIFEST} gives no sha256 for {unlisted[0]}: export it again")
        return manifest


def _graph_files(graphs: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    return [
        name
        for records in graphs.values()
        for record in records.values()
        for form in [record, *record.get("forms", {}).values()]
        for name in [form["file"], *form["data"]]
    ]


def _reason(e: Exception) -> str:
    return getattr(e, "strerror", None) or str(e)[:120]


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open_regular(path) as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class Bundle:
    """A bundle folder opened for reading: its manifest, and its files after their check.

    `staged` maps folders of the bundle to where their files lie until they are moved in; `text` is
    what `bundle.json` held.
    """

    text = b""

    def __init__(self, root: Path, manifest: Manifest, staged: Mapping[str, Path] | None = None):
        self.root, self.manifest, self.staged = root, manifest, dict(staged or {})
        self._checked: set[str] = set()
        self._walked: set[str] = set()

    @classmethod
    def open(cls, root: str | Path, trust: str | Path | None = None) -> Bundle:
        """Reads and checks the manifest; no other file is touched yet.

        Args:
            root: the bundle's folder.
            trust: a public ed25519 key's file: a bundle that its owner has not signed is refused.

        Raises:
            BundleError: no bundle there, or a manifest that is damaged, unknown, unsafe or not
                signed by `trust`.
            InputError, MissingExtraError: see `signature.trusted_key`.
        """
        root = found_again(arguments.path(root, "bundle", BundleError))
        path = root / MANIFEST
        try:
            if not path.is_file():
                raise BundleError(
                    f"no bundle at {root}: there is no {MANIFEST}; make one with "
                    "`geomag-edge export`"
                )
            if not path.resolve().is_relative_to(root.resolve()):
                raise BundleError(f"{path} is a link that leaves the bundle, so it is not opened")
        except (OSError, RuntimeError) as e:  # no permission, links in a circle
            raise BundleError(f"cannot open a bundle at {root}: {_reason(e)}") from e
        text = read_bytes(path, MANIFEST_BYTES)
        if trust is not None:
            check_signature(text, path, Path(trust))
        bundle = cls(root, Manifest.from_json(parse_json(text, MANIFEST)), pending(root, text))
        bundle.text = text
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, once its sha256 has been checked.

        Raises:
            BundleError: not in the manifest, missing, leaving the bundle through a link, or with
                other content than the manifest says.
        """
        path = self.place(check_inside(name))
        if name in self._checked:
            return path
        if name not in self.manifest.files:
            raise BundleError(f"{name} is not listed in {MANIFEST}, so it is not opened")
        try:
            if not path.is_file():
                raise BundleError(f"the bundle lacks {name}: copy it again or export it again")
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise BundleError(
                    f"{name} is a link that leaves the bundle, so it is not opened: copy the "
                    "bundle with files in place of links (cp -rL)"
                )
            if sha256_of(path) != self.manifest.files[name]:
                raise BundleError(
                    f"{name} is not what was exported (sha256 differs): copy or export it again"
                )
        except (OSError, RuntimeError) as e:
            raise BundleError(f"cannot read {name} of {self.root}: {_reason(e)}") from e
        self._checked.add(name)
        return path

    def place(self, name: str) -> Path:
        """Where a file of the bundle lies, unchecked."""
        for inside, folder in self.staged.items():
            if name.startswith(f"{inside}/") and folder.is_dir():  # else it was moved in meanwhile
                return folder / name[len(inside) + 1 :]
        return self.root / name

    def record(self, name: str, precision: str, form: str | None = None) -> dict[str, Any]:
        """What the manifest says of a graph, in a runtime's own form where there is one.

        Args:
            name: the graph.
            precision: the set of graphs.
            form: one of `geomag_edge.graphs.FORMS`; None for the portable file.

        Raises:
            BundleError: the bundle has no such precision or graph.
        """
        records = self.manifest.graphs.get(precision)
        if records is None:
            have = ", ".join(self.manifest.graphs) or "none"
            raise BundleError(f"the bundle has no {precision} graphs: it has {have}")
        if name not in records:
            raise BundleError(f"the bundle has no {precision} graph {name!r}: export it again")
        record = records[name]
        return record.get("forms", {}).get(form, record)

    def graph_files(self, precision: str, forms: bool = True) -> set[str]:
        """The names of all files of a precision's graphs; without `forms`, the portable ones."""
        records = self.manifest.graphs[precision]
        if not forms:
            records = {n: {k: v for k, v in r.items() if k != "forms"} for n, r in records.items()}
        return set(_graph_files({precision: records}))

    def graph(self, name: str, precision: str, form: str | None = None) -> Path:
        """The checked path of a graph (its external data checked too); see `record`.

        Raises:
            BundleError: the bundle has no such precision or graph, a file fails its check, or the
                graph names weights that its record does not.
        """
        record = self.record(name, precision, form)
        for data in record["data"]:
            self.file(data)
        path = self.file(record["file"])
        if record["file"] not in self._walked:
            self._check_graph(name, record, read_onnx(path))
            self._walked.add(record["file"])
        return path

    def _check_graph(self, name: str, record: dict[str, Any], found: OnnxFile) -> None:
        """A graph takes weights from what is listed alone, and is the graph that it should be."""
        file = record["file"]
        folder = PurePosixPath(file).parent
        named = {f"{folder}/{location}": size for location, size in found.external.items()}
        if set(named) != set(record["data"]):
            odd = sorted({*named} ^ set(record["data"]))[0]
            raise BundleError(
                f"{file} takes its weights from other files than the manifest says "
                f"({odd[:80]!r}): nobody vouches for them, so it is not opened"
            )
        for data, size in named.items():
            if self.place(data).stat().st_size < size:
                raise BundleError(f"{file} wants more weights than {data} holds: export it again")
        view, shape = self.manifest.view, self.manifest.decoder
        sizes: dict[str | int, int] = {
            "S": view.view_px, "G": view.grid, "P": view.grid**2, "D": shape.hidden,
            "max_crops": self.manifest.psc.max_crops, "Hkv": shape.kv_heads, "Dh": shape.head_dim,
        }  # fmt: skip
        spec = next(spec for spec in all_graphs(shape.layers) if spec.name == name)
        for ports, there in ((spec.inputs, found.inputs), (spec.outputs, found.outputs)):
            if {port.name for port in ports} != set(there):
                raise BundleError(f"{file} has other inputs or outputs than a graph {name} has")
            for port in ports:
                wanted = [sizes.get(a, a if isinstance(a, int) else None) for a in port.axes]
                if found.kinds[port.name] not in KINDS[port.dtype]:
                    raise BundleError(
                        f"{file} has {port.name} of another type than {port.dtype}: export it again"
                    )
                sides = there[port.name]
                if len(sides) != len(wanted) or any(
                    size not in (None, side) for size, side in zip(wanted, sides, strict=True)
                ):
                    raise BundleError(
                        f"{file} has {port.name} of {list(sides)}, where the manifest's numbers "
                        f"say {wanted}: export it again"
                    )
