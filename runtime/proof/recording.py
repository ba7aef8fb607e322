"""Making a reference: an engine that keeps its calls, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.runtime.engines.engine import Engine, Session
from geomag_edge.runtime.engines.reference import FILES, Call, Sample

LLM_CALLS = 2
"""Calls of the LLM that are kept for a sample: the prefill and one decode step."""


class RecordingEngine:
    """Passes everything through to another engine and keeps calls in `calls`.

    Args:
        inner: the engine to record.
        llm_calls: how many of the LLM's calls to keep, and the token embeddings that go with them;
            None keeps all, which holds the whole cache once for every token.
    """

    def __init__(self, inner: Engine, llm_calls: int | None = None):
        self.inner, self.name, self.precision = inner, inner.name, inner.precision
        self.calls: list[Call] = []
        self._llm_calls = llm_calls

    def session(self, graph: str) -> Session:
        """A session of the inner engine that records."""
        return _RecordingSession(self.inner.session(graph), graph, self._keep)

    def _keep(self, call: Call) -> None:
        made = sum(c.graph == "llm" for c in self.calls)
        full = self._llm_calls is not None and made >= self._llm_calls
        if not (full and call.graph in ("llm", "embed")):
            self.calls.append(call)

    def close(self) -> None:
        """Closes the inner engine."""
        self.inner.close()


class _RecordingSession:
    def __init__(self, inner: Session, graph: str, keep_call: Callable[[Call], None]):
        self._inner, self._graph, self._keep_call = inner, graph, keep_call
        self.provider = inner.provider

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        outputs = self._inner.run(feeds)  # nothing kept: every value is a numpy array
        self._keep_call(Call(self._graph, dict(feeds), dict(outputs)))
        return outputs

    def close(self) -> None:
        self._inner.close()


def save_reference(samples: list[Sample], folder: Path) -> None:
    """Writes `reference.json` and `arrays.npz` into a folder."""
    arrays: dict[str, NDArray] = {}

    def put(array: NDArray) -> str:
        array = np.ascontiguousarray(array)
        key = hashlib.sha256(
            f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
        ).hexdigest()[:24]
        arrays[key] = array
        return key

    def record(call: Call) -> dict[str, Any]:
        return {
            "graph": call.graph,
            "inputs": {k: put(v) for k, v in call.inputs.items()},
            "outputs": {k: put(v) for k, v in call.outputs.items()},
        }

    listing = [
        {
            "image": put(s.image),
            "prompt": s.prompt,
            "budget": s.budget,
            "answer_prefix": s.answer_prefix,
            "max_new_tokens": s.max_new_tokens,
            "calls": [record(c) for c in s.calls],
            "token_ids": s.token_ids,
            "granularity": s.granularity,
            "boxes": s.boxes,
            "crop_boxes": put(s.crop_boxes),
            "masks": put(np.packbits(s.masks)),
            "mask_shape": list(s.masks.shape),
        }
        for s in samples
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES[0]).write_text(json.dumps({"samples": listing}, indent=1))
    np.savez(folder / FILES[1], allow_pickle=False, **arrays)
