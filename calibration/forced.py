"""What each layer's 4 bits do to the answer's tokens: the model's own answers, teacher-forced.

One run of the LLM over a prompt and its answer gives the odds of every token of the answer. Odds
tell more than answers do: most roundings change no answer of a small set, but all of them move the
odds, and by how much foretells how many answers of a large one change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from geomag_edge.errors import CalibrationError

from .int4 import BlockWeight, last_layers
from .linears import find_linears
from .sequences import Spoken, feeds_of, open_graph

ENOUGH, LEAST = 64, 2
PRODUCTS = 1e13
"""Layers are measured on `ENOUGH` sequences; larger models on as many as so many multiplications
allow, a few minutes on one core, and on `LEAST` of them anyway."""


class ForcedLlm:
    """A float32 decoder whose linear weights can be exchanged from run to run.

    Args:
        graph: the float32 decoder.
        threads: CPU threads.
    """

    def __init__(self, graph: Path, threads: int | None = None):
        model = ir.load(graph)
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._of: dict[str, str] = {}
        heads = last_layers(model)
        for linear in find_linears(model):
            assert linear.weight.const_value is not None
            name = linear.weight.name or ""
            self._weights[name] = linear.weight.const_value.numpy().astype(np.float32)
            self._of[linear.name] = name
        if len(heads) != 1:
            raise CalibrationError(f"graph llm has {len(heads)} heads: one makes the logits")
        self._head = self._weights[self._of[next(iter(heads))]]
        proto = onnx.load(str(graph), load_external_data=False)
        for tensor in [t for t in proto.graph.initializer if t.name in self._weights]:
            proto.graph.initializer.remove(tensor)
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        self._session = open_graph(proto, graph.parent, threads)

    @property
    def products(self) -> int:
        """Multiplications of all linear layers for one token."""
        return sum(weight.size for weight in self._weights.values())

    def odds(
        self, spoken: Spoken, weights: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.float64]:
        """Logarithms of the odds of the answer's tokens, f64[answer,V].

        Args:
            spoken: prompt and answer.
            weights: node name -> another weight; the others have their own.
        """
        feeds = feeds_of(self._session, spoken) | self._weights
        feeds |= {self._of[node]: weight for node, weight in weights.items()}
        [hidden] = self._session.run(["hidden_states"], feeds)
        logits = hidden[0, spoken.answer :].astype(np.float64) @ self._head
        logits -= logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def layer_losses(
    graph: Path,
    spoken: Sequence[Spoken],
    weights: Mapping[str, BlockWeight],
    threads: int | None = None,
    progress: Callable[[str], None] = lambda node: None,
) -> dict[str, float]:
    """What each narrow weight costs alone: how far the odds of the answers' tokens move.

    Args:
        graph: the float32 decoder.
        spoken: prompts and answers; the first of them, where the model is large.
        weights: node name -> its narrow form.
        threads: CPU threads.
        progress: called with each node's name.

    Returns:
        node name -> Kullback-Leibler divergence from float32's odds, nats a token.
    """
    llm = ForcedLlm(graph, threads)
    affordable = PRODUCTS / llm.products / max(len(weights), 1)
    some: list[Spoken] = []
    for one in spoken[:ENOUGH]:
        if len(some) >= LEAST and sum(s.tokens for s in some) + one.tokens > affordable:
            break
        some.append(one)
    wide = [llm.odds(one, {}) for one in some]
    losses = {}
    for node, narrow in weights.items():
        progress(node)
        weight = {node: narrow.dequantized()}
        moved = [_divergence(a, llm.odds(one, weight)) for a, one in zip(wide, some, strict=True)]
        losses[node] = float(np.concatenate(moved).mean())
    return losses


def _divergence(expected: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((np.exp(expected) * (expected - got)).sum(axis=1))
