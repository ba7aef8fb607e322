"""One module -> one ONNX file, by its contract: requires -> do -> ensures."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from geomag_edge.errors import ExportError
from geomag_edge.graphs import DYNAMIC, GraphSpec, Port

OPSETS = (20, 23)
"""20: attention decomposed, LayerNormalization whole. 23: fused Attention and RMSNormalization."""


@dataclass(frozen=True)
class GraphExport:
    """What one graph is made from: its contract, its module, and example inputs.

    Examples have sizes above 1 on every dynamic axis, so that no axis is taken for a constant.
    """

    spec: GraphSpec
    module: nn.Module
    example: tuple[torch.Tensor, ...]


def dynamic_axes(port: Port) -> dict[int, Any]:
    """The axes of a port that vary at run time, in the form that torch.export takes."""
    return {
        axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(port.axes) if name in DYNAMIC
    }


def export_graph(unit: GraphExport, folder: Path, opset: int) -> Path:
    """Exports one graph to `folder/<name>.onnx` with external data beside it.

    Requires: example inputs in the order of the contract.
    Ensures: inputs and outputs named as in the contract, dynamic axes named, a valid model.

    Raises:
        ExportError: the exporter or the checker refuses, or a contract is broken.
    """
    spec = unit.spec
    shapes = tuple(dynamic_axes(port) for port in spec.inputs)
    path = folder / spec.file
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                unit.module,
                unit.example,
                dynamo=True,
                opset_version=opset,
                input_names=spec.input_names,
                output_names=spec.output_names,
                dynamic_shapes=_match_arguments(unit.module, shapes),
                verbose=False,
            )
            program.save(str(path), external_data=True)
            # The rewriter's rules remember the last graph they saw; let them not keep its weights.
            for value in program.model.graph.initializers.values():
                value.const_value = None
    except Exception as e:
        raise ExportError(f"graph {spec.name} could not be exported: {_root_cause(e)}") from e
    del program
    finish(path, spec)
    return path


def _match_arguments(module: nn.Module, shapes: tuple[dict[int, Any], ...]) -> Any:
    """torch.export nests the shapes of `*args`; `cache` is the only variadic argument here."""
    names = list(inspect.signature(module.forward).parameters.values())
    fixed = [p for p in names if p.kind is not p.VAR_POSITIONAL]
    if len(fixed) == len(names):
        return shapes
    return (*shapes[: len(fixed)], shapes[len(fixed) :])


def finish(path: Path, spec: GraphSpec) -> None:
    """Names the axes as the contract does, then checks the file.

    Raises:
        ExportError: names differ from the contract, or `onnx.checker` refuses.
    """
    model = onnx.load(str(path), load_external_data=False)
    for ports, values in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
        have = [v.name for v in values]
        if have != [p.name for p in ports]:
            raise ExportError(f"graph {spec.name} has {have}, its contract says {spec}")
        for port, value in zip(ports, values, strict=True):
            dims = value.type.tensor_type.shape.dim
            for axis, dim in zip(port.axes, dims, strict=True):
                if axis in DYNAMIC:
                    dim.dim_param = str(axis)
                elif not dim.HasField("dim_value"):
                    raise ExportError(
                        f"graph {spec.name}: axis {axis} of {port.name} should be fixed and is "
                        f"{dim.dim_param or 'unknown'}"
                    )
    del model.graph.value_info[:]  # its names are the exporter's; inference restores them
    model.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]  # source paths of the exporting machine
        node.doc_string = ""
    onnx.save_model(model, str(path))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as e:
        reason = str(e).strip().splitlines()[0]
        raise ExportError(f"graph {spec.name} is not valid ONNX: {reason}") from e


def _root_cause(e: BaseException) -> str:
    """The first line of the exception that the exporter's own ones were raised from."""
    while e.__cause__ is not None:
        e = e.__cause__
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's chatter off the screen; its errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
