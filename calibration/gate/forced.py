"""What each layer's rounding does to the answer's tokens: the model's own answers, teacher-forced.

One run of the LLM over a prompt and its answer gives the odds of every token of the answer. Odds
tell more than answers do: most roundings change no answer of a small set, but all of them move the
odds, and by how much foretells how many answers of a large one change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from geomag_edge.calibration.quantization.formats.int4 import BlockWeight, last_layers
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.sequences import Spoken, feeds_of
from geomag_edge.calibration.quantization.switch import SwitchEngine
from geomag_edge.disk.onnx_model import load_ir, load_proto
from geomag_edge.errors import CalibrationError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.ort import inference_session

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
        model = load_ir(graph)
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
        proto = load_proto(graph)
        for tensor in [t for t in proto.graph.initializer if t.name in self._weights]:
            proto.graph.initializer.remove(tensor)
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        self._session = inference_session(proto.SerializeToString(), threads, graph.parent)

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
        return self.odds_of(hidden, spoken)

    def odds_of(self, hidden: NDArray[np.floating], spoken: Spoken) -> NDArray[np.float64]:
        """The same, of hidden states [1,T,D] that another graph made."""
        logits = hidden[0, spoken.answer :].astype(np.float64) @ self._head
        logits -= logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    def feeds(self, spoken: Spoken) -> dict[str, NDArray]:
        """What a graph of this decoder's ports reads of a sequence."""
        return feeds_of(self._session, spoken)

    def affordable(self, spoken: Sequence[Spoken], layers: int) -> list[Spoken]:
        """The first sequences, as many as it pays to measure so many layers on."""
        tokens, some = PRODUCTS / self.products / max(layers, 1), list[Spoken]()
        for one in spoken[:ENOUGH]:
            if len(some) >= LEAST and sum(s.tokens for s in some) + one.tokens > tokens:
                break
            some.append(one)
        return some


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
    some = llm.affordable(spoken, len(weights))
    wide = [llm.odds(one, {}) for one in some]
    losses = {}
    for node, narrow in weights.items():
        progress(node)
        weight = {node: narrow.dequantized()}
        moved = [_divergence(a, llm.odds(one, weight)) for a, one in zip(wide, some, strict=True)]
        losses[node] = float(np.concatenate(moved).mean())
    return losses


def activation_losses(
    graph: Path,
    bundle: Bundle,
    precision: str,
    spoken: Sequence[Spoken],
    threads: int | None = None,
    progress: Callable[[str], None] = lambda node: None,
) -> dict[str, float]:
    """What each layer's quantised input costs alone; the LLM's weights are narrow throughout.

    Layers that read the same have the same loss. The head's own input is not looked at: it has 0.

    Args:
        graph: the float32 decoder.
        bundle: with the precision's graphs.
        precision: one whose LLM has Q/DQ on its activations.
        spoken: prompts and answers; the first of them, where the model is large.
        threads: CPU threads.
        progress: called with each node's name.

    Returns:
        node name -> Kullback-Leibler divergence from the odds with no input quantised.
    """
    llm, engine = ForcedLlm(graph, threads), SwitchEngine(bundle, precision, threads)
    session = engine.session("llm")
    nodes = engine.nodes()
    some = llm.affordable(spoken, len(nodes))

    def odds(wide: Collection[tuple[str, str]]) -> list[NDArray[np.float64]]:
        engine.wide = wide
        return [llm.odds_of(session.run(llm.feeds(one))["hidden_states"], one) for one in some]

    free = odds(set(nodes))
    losses: dict[str, float] = {}
    for key in nodes:
        progress(key[1])
        if key[1] in losses:
            continue  # reads what an earlier one reads
        shared = engine.sharing(key)
        moved = map(_divergence, free, odds(set(nodes) - shared))
        losses |= dict.fromkeys(
            (node for _, node in shared), float(np.concatenate([*moved]).mean())
        )
    session.close()
    return losses


def _divergence(expected: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((np.exp(expected) * (expected - got)).sum(axis=1))
