"""Recipe `int4-llm`: a decoder's linear layers as 4-bit integers in blocks, weights only.

Decoding one token reads every weight once, so its time is the weights' size. Activations stay as
they are. A weight [K,N] is cut along K into blocks with one scale each; 4 bits hold -8..7, zero is
0. The integers are searched once (`quantize_blocks`; `gptq` fits them to what the layers read) and
written in either of two forms:

- `as_qdq`: an int4 initialiser behind a DequantizeLinear with `block_size`, standard ONNX from
  opset 21 on; TensorRT, OpenVINO and ONNX Runtime read it, the last turns it into its own form
  while it loads.
- `as_matmulnbits`: `com.microsoft::MatMulNBits`, ONNX Runtime's own form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from geomag_edge.calibration.quantization.linears import Linear, find_linears
from geomag_edge.calibration.quantization.nodes import constant, drop_unread
from geomag_edge.errors import InputError

BLOCKS = (16, 32, 64, 128, 256)
"""Sizes of a block that ONNX Runtime takes; TensorRT takes 64 and 128."""

BLOCK_OPSET = 21
"""The first opset whose DequantizeLinear has blocks and int4."""

CLIPPING = tuple(float(d) for d in np.linspace(7.0, 11.0, 17))
"""Steps that a block's largest magnitude is divided into; above 7.5 the largest are clipped."""


@dataclass(frozen=True)
class BlockWeight:
    """One weight in blocks.

    Attributes:
        codes: int8[K,N], -8..7 or -128..127 (one byte each in memory; packed when written).
        scales: f32[K/block,N].
        block: rows of a block.
        bits: 4 or 8.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    block: int
    bits: int = 4

    def dequantized(self) -> NDArray[np.float32]:
        """f32[K,N], what the runtimes multiply with."""
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(-1, self.block, columns).astype(np.float32)
        return (blocks * self.scales[:, None]).reshape(rows, columns)


def block_for(rows: int, largest: int) -> int | None:
    """The largest block that divides a weight's rows, at most `largest`; None if there is none."""
    return next((b for b in reversed(BLOCKS) if b <= largest and rows % b == 0), None)


def block_weight(
    weight: NDArray[np.floating],
    block: int,
    importance: NDArray[np.floating] | None = None,
    bits: int = 4,
) -> BlockWeight:
    """Quantises one weight, each block with the scale of least squared error.

    Args:
        weight: f[K,N]; `block` divides K.
        block: rows of a block.
        importance: f[K], how much an error in a row of the weight matters: the mean square of the
            activation that it meets. None counts every row the same.
        bits: 4 or 8.
    """
    divisors = CLIPPING if bits == 4 else (127.0,)
    rows, columns = weight.shape
    weigh = np.ones(rows) if importance is None else np.asarray(importance, np.float64)
    # A floor, so that channels which calibration saw dead still get sensible codes.
    weigh = (weigh / max(weigh.mean(), 1e-30) + 1e-3).astype(np.float32)
    weigh = weigh.reshape(-1, block, 1)
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows // block, columns), np.float32)
    step = max(1, (1 << 20) // rows)  # columns at a time: a few MB of scratch
    for at in range(0, columns, step):
        part = weight[:, at : at + step].astype(np.float32).reshape(rows // block, block, -1)
        largest = np.abs(part).max(axis=1, keepdims=True)
        best = np.full(largest.shape, np.inf, np.float32)
        chosen = np.ones_like(largest)
        for divisor in divisors:
            scale = np.where(largest > 0, largest / divisor, 1.0).astype(np.float32)
            error = part - _codes(part, scale, bits) * scale
            error *= error
            error *= weigh
            loss = error.sum(axis=1, keepdims=True)
            better = loss < best
            best = np.where(better, loss, best)
            chosen = np.where(better, scale, chosen)
        found = _codes(part, chosen, bits)
        codes[:, at : at + step] = found.reshape(rows, -1)
        scales[:, at : at + step] = chosen[:, 0]
    return BlockWeight(codes, scales, block, bits)


def _codes(part: NDArray[np.float32], scale: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    limit = 1 << (bits - 1)
    return np.clip(np.rint(part / scale), -limit, limit - 1)


def quantize_blocks(
    model: ir.Model,
    block: int = 128,
    keep: Collection[str] = (),
    wide8: Collection[str] | None = None,
) -> dict[str, BlockWeight]:
    """Searches the scales of every linear layer of a decoder; the graph is not changed.

    Args:
        model: float32 or float16.
        block: the largest block; a weight whose rows it does not divide gets a smaller one.
        keep: names of nodes to leave out.
        wide8: names of nodes that get 8 bits; None gives them to the last layer, whose errors
            nothing evens out and which is read whole for every token.

    Returns:
        node name -> its weight in blocks. Weights with no fitting block are left out.
    """
    if block not in BLOCKS:
        raise InputError(f"blocks of {block} are not supported: choose one of {BLOCKS}")
    if wide8 is None:
        wide8 = last_layers(model)
    found = {}
    for linear in find_linears(model):
        tensor = linear.weight.const_value
        if linear.name in keep or tensor is None or not _is_plain(linear):
            continue
        fitting = block_for(tensor.shape.numpy()[0], block)
        if fitting is not None:
            bits = 8 if linear.name in wide8 else 4
            found[linear.name] = block_weight(tensor.numpy(), fitting, bits=bits)
    return found


def bits_of(model: ir.Model) -> dict[str, int]:
    """node name -> 4 or 8, of every linear layer whose weight `as_qdq` wrote."""
    kinds = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}
    found = {}
    for node in model.graph:
        restored = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] else None
        if restored is None or not restored.attributes.get_int("block_size", 0):
            continue
        codes = restored.inputs[0]
        if codes is not None and codes.const_value is not None:
            found[node.name or ""] = kinds[codes.const_value.dtype]
    return found


def last_layers(model: ir.Model) -> frozenset[str]:
    """The linear layers whose result is an output of the graph: a decoder's head."""
    return frozenset(
        linear.name for linear in find_linears(model) if linear.node.outputs[0].is_graph_output()
    )


def _is_plain(linear: Linear) -> bool:
    """A MatMul: the only linear layer of the supported decoders, and all that both forms take."""
    return linear.node.op_type == "MatMul" and linear.in_axis == 0


def check_opset(model: ir.Model) -> None:
    """Refuses a graph that `as_qdq` could not write.

    Raises:
        InputError: its opset has no blocks.
    """
    opset = model.opset_imports.get("", 1)
    if opset < BLOCK_OPSET:
        raise InputError(
            f"int4 weights in blocks need opset {BLOCK_OPSET} and the graph has {opset}: export "
            "with opset 23 (TensorRT 10.3 reads no int4 in ONNX: use int8 there)"
        )


def as_qdq(model: ir.Model, weights: Mapping[str, BlockWeight]) -> ir.Model:
    """Writes quantised weights as int4 initialisers behind DequantizeLinear, in place.

    Args:
        model: the graph that `weights` was made from, at opset 21 or later.
        weights: of `quantize_blocks`.

    Raises:
        InputError: the graph's opset has no blocks.
    """
    check_opset(model)
    made: dict[str, ir.Value] = {}
    for linear in _named(model, weights):
        name, found = linear.weight.name or "", weights[linear.name]
        if name not in made:
            scales = found.scales.astype(_numpy(linear))
            node = ir.node(
                "DequantizeLinear",
                [
                    _shared(model, f"{name}_int{found.bits}", _integers(found)),
                    _shared(model, f"{name}_scale", ir.Tensor(scales)),
                ],
                {"axis": 0, "block_size": found.block},
                name=f"{name}_dequantize",
            )
            model.graph.insert_before(linear.node, node)
            node.outputs[0].name = f"{name}_dequantized"
            node.outputs[0].type = linear.weight.type
            node.outputs[0].shape = linear.weight.shape
            made[name] = node.outputs[0]
        linear.node.replace_input_with(1, made[name])
        drop_unread(model, [linear.weight])
    return model


def as_matmulnbits(
    model: ir.Model, weights: Mapping[str, BlockWeight], accuracy_level: int = 4
) -> ir.Model:
    """Writes quantised weights as `com.microsoft::MatMulNBits`, in place.

    Args:
        model: the graph that `weights` was made from.
        weights: of `quantize_blocks`.
        accuracy_level: 4 multiplies in int8 (activations quantised by row and block while it
            runs), 1 in float32.
    """
    model.opset_imports["com.microsoft"] = 1
    for linear in _named(model, weights):
        name, found = linear.weight.name or "", weights[linear.name]
        rows, columns = found.codes.shape
        scales = np.ascontiguousarray(found.scales.T).astype(_numpy(linear))
        output = linear.node.outputs[0]
        node = ir.node(
            "MatMulNBits",
            [
                linear.activation,
                _shared(model, f"{name}_nbits", ir.Tensor(_nibbles(found))),
                _shared(model, f"{name}_nbits_scale", ir.Tensor(scales)),
            ],
            {
                "K": rows,
                "N": columns,
                "bits": found.bits,
                "block_size": found.block,
                "accuracy_level": accuracy_level,
            },
            domain="com.microsoft",
            name=linear.name,
        )
        result = node.outputs[0]
        result.type, result.shape, result.name = output.type, output.shape, output.name
        ir.convenience.replace_nodes_and_values(
            model.graph, linear.node, [linear.node], [node], [output], [result]
        )
        drop_unread(model, [linear.weight])
    return model


def _named(model: ir.Model, weights: Mapping[str, BlockWeight]) -> list[Linear]:
    """The layers that `weights` names.

    Raises:
        InputError: it names a layer that the graph does not have, or has in another shape.
    """
    linears = {linear.name: linear for linear in find_linears(model)}
    for name, found in weights.items():
        tensor = linears[name].weight.const_value if name in linears else None
        if tensor is None or tuple(tensor.shape.numpy()) != found.codes.shape:
            raise InputError(
                f"the graph has no linear layer {name!r} of {found.codes.shape[0]} x "
                f"{found.codes.shape[1]}: the weights were quantised from another graph"
            )
    return [linears[name] for name in weights]


def _numpy(linear: Linear) -> np.dtype:
    assert linear.weight.const_value is not None
    return linear.weight.const_value.dtype.numpy()


def _integers(weight: BlockWeight) -> ir.TensorProtocol:
    """int4: two codes a byte in the order of memory, the first in the low half."""
    if weight.bits == 8:
        return ir.Tensor(weight.codes)
    flat = weight.codes.reshape(-1).view(np.uint8) & 0xF
    packed = flat[0::2] | (flat[1::2] << 4)
    return ir.PackedTensor(packed, ir.DataType.INT4, shape=ir.Shape(weight.codes.shape))


def _nibbles(weight: BlockWeight) -> NDArray[np.uint8]:
    """u8[N,K/block,bytes]: codes shifted to 0 and up, along K; the first of two is the low half."""
    rows, columns = weight.codes.shape
    shifted = np.ascontiguousarray(weight.codes.T).astype(np.int16) + (1 << (weight.bits - 1))
    codes = shifted.astype(np.uint8)
    packed = codes if weight.bits == 8 else np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << 4)
    return packed.reshape(columns, rows // weight.block, -1)


def _shared(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A constant that every layer with the same weight reads."""
    return model.graph.initializers.get(name) or constant(model, name, tensor)
