"""What calibration saw, as files of the bundle: `scales.json`, `channels.npz`, `sequences.npz`.

`scales.json` is meant to be read by people: for each graph and tensor its thresholds. The first npz
holds each tensor's statistics by channel, under the key that the JSON gives; the second what the
LLM read (`sequences`).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.disk.amend import amended
from geomag_edge.disk.stored import read_arrays, read_json
from geomag_edge.errors import BundleError, InputError
from geomag_edge.manifest import Bundle

from .ranges import METHODS
from .sequences import Spoken, from_arrays, to_arrays

FOLDER = "calibration"
SCALES, CHANNELS, SEQUENCES = "scales.json", "channels.npz", "sequences.npz"
FORMAT = 2


@dataclass(frozen=True)
class Channels:
    """A tensor's statistics by input channel: largest magnitude and root mean square, f32[C]."""

    absmax: NDArray[np.float32]
    rms: NDArray[np.float32]


@dataclass(frozen=True)
class TensorScale:
    """A tensor's thresholds by method (`ranges.METHODS`), and how many values were seen."""

    thresholds: dict[str, float]
    seen: int

    def threshold(self, method: str) -> float:
        """The magnitude that becomes 127."""
        if method not in METHODS:
            raise InputError(f"unknown calibrator {method!r}: choose one of {', '.join(METHODS)}")
        return self.thresholds[method]


@dataclass(frozen=True)
class GraphScales:
    """One graph's tensors, by name; `sha256` is the fp32 graph's, weights not included."""

    sha256: str
    tensors: dict[str, TensorScale]
    channels: dict[str, Channels] = field(default_factory=dict)


@dataclass(frozen=True)
class Scales:
    """All that calibration saw.

    Attributes:
        data: the set: name, digest, questions, levels.
        settings: how it was captured; the same set and settings give the same scales.
        graphs: by graph name.
        notes: warnings in plain words.
        spoken: prompts and answers as the LLM read them.
    """

    data: dict[str, Any]
    settings: dict[str, Any]
    graphs: dict[str, GraphScales]
    notes: list[str] = field(default_factory=list)
    spoken: list[Spoken] = field(default_factory=list)

    def graph(self, name: str) -> GraphScales:
        """The scales of a graph; empty for a graph without linear layers."""
        return self.graphs.get(name, GraphScales("", {}))

    def fits(self, digest: str, settings: Mapping[str, Any], graphs: Mapping[str, str]) -> bool:
        """Whether these scales are what a new capture would give.

        Args:
            digest: of the set.
            settings: of the capture.
            graphs: graph -> sha256 of every graph that would be observed.
        """
        return (
            self.data.get("digest") == digest
            and self.settings == dict(settings)
            and {name: g.sha256 for name, g in self.graphs.items()} == dict(graphs)
        )


def load_scales(bundle: Bundle) -> Scales:
    """The bundle's scales.

    Raises:
        BundleError: none there, or damaged files.
    """
    if bundle.manifest.calibration is None or f"{FOLDER}/{SCALES}" not in bundle.manifest.files:
        raise BundleError(
            f"the bundle {bundle.root} was not calibrated: run `geomag-edge calibrate` first"
        )
    listing = bundle.file(f"{FOLDER}/{SCALES}")
    try:
        data = read_json(listing)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, this program reads {FORMAT}")
        stored = read_arrays(bundle.file(f"{FOLDER}/{CHANNELS}"))
        graphs = {name: _graph(g, stored) for name, g in data["graphs"].items()}
        spoken = from_arrays(read_arrays(bundle.file(f"{FOLDER}/{SEQUENCES}")))
        notes = [str(note) for note in data["notes"]]
        return Scales(dict(data["set"]), dict(data["settings"]), graphs, notes, spoken)
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise BundleError(f"{SCALES} is damaged: {str(e)[:120]}; calibrate the bundle again") from e


def _graph(data: dict[str, Any], stored: Mapping[str, NDArray]) -> GraphScales:
    tensors, channels = {}, {}
    for name, entry in data["tensors"].items():
        thresholds = {method: float(entry[method]) for method in METHODS}
        if not all(0 < t < math.inf for t in thresholds.values()):
            raise ValueError(f"a threshold of {name} is not above 0")
        tensors[name] = TensorScale(thresholds, int(entry["values"]))
        absmax, rms = stored[entry["channels"]]
        if absmax.ndim != 1 or absmax.dtype != np.float32 or not np.isfinite([absmax, rms]).all():
            raise ValueError(f"the channels of {name[:60]} are no finite float32")
        channels[name] = Channels(absmax, rms)
    return GraphScales(str(data["sha256"]), tensors, channels)


def save_scales(bundle: Bundle, scales: Scales, method: str) -> Bundle:
    """Writes the scales into the bundle and its manifest; see `geomag_edge.disk.amend`.

    Args:
        bundle: stays valid if anything fails.
        scales: what was seen.
        method: the calibrator to use unless a recipe says otherwise.

    Returns:
        The bundle with its scales.
    """
    arrays: dict[str, Any] = {}
    graphs: dict[str, Any] = {}
    for name, graph in scales.graphs.items():
        tensors = {}
        for i, (tensor, scale) in enumerate(graph.tensors.items()):
            key = f"{name}.{i}"
            seen = graph.channels[tensor]
            arrays[key] = np.stack([seen.absmax, seen.rms])
            tensors[tensor] = {**scale.thresholds, "values": scale.seen, "channels": key}
        graphs[name] = {"sha256": graph.sha256, "tensors": tensors}
    document = {
        "format": FORMAT,
        "set": scales.data,
        "settings": scales.settings,
        "notes": scales.notes,
        "graphs": graphs,
    }
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with amended(bundle, FOLDER) as change:
        (change.stage / SCALES).write_text(text, encoding="utf-8")
        np.savez(change.stage / CHANNELS, allow_pickle=False, **arrays)
        sequences = to_arrays(scales.spoken)
        np.savez(change.stage / SEQUENCES, allow_pickle=False, **sequences)
        change.bundle.manifest.calibration = {
            "method": method,
            **scales.data,
            "settings": scales.settings,
            "notes": scales.notes,
        }
    return Bundle.open(bundle.root)


def choose_method(bundle: Bundle, method: str) -> Bundle:
    """Writes another calibrator into the manifest; the scales hold the thresholds of all."""
    kept = [bundle.file(f"{FOLDER}/{name}") for name in (SCALES, CHANNELS, SEQUENCES)]
    with amended(bundle, FOLDER) as change:
        for path in kept:
            shutil.copyfile(path, change.stage / path.name)
        assert change.bundle.manifest.calibration is not None
        change.bundle.manifest.calibration["method"] = method
    return Bundle.open(bundle.root)
