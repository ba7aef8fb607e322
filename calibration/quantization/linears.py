"""Which nodes of a graph are linear layers: the only ones that are quantised to 8 bits.

A linear layer is a MatMul, Gemm, Conv or ConvTranspose of an activation with a constant weight.
Attention's own products have no constant weight; residual adds, norms and softmax are other
operators: all of these stay wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

LINEAR_OPS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


@dataclass(frozen=True)
class Linear:
    """One linear layer.

    Attributes:
        node: the node; its second input is the weight.
        activation: the activation that it reads.
        weight: the weight, an initialiser.
        out_axis: the weight's axis of output channels.
        in_axis: the weight's axis of input channels (per group for a grouped convolution).
        channel_axis: the activation's axis of input channels.
    """

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    out_axis: int
    in_axis: int
    channel_axis: int

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or self.node.outputs[0].name or ""

    @property
    def tensor(self) -> str:
        """The name by which the activation's scale is known."""
        return source(self.activation).name or ""


def source(value: ir.Value) -> ir.Value:
    """The value before any Cast: a cast changes how wide a tensor is, not its range."""
    node = value.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def find_linears(model: ir.Model) -> list[Linear]:
    """The graph's linear layers, in its order.

    A grouped ConvTranspose is left out: its output channels lie along two axes of the weight.
    """
    found = [_linear(node) for node in model.graph if node.op_type in LINEAR_OPS]
    return [linear for linear in found if linear is not None]


def _linear(node: ir.Node) -> Linear | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None or not weight.is_initializer():
        return None
    if activation.is_initializer() or weight.const_value is None:
        return None
    if weight.const_value.dtype not in FLOATS or weight.is_graph_input():
        return None
    rank = len(weight.const_value.shape)
    attributes = node.attributes
    if node.op_type == "MatMul":
        return None if rank != 2 else Linear(node, activation, weight, 1, 0, -1)
    if node.op_type == "Gemm":
        if attributes.get_int("transA", 0):
            return None
        turned = bool(attributes.get_int("transB", 0))
        out_axis, in_axis = (0, 1) if turned else (1, 0)
        return Linear(node, activation, weight, out_axis, in_axis, -1)
    if node.op_type == "Conv":
        return Linear(node, activation, weight, 0, 1, 1)
    if attributes.get_int("group", 1) != 1:
        return None
    return Linear(node, activation, weight, 1, 0, 1)
