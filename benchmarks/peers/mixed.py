"""A precision and an engine of its own for every graph, and for the LLM's two halves.

A measurement's tool, not the runtime: what choosing per graph would gain over one precision for
all. Values travel between engines as numpy arrays; the cache that the prompt's pass leaves is
handed over once, 6 KB a token on `base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from geomag_edge.errors import EngineError, InputError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engine import Engine, Session, open_engine

Form = tuple[str, str]
"""Engine and precision. `openvino` also takes `int8+bf16`: the int8 graph, with what is not
quantised in bfloat16 instead of float32."""

REST_IN_BF16 = "+bf16"


def parse_forms(text: str) -> dict[str, Form]:
    """Reads `graph=engine/precision,...`; `*` stands for the graphs not named."""
    forms = {}
    for part in text.split(","):
        graph, _, form = part.strip().partition("=")
        engine, _, precision = form.partition("/")
        if not (graph and engine and precision):
            raise InputError(f"{part!r} is not graph=engine/precision")
        forms[graph] = (engine, precision)
    return forms


class MixedEngine:
    """Opens each graph of a bundle in the form that it is given.

    Args:
        bundle: the bundle.
        forms: graph -> form; `prefill` and `decode` in place of `llm` split the language model,
            `*` stands for all graphs not named.
        threads: CPU threads of a graph.
    """

    name = "mixed"

    def __init__(self, bundle: Bundle, forms: Mapping[str, Form], threads: int | None):
        self.bundle, self.forms, self.threads = bundle, dict(forms), threads
        self.precision = ", ".join(f"{g}={'/'.join(f)}" for g, f in forms.items())
        self._engines: dict[Form, Engine] = {}

    def session(self, graph: str) -> Session:
        """Opens one graph, the two halves of the LLM as one session."""
        if graph == "llm" and "decode" in self.forms:
            prefill = self._open(self.forms["prefill"], graph)
            return SplitSession(prefill, self._open(self.forms["decode"], graph))
        return self._open(self.forms.get(graph, self.forms["*"]), graph)

    def close(self) -> None:
        """Closes every engine."""
        for engine in self._engines.values():
            engine.close()
        self._engines = {}

    def _open(self, form: Form, graph: str) -> Session:
        name, precision = form
        stored = precision.removesuffix(REST_IN_BF16)
        if form not in self._engines:
            self._engines[form] = open_engine(name, self.bundle, stored, self.threads)
        engine = self._engines[form]
        session = engine.session(graph) if stored == precision else _rest_in_bf16(engine, graph)
        session.provider = f"{'/'.join(form)}: {session.provider}"
        return session


def _rest_in_bf16(engine: Engine, graph: str) -> Session:
    """An OpenVINO engine's graph with everything that is not quantised in bfloat16."""
    from geomag_edge.runtime.openvino import OpenVinoEngine, OpenVinoSession

    if not isinstance(engine, OpenVinoEngine):
        raise EngineError(f"only openvino has {REST_IN_BF16}, {engine.name} has not")
    path = engine.bundle.graph(graph, engine.precision, "openvino")
    return OpenVinoSession(engine._core, path, "bf16", engine.threads)


class SplitSession:
    """The LLM with one session for prompts and another for single tokens."""

    def __init__(self, prefill: Session, decode: Session):
        self._prefill, self._decode = prefill, decode
        self.provider = f"prefill {prefill.provider}; decode {decode.provider}"

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; what the prompt's pass keeps becomes numpy, to change hands."""
        if feeds["inputs_embeds"].shape[1] == 1:
            return self._decode.run(feeds, keep)
        return {k: np.asarray(v) for k, v in self._prefill.run(feeds).items()}

    def close(self) -> None:
        """Closes both."""
        self._prefill.close()
        self._decode.close()
