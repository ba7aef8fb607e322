"""Reference inputs: what a trusted engine did, stage by stage, kept to be replayed anywhere.

A reference is a few samples (image, prompt, budget) with every graph call's inputs and outputs
and the final answer. On disk: `reference.json` names arrays by content hash, `arrays.npz` holds
each array once, so an output that is the next stage's input costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.disk.bounds import TOKEN_ID
from geomag_edge.disk.fields import listed, one_of, real, record, table, text, whole
from geomag_edge.disk.stored import read_arrays, read_json
from geomag_edge.errors import BundleError
from geomag_edge.graphs import CHAIN, PSC, GraphSpec, all_graphs
from geomag_edge.manifest import Bundle, Manifest
from geomag_edge.prompts import MAX_PROMPT_CHARS

FILES = ("reference.json", "arrays.npz")
REPLAYED = (*CHAIN, PSC.name)
"""The chain's graphs, and psc.onnx, which serves tools that want crops from one graph."""


@dataclass
class Call:
    """One run of one graph."""

    graph: str
    inputs: dict[str, NDArray]
    outputs: dict[str, NDArray]


@dataclass
class Sample:
    """One reference input and what came of it.

    `masks` are bool [m,H,W]; `token_ids` are the answer's, a forced prefix included.
    """

    image: NDArray[np.uint8]
    prompt: str
    budget: str
    answer_prefix: str
    max_new_tokens: int
    calls: list[Call] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    granularity: str = ""
    boxes: list[list[float]] = field(default_factory=list)
    crop_boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    masks: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), bool))


def load_reference(listing: Path, arrays: Path) -> list[Sample]:
    """Reads what `recording.save_reference` wrote.

    Raises:
        BundleError: damaged files.
    """
    try:
        data, stored = read_json(listing), read_arrays(arrays)
        _REFERENCE(data, listing.name)
        return [_sample(entry, stored) for entry in data["samples"]]
    except BundleError as e:
        raise BundleError(f"the bundle's reference inputs are damaged: {e}") from e
    except KeyError as e:
        raise BundleError(
            f"the bundle's reference inputs are damaged: {arrays.name} lacks {str(e)[:60]}"
        ) from e


def reference_of(bundle: Bundle) -> list[Sample]:
    """A bundle's reference, its files checked.

    Raises:
        BundleError: damaged files, or one in which something is left out.
    """
    samples = load_reference(*(bundle.file(f"reference/{name}") for name in FILES))
    check_whole(samples, bundle.manifest)
    return samples


def check_whole(samples: list[Sample], manifest: Manifest) -> None:
    """Refuses a reference that leaves out a graph, an output or its values: to agree with nothing
    is no proof.

    Raises:
        BundleError: it does, or a call is none of its graph's.
    """
    if not samples:
        raise BundleError(
            "the bundle's reference holds no samples to compare with: export it again"
        )
    records = next(iter(manifest.graphs.values()), {})
    specs = {spec.name: spec for spec in all_graphs(manifest.decoder.layers)}
    calls = [call for sample in samples for call in sample.calls]
    for graph in (name for name in REPLAYED if name in records):
        mine = [call for call in calls if call.graph == graph]
        if not mine or not all(_is_call(specs[graph], call) for call in mine):
            raise BundleError(
                f"the bundle's reference lacks answers of the graph {graph}: export it again"
            )
    missing = {*CHAIN, *(call.graph for call in calls)} - {*records}
    if missing:
        raise BundleError(f"the bundle has no graph {sorted(missing)[0]}: export it again")


def _is_call(spec: GraphSpec, call: Call) -> bool:
    """Whether a call has its graph's inputs and outputs, of their ranks, and answers something."""
    for ports, arrays in ((spec.inputs, call.inputs), (spec.outputs, call.outputs)):
        ranks = {name: array.ndim for name, array in arrays.items()}
        if ranks != {port.name: len(port.axes) for port in ports}:
            return False
    return all(array.size for array in call.outputs.values())


_KEY = text(64)
_CALL = record(
    {"graph": one_of(*REPLAYED), "inputs": table(_KEY, 4096), "outputs": table(_KEY, 4096)}
)
_SAMPLE = record(
    {
        "image": _KEY,
        "prompt": text(MAX_PROMPT_CHARS),
        "budget": text(),
        "answer_prefix": text(MAX_PROMPT_CHARS),
        "max_new_tokens": whole(1, 10_000),
        "calls": listed(_CALL, 1000),
        "token_ids": listed(whole(0, TOKEN_ID), 10_000),
        "granularity": text(),
        "boxes": listed(listed(real(), 4, 4), 1000),
        "crop_boxes": _KEY,
        "masks": _KEY,
        "mask_shape": listed(whole(0, 2**20), 3, 3),
    }
)
_REFERENCE = record({"samples": listed(_SAMPLE, 100)})


def _sample(entry: dict[str, Any], stored: Mapping[str, NDArray]) -> Sample:
    def arrays(names: dict[str, str]) -> dict[str, NDArray]:
        return {k: stored[v] for k, v in names.items()}

    shape, packed = tuple(entry["mask_shape"]), stored[entry["masks"]]
    if packed.dtype != np.uint8 or packed.shape != (-(-math.prod(shape) // 8),):
        raise BundleError(f"masks of {shape} are stored as {packed.dtype} {packed.shape}")
    bits = np.unpackbits(packed, count=math.prod(shape))
    return Sample(
        image=stored[entry["image"]],
        prompt=entry["prompt"],
        budget=entry["budget"],
        answer_prefix=entry["answer_prefix"],
        max_new_tokens=entry["max_new_tokens"],
        calls=[Call(c["graph"], arrays(c["inputs"]), arrays(c["outputs"])) for c in entry["calls"]],
        token_ids=entry["token_ids"],
        granularity=entry["granularity"],
        boxes=entry["boxes"],
        crop_boxes=stored[entry["crop_boxes"]],
        masks=bits.reshape(shape).astype(bool),
    )
