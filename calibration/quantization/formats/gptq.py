"""4-bit weights fitted to what they meet: the rows still to come make up for each row's rounding.

A weight [K,N] is rounded row by row (a row is an input channel). What a row's rounding does to the
layer's outputs, on the inputs that calibration saw, the rows after it take back as far as their
inputs go together with its own. Loud inputs go first. The blocks' scales are searched before, on
the weight as it was, so that a row's place in its block stays where it is.

After Frantar et al., "GPTQ" (arXiv 2210.17323). Here the positions that choose the answer's tokens
weigh more (`ANSWER`): they are a twentieth of what an LLM reads, and all that it says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from geomag_edge.calibration.quantization.linears import Linear, find_linears
from geomag_edge.calibration.quantization.sequences import Spoken, feeds_of
from geomag_edge.disk.onnx_model import load_ir, load_proto
from geomag_edge.runtime.engines.ort import inference_session

from .int4 import BlockWeight, block_for, block_weight, quantize_blocks

ANSWER = 0.7
"""The answers' share of the weight. On the shipped model, with every layer in 4 bits: logits off by
0.026 of their norm at the answers' true share of 0.05, 0.020 at 0.5 to 0.9, 0.022 at 1."""

DAMPING = 0.01
"""Of the inputs' mean power, added to each channel's: for channels that were hardly seen."""

TOGETHER = 128
"""Rows after which the rest of the weight is brought up to date: one product instead of many."""

HESSIAN_BYTES = 1 << 29
"""Inputs are gathered for so many layers at once; more are gathered in another turn."""


def fitted_blocks(
    graph: Path,
    spoken: Sequence[Spoken],
    block: int,
    wide8: Collection[str],
    threads: int | None = None,
    progress: Callable[[str], None] = lambda node: None,
) -> dict[str, BlockWeight]:
    """4-bit weights of a decoder's linear layers, fitted to sequences.

    Args:
        graph: the float32 decoder.
        spoken: of the calibration; without any, each weight is rounded by itself.
        block: the largest block.
        wide8: nodes that get 8 bits, which nothing needs to make up for.
        threads: CPU threads.
        progress: called with each node's name.

    Returns:
        node name -> its weight, as `quantize_blocks` gives it.
    """
    model = load_ir(graph)
    found = quantize_blocks(model, block, wide8=wide8)
    linears = [x for x in find_linears(model) if x.name in found and found[x.name].bits == 4]
    if not spoken:
        return found
    for some in _turns(linears):
        tensors = sorted({linear.tensor for linear in some})
        inputs = second_moments(graph, spoken, tensors, threads)
        for linear in some:
            progress(linear.name)
            assert linear.weight.const_value is not None
            weight = linear.weight.const_value.numpy()
            size = block_for(len(weight), block)
            assert size is not None
            found[linear.name] = fit(weight, inputs[linear.tensor], size)
    return found


def _turns(linears: Sequence[Linear]) -> list[list[Linear]]:
    """The layers, as many at a time as `HESSIAN_BYTES` holds the moments of."""
    turns: list[list[Linear]] = []
    known: set[str] = set()
    used = 0
    for linear in linears:
        assert linear.weight.const_value is not None
        size = 0 if linear.tensor in known else 4 * linear.weight.const_value.shape.numpy()[0] ** 2
        if not turns or used + size > HESSIAN_BYTES:
            turns.append([])
            known, used = set(), 0
        turns[-1].append(linear)
        known.add(linear.tensor)
        used += size
    return turns


def second_moments(
    graph: Path, spoken: Sequence[Spoken], tensors: Sequence[str], threads: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """How the channels of a decoder's tensors go together: the mean of x xT, f32[K,K].

    Args:
        graph: the float32 decoder.
        spoken: what it reads.
        tensors: names of values [1,T,K] of the graph.
        threads: CPU threads.
    """
    model = load_proto(graph)
    have = {value.name for value in model.graph.output}
    kind = onnx.TensorProto.FLOAT
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, kind, None) for name in tensors if name not in have
    )
    session = inference_session(model.SerializeToString(), threads, graph.parent)
    answered = sum(s.tokens - s.answer for s in spoken)
    before = max(sum(s.answer for s in spoken), 1)
    found: dict[str, NDArray[np.float32]] = {}
    for one in spoken:
        for name, value in zip(
            tensors, session.run(list(tensors), feeds_of(session, one)), strict=True
        ):
            rows = value.reshape(-1, value.shape[-1])
            # A tensor of the last position alone has no rows before the answer.
            at = one.answer if len(rows) == one.tokens else 0
            mean = (1 - ANSWER) / before * (rows[:at].T @ rows[:at])
            mean += ANSWER / answered * (rows[at:].T @ rows[at:])
            found[name] = found[name] + mean if name in found else mean
    return found


def fit(weight: NDArray[np.floating], moments: NDArray[np.floating], block: int) -> BlockWeight:
    """One weight in 4 bits.

    Args:
        weight: f[K,N]; `block` divides K.
        moments: f[K,K] of its input, see `second_moments`.
        block: rows that share a scale.
    """
    power = np.diag(moments).astype(np.float64)
    plain = block_weight(weight, block, power)
    scales = np.repeat(plain.scales, block, axis=0)
    order = np.argsort(-power, kind="stable")
    spread = _spread(moments, power, order)
    left = weight.astype(np.float32)[order]
    steps = scales[order]
    codes = np.empty_like(left)
    for at in range(0, len(left), TOGETHER):
        end = min(at + TOGETHER, len(left))
        errors = np.empty_like(left[at:end])
        for row in range(at, end):
            codes[row] = np.clip(np.rint(left[row] / steps[row]), -8, 7)
            error = (left[row] - codes[row] * steps[row]) / spread[row, row]
            left[row + 1 : end] -= np.outer(spread[row, row + 1 : end], error)
            errors[row - at] = error
        left[end:] -= spread[at:end, end:].T @ errors
    back = np.empty(codes.shape, np.int8)
    back[order] = codes
    return BlockWeight(back, plain.scales, block, 4)


def _spread(
    moments: NDArray[np.floating], power: NDArray[np.float64], order: NDArray[np.intp]
) -> NDArray[np.float32]:
    """The upper Cholesky factor of the inverse moments, rows and columns in order: what a row's
    error is to the rows after it."""
    held = moments.astype(np.float64)[np.ix_(order, order)]
    held[np.diag_indices_from(held)] += max(DAMPING * power.mean(), 1e-30)
    inverse = np.linalg.inv(np.linalg.cholesky(held))
    return np.linalg.cholesky(inverse.T @ inverse).T.astype(np.float32)


def noise(
    weight: NDArray[np.floating], narrow: BlockWeight, moments: NDArray[np.floating]
) -> float:
    """The share of the layer's output power that rounding makes wrong."""
    wide = weight.astype(np.float64)
    error = wide - narrow.dequantized()
    signal = float(np.einsum("kn,kl,ln->", wide, moments, wide, optimize=True))
    return float(np.einsum("kn,kl,ln->", error, moments, error, optimize=True)) / max(signal, 1e-30)
