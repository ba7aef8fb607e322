"""Embedding tables as int8 rows with one scale a row.

A table is only looked up, never multiplied, so its rows can be narrow in the file and in memory:
what a look-up reads is `int8 row * scale`, off by at most 1/254 of the row's largest magnitude.
Two spellings in standard operators, of the same integers and scales:

- `quantize_tables` gathers int8 rows and their scales: nothing but the rows asked for is read, in
  ONNX Runtime and OpenVINO. TensorRT refuses it: its int8 constants may only feed a
  DequantizeLinear.
- `dequantize_first` puts a DequantizeLinear before the Gather: TensorRT keeps the integers, and
  ONNX Runtime would dequantise the whole table for every token (20 ms at 32,000 rows).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from .nodes import constant

LEVELS = 127

MIN_ROWS = 256
"""Below this a table is a handful of positions or levels, and nothing is won."""


def quantize_tables(model: ir.Model, keep: Collection[str] = ()) -> list[str]:
    """Turns the graph's look-up tables into int8 rows, in place.

    A table is a float initialiser [rows,columns] with at least `MIN_ROWS` rows that nothing but
    `Gather` along axis 0 reads (a table that a linear layer shares stays whole).

    Args:
        model: float32; cast to half afterwards, if at all.
        keep: names of Gather nodes whose tables stay wide.

    Returns:
        The names of the Gather nodes that read narrow tables now.
    """
    changed = []
    for table in [v for v in model.graph.initializers.values() if _is_table(v, keep)]:
        assert table.const_value is not None
        rows, scales = quantize_rows(table.const_value.numpy())
        dtype = table.const_value.dtype
        narrow = constant(model, f"{table.name}_int8", ir.Tensor(rows))
        scale = constant(model, f"{table.name}_scale", ir.Tensor(scales[:, None]))
        for node, _ in list(table.uses()):
            _look_up(model, node, narrow, scale, dtype)
            changed.append(node.name or "")
        model.graph.initializers.pop(table.name or "", None)
    return changed


def dequantize_first(model: ir.Model) -> list[str]:
    """Turns what `quantize_tables` wrote into the spelling that TensorRT takes, in place.

    Args:
        model: the graph, in float32 or after `to_half`.

    Returns:
        The names of the nodes that multiplied by the scale, whose results are made by Gather now.
    """
    changed = []
    for node in list(model.graph):
        found = _rows_and_scales(node)
        if found is None:
            continue
        rows, ids, scale = found
        assert scale.const_value is not None
        name, result = rows.name, node.outputs[0]
        restored = model.graph.initializers.get(f"{name}_steps")
        if restored is None:
            steps = ir.Tensor(scale.const_value.numpy()[:, 0].copy())
            restored = constant(model, f"{name}_steps", steps)
        table = ir.node("DequantizeLinear", [rows, restored], {"axis": 0}, name=f"{node.name}_all")
        table.outputs[0].name = f"{result.name}_table"
        picked = ir.node("Gather", [table.outputs[0], ids], {"axis": 0}, name=node.name)
        made = picked.outputs[0]
        made.name, made.type, made.shape = result.name, result.type, result.shape
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [table, picked], [result], [made]
        )
        changed.append(node.name or "")
    passes.RemoveUnusedNodesPass()(model)
    return changed


def _rows_and_scales(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Of `Mul(Cast(Gather(rows, ids)), Gather(scales, ids))`: rows, ids, scales."""
    if node.op_type != "Mul":
        return None
    left, right = (_made_by(value) for value in node.inputs)
    if left is None or right is None or (left.op_type, right.op_type) != ("Cast", "Gather"):
        return None
    picked = _made_by(left.inputs[0])
    if picked is None or picked.op_type != "Gather" or picked.inputs[1] is not right.inputs[1]:
        return None
    rows, ids, scale = picked.inputs[0], picked.inputs[1], right.inputs[0]
    if rows is None or ids is None or scale is None or not rows.is_initializer():
        return None
    return (rows, ids, scale) if rows.dtype == ir.DataType.INT8 else None


def _made_by(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def quantize_rows(
    table: NDArray[np.floating],
) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
    """f[rows,columns] -> int8[rows,columns] and scales of the table's type, f[rows]."""
    rows = np.empty(table.shape, np.int8)
    scales = np.empty(len(table), table.dtype)
    step = max(1, (1 << 20) // table.shape[1])
    for at in range(0, len(table), step):  # a few MB of scratch
        part = table[at : at + step].astype(np.float32)
        scale = (np.abs(part).max(axis=1, initial=0.0) / LEVELS).astype(table.dtype)
        scale[scale == 0] = 1  # a row of zeros, or too small for the type
        scales[at : at + step] = scale
        codes = np.rint(part / scale[:, None].astype(np.float32))
        rows[at : at + step] = np.clip(codes, -LEVELS, LEVELS)
    return rows, scales


def _is_table(value: ir.Value, keep: Collection[str]) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    if len(tensor.shape) != 2 or tensor.shape.numpy()[0] < MIN_ROWS or value.is_graph_output():
        return False
    uses = value.uses()
    return bool(uses) and all(
        node.op_type == "Gather"
        and index == 0
        and node.attributes.get_int("axis", 0) == 0
        and node.name not in keep
        for node, index in uses
    )


def _look_up(
    model: ir.Model, node: ir.Node, rows: ir.Value, scale: ir.Value, dtype: ir.DataType
) -> None:
    """Gather(table) -> Cast(Gather(rows)) * Gather(scales)."""
    ids, result = node.inputs[1], node.outputs[0]
    name = result.name or node.name
    picked = ir.node("Gather", [rows, ids], {"axis": 0}, name=f"{node.name}_rows")
    wide = ir.node("Cast", [picked.outputs[0]], {"to": int(dtype)}, name=f"{node.name}_wide")
    steps = ir.node("Gather", [scale, ids], {"axis": 0}, name=f"{node.name}_scales")
    scaled = ir.node("Mul", [wide.outputs[0], steps.outputs[0]], name=node.name)
    for made, suffix in ((picked, "rows"), (wide, "wide"), (steps, "scales")):
        made.outputs[0].name = f"{name}_{suffix}"
    made_result = scaled.outputs[0]
    made_result.name, made_result.type = name, ir.TensorType(dtype)
    made_result.shape = result.shape
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [picked, wide, steps, scaled], [result], [made_result]
    )
