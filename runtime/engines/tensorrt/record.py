"""build.json: what was built, from what, for whom; read by the runtime before an engine is opened.

Needs no engine module. docs/TARGETS.md has the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from geomag_edge.disk.bounds import check_word
from geomag_edge.disk.fields import listed, maybe, named, one_of, real, record, table, text, whole
from geomag_edge.disk.manifest_fields import PORTS
from geomag_edge.disk.stored import read_json
from geomag_edge.errors import BundleError, EngineError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.tensorrt.profiles import Limits, Profile

RECORD = "build.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EngineFile:
    """One serialised engine of a graph.

    Attributes:
        file: its path in the bundle; `Bundle.file` checks its sha256.
        bytes: its size.
        source: the ONNX file and the sha256 of it and its data.
        profiles: in the engine's order.
        shapes: for each profile, input -> least, usual, most shape.
        inputs, outputs: name, dtype and axes, as the manifest has them of the graph.
        memory: `weights_bytes`, `activation_bytes` (of each profile) as the builder reports them.
        layer_precisions: how many matrix-multiplying layers run in each type.
        build_s: how long the build took.
    """

    file: str
    sha256: str
    bytes: int
    source: dict[str, Any]
    profiles: tuple[Profile, ...]
    shapes: tuple[dict[str, Any], ...]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    memory: dict[str, Any] | None
    layer_precisions: dict[str, int]
    warnings: list[str]
    build_s: float

    def to_json(self) -> dict[str, Any]:
        """The form in build.json."""
        memory = self.memory or {}
        each = memory.get("activation_bytes", [None] * len(self.profiles))
        return {
            "file": self.file,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "source": self.source,
            "profiles": [
                {
                    "name": p.name,
                    "axes": {a: list(span) for a, span in p.axes.items()},
                    "shapes": shapes,
                    "activation_bytes": activations,
                }
                for p, shapes, activations in zip(self.profiles, self.shapes, each, strict=True)
            ],
            "inputs": self.inputs,
            "outputs": self.outputs,
            "memory": None
            if self.memory is None
            else {
                "weights_bytes": memory["weights_bytes"],
                "activation_bytes": max(each),
                "from": memory["from"],
            },
            "layer_precisions": self.layer_precisions,
            "warnings": self.warnings,
            "build_s": self.build_s,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineFile:
        """Reads `to_json`'s form."""
        memory = data["memory"]
        if memory is not None:
            memory = {
                "weights_bytes": memory["weights_bytes"],
                "activation_bytes": [p["activation_bytes"] for p in data["profiles"]],
                "from": memory["from"],
            }
        return cls(
            file=data["file"],
            sha256=data["sha256"],
            bytes=data["bytes"],
            source=data["source"],
            profiles=tuple(
                Profile(p["name"], {a: (s[0], s[1], s[2]) for a, s in p["axes"].items()})
                for p in data["profiles"]
            ),
            shapes=tuple(p["shapes"] for p in data["profiles"]),
            inputs=data["inputs"],
            outputs=data["outputs"],
            memory=memory,
            layer_precisions=data["layer_precisions"],
            warnings=data["warnings"],
            build_s=data["build_s"],
        )


_BYTES = whole(0, 2**50)
_PROFILE = record(
    {
        "name": text(),
        "axes": table(listed(whole(0, 2**31), 3, 3), 16),
        "shapes": named,
        "activation_bytes": maybe(_BYTES),
    }
)
_ENGINE = record(
    {
        "file": text(),
        "sha256": text(64),
        "bytes": _BYTES,
        "source": record({}, {"sha256": named}),
        "profiles": listed(_PROFILE, 64, 1),
        "inputs": PORTS,
        "outputs": PORTS,
        "memory": maybe(record({"weights_bytes": _BYTES, "from": text()})),
        "layer_precisions": named,
        "warnings": listed(text(10_000), 1000),
        "build_s": real(0),
    }
)


@dataclass(frozen=True)
class BuildRecord:
    """One folder of engines.

    Attributes:
        target, precision: what was built.
        flavour, version: the module that built the engines and that must load them.
        built_on: `gpu`, `sm`, `platform`, `jetpack` of the machine that built.
        loads_on_sm: compute capabilities that the engines run on.
        options: see `build.BuildOptions`.
        limits: the most that the engines take.
        engines: graph -> its engines, one for each profile or one for all.
        fit: the prediction, beside which `memory` of each engine stands.
        build_s, peak_rss_bytes: the last build's time, and the process's peak memory.
        measured: what GPUs took in fact, one entry a GPU and power mode: `gpu`, `power_mode`,
            `when`, `stages_ms` (budget -> stage -> ms, named as in `fit`).
    """

    target: str
    precision: str
    flavour: str
    version: str
    built_on: dict[str, Any]
    loads_on_sm: list[str]
    options: dict[str, Any]
    limits: Limits
    engines: dict[str, list[EngineFile]]
    fit: dict[str, Any] | None = None
    build_s: float = 0.0
    peak_rss_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """Its place in the bundle."""
        return folder_of(self.target, self.precision)

    def pick(self, graph: str, sizes: Mapping[str, int]) -> tuple[EngineFile, int]:
        """The engine and the profile index that hold the given sizes of a graph's axes.

        Raises:
            EngineError: no engine of that graph, or no profile that wide; says which limit.
        """
        files = self.engines.get(graph)
        if not files:
            raise EngineError(
                f"{self.folder} has no engine of {graph}: `geomag-edge build` with --graph {graph}"
            )
        for file in files:
            for index, profile in enumerate(file.profiles):
                if profile.holds(sizes):
                    return file, index
        asked = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
        have = "; ".join(
            f"{p.name}: " + ", ".join(f"{a} {p.axes[a][0]}..{p.axes[a][2]}" for a in sizes)
            for f in files
            for p in f.profiles
        )
        raise EngineError(
            f"{graph} was built for {have}, this asks for {asked}: give a smaller budget"
        )

    def to_json(self) -> dict[str, Any]:
        """The form of build.json."""
        return {
            "format_version": FORMAT_VERSION,
            **{k: v for k, v in vars(self).items() if k not in ("engines", "limits")},
            "limits": asdict(self.limits),
            "engines": {g: [f.to_json() for f in files] for g, files in self.engines.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildRecord:
        """Reads `to_json`'s form.

        Raises:
            BundleError: another version, or damaged.
        """
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{RECORD} has format version {str(version)[:40]}, this program reads "
                f"{FORMAT_VERSION}: build the engines again"
            )
        _RECORD(data, RECORD)
        return cls(
            **{name: data[name] for name in _PLAIN},
            limits=Limits(**{k.name: data["limits"][k.name] for k in fields(Limits)}),
            engines={
                graph: [EngineFile.from_json(f) for f in files]
                for graph, files in data["engines"].items()
            },
            measured=data.get("measured", []),
        )


_PLAIN = {
    "target": text(64),
    "precision": text(64),
    "flavour": text(64),
    "version": text(64, r"\d+(\.\d+){0,2}(\..*)?", "a version"),
    "built_on": named,
    "loads_on_sm": listed(text(16), 64),
    "options": named,
    "fit": maybe(named),
    "build_s": real(0),
    "peak_rss_bytes": _BYTES,
    "notes": listed(text(10_000), 1000),
}
_RECORD = record(
    _PLAIN
    | {
        "limits": record({part.name: whole(1, 2**31) for part in fields(Limits)}),
        "engines": table(listed(_ENGINE, 64, 1), len(CHAIN), one_of(*CHAIN)),
    },
    {"measured": listed(named, 100)},
)


def folder_of(target: str, precision: str) -> str:
    """Where engines go in a bundle."""
    return f"engines/{check_word(target, 'a target')}/{check_word(precision, 'a precision')}"


def load_record(bundle: Bundle, target: str, precision: str) -> BuildRecord | None:
    """The record of a build, its sha256 checked; None if there is none, or its folder is gone.

    Raises:
        BundleError: changed or damaged.
    """
    name = f"{folder_of(target, precision)}/{RECORD}"
    if name not in bundle.manifest.files or not bundle.place(name).exists():
        return None
    return _load(bundle, name)


def load_records(bundle: Bundle) -> list[BuildRecord]:
    """Every build that a bundle holds, by target and precision.

    Raises:
        BundleError: one of them is changed or damaged.
    """
    names = sorted(
        n for n in bundle.manifest.files if n.startswith("engines/") and n.endswith(f"/{RECORD}")
    )
    return [_load(bundle, name) for name in names]


def _load(bundle: Bundle, name: str) -> BuildRecord:
    found = BuildRecord.from_json(read_json(bundle.file(name)))
    if f"{found.folder}/{RECORD}" != name:
        raise BundleError(f"{name} is the record of another folder: build the engines again")
    return found
