"""llm.onnx with a cache of fixed capacity, updated in place, for builders that know TensorScatter.

The portable graph concatenates: every step copies the whole cache, and every step has other shapes.
Here the cache has its full length from the start and a step writes its own rows into it, so inputs
and outputs are the same memory and all decode steps have the same shapes, which lets a CUDA graph
be recorded once. Attention then reads the whole capacity, masked, whatever the past's length is.

Needs `onnx`; reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.disk.onnx_model import load_proto
from geomag_edge.errors import EngineError, MissingExtraError
from geomag_edge.graphs import PAST_PREFIX, PRESENT_PREFIX, WRITE_INDICES
from geomag_edge.targets import Target

if TYPE_CHECKING:
    import onnx

OPERATOR = "TensorScatter"
OPSET = 24
"""The first that has the operator."""

LEAST_OPSET = 23
"""From here on the other operators of the graph mean the same in `OPSET`."""


def check_target(target: Target) -> None:
    """Refuses a target that cannot update a cache in place.

    Raises:
        EngineError: says which cache it takes.
    """
    if target.operators is None or OPERATOR not in target.operators:
        raise EngineError(
            f"target {target.name!r} has no {OPERATOR}, which a fixed cache needs: build with "
            "--cache growing"
        )


def fixed_ports(ports: Iterable[Mapping[str, Any]], capacity: int) -> list[dict[str, Any]]:
    """The inputs or outputs of the LLM with a fixed cache, from those of the growing one."""
    sizes = {"N": capacity, "N+T": capacity}
    made = [dict(p) | {"axes": [sizes.get(axis, axis) for axis in p["axes"]]} for p in ports]
    if any(p["name"].startswith(PAST_PREFIX) for p in made):
        made.append({"name": WRITE_INDICES, "dtype": "int64", "axes": ["B"]})
    return made


def fixed_cache(path: Path, capacity: int) -> bytes:
    """The graph with a fixed cache, serialised; its weights stay where the file has them.

    Args:
        path: llm.onnx with a growing cache.
        capacity: tokens that the cache holds.

    Raises:
        EngineError: not such a graph, or of too old an opset.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as e:
        raise MissingExtraError(
            "a fixed cache is made with the package 'onnx', which is not installed: "
            "pip install onnx, or build with --cache growing"
        ) from e
    model = load_proto(path)
    own = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if any(entry.version < LEAST_OPSET for entry in own):
        raise EngineError(
            f"{path.name} has opset {own[0].version}, a fixed cache needs {LEAST_OPSET}: export "
            "for a target of that opset, or build with --cache growing"
        )
    for entry in own:
        entry.version = max(entry.version, OPSET)
    _write_in_place(model.graph, path)
    _count_from_the_write(model.graph, path)
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name.startswith((PAST_PREFIX, PRESENT_PREFIX)):
            _fix(dims[2], capacity)
        elif value.name == "attention_mask":
            _fix(dims[1], capacity)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(WRITE_INDICES, onnx.TensorProto.INT64, ["B"])
    )
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def _write_in_place(graph: onnx.GraphProto, path: Path) -> None:
    """Concatenations to the past become writes into it."""
    import onnx

    past = {v.name for v in graph.input if v.name.startswith(PAST_PREFIX)}
    for node in graph.node:
        if node.op_type == "Concat" and len(node.input) == 2 and node.input[0] in past:
            past.remove(node.input[0])
            node.op_type = OPERATOR
            node.input.append(WRITE_INDICES)
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("axis", 2))
    if past:
        raise EngineError(f"{path.name} does not concatenate {min(past)}: export the bundle again")


def _count_from_the_write(graph: onnx.GraphProto, path: Path) -> None:
    """The first new token's position: it was the mask's length less the new tokens'."""
    import onnx

    maker = {o: n for n in graph.node for o in n.output}

    def size_of(name: str) -> str:
        """The input whose size a number is, or nothing."""
        node = maker.get(name)
        while node is not None and node.op_type in ("Squeeze", "Cast", "Reshape", "Gather"):
            node = maker.get(node.input[0])
        return node.input[0] if node is not None and node.op_type == "Shape" else ""

    sizes = ["attention_mask", "inputs_embeds"]
    found = [n for n in graph.node if n.op_type == "Sub" and [size_of(i) for i in n.input] == sizes]
    if len(found) != 1:
        raise EngineError(
            f"{path.name} counts positions in another way than expected: export the bundle again"
        )
    first = "first_prompt"
    graph.initializer.append(onnx.helper.make_tensor(first, onnx.TensorProto.INT64, [], [0]))
    found[0].op_type = "Gather"  # all prompts of a batch are equally long: padded
    found[0].input[:] = [WRITE_INDICES, first]


def _fix(dim: Any, size: int) -> None:
    dim.Clear()
    dim.dim_value = size
