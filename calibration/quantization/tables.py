"""Embedding tables as int8 rows with one scale a row.

A table is only looked up, never multiplied, so its rows can be narrow in the file and in memory:
what a look-up reads is `int8 row * scale`, off by at most 1/254 of the row's largest magnitude.
Int8 rows and their scales are gathered: nothing but the rows asked for is read, in ONNX Runtime and
OpenVINO.

TensorRT gets its tables in half. It refuses int8 constants that feed anything but a
DequantizeLinear, and one in front of the Gather is the whole table's: TensorRT for RTX fuses the
two (the builder's figures), of others nobody has seen it, and without that each token would expand
every row (20 ms at 32,000 rows in ONNX Runtime).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

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
