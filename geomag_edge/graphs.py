"""The graphs' names on the wire: inputs, outputs, axes, types and tolerances, declared once.

Used by the exporter, the runtime and the tests. KV names follow the Hugging Face / ONNX Runtime
convention, so other tools can load the LLM graph.

Axes: n views, P patches (G x G), K boxes, B prompts, T new tokens, N past tokens, m mask queries,
q pooled tokens, L prompt ids. Named axes in `DYNAMIC` vary at run time; all others are fixed by
the model's config.
"""

from __future__ import annotations

from dataclasses import dataclass

DYNAMIC = frozenset({"n", "K", "B", "T", "N", "N+T", "m", "q", "L", "H", "W"})


@dataclass(frozen=True)
class Port:
    """One input or output: `axes` are names or fixed sizes; `dtype` is numpy's, `float` = the
    graph's own precision."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class GraphSpec:
    """A graph's contract."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def file(self) -> str:
        """The graph's file name."""
        return f"{self.name}.onnx"

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return [p.name for p in self.inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [p.name for p in self.outputs]


ENCODER = GraphSpec(
    "encoder",
    (Port("views", "float", ("n", 3, "S", "S")),),
    (
        Port("tokens", "float", ("n", "P", "Dv")),
        Port("embeds", "float", ("n", "P", "De")),
        Port("features", "float", ("n", "Cf", "F", "F")),
    ),
)

_SELECTED = (
    Port("granularity", "float", (1, 3)),
    Port("relevance", "float32", ("G", "G")),
    Port("boxes", "float32", ("max_crops", 4)),
    Port("scores", "float32", ("max_crops",)),
)

PSC = GraphSpec(
    "psc",
    (
        Port("image", "uint8", ("H", "W", 3)),
        Port("embeds", "float", (1, "P", "De")),
        Port("prompt_ids", "int64", (1, "L")),
    ),
    (*_SELECTED, Port("crops", "float32", ("max_crops", 3, "S", "S"))),
)

PSC_SELECT = GraphSpec(
    "psc_select",
    (
        Port("embeds", "float", (1, "P", "De")),
        Port("prompt_ids", "int64", (1, "L")),
        Port("view_box", "float32", (4,)),
        Port("image_shape", "int64", (3,)),
    ),
    _SELECTED,
)

PROJECTOR = GraphSpec(
    "projector",
    (
        Port("tokens", "float", ("n", "P", "Dv")),
        Port("pooling", "float", ("q", "P")),
        Port("positions", "float32", ("n", "q", 5)),
    ),
    (Port("visual", "float", ("n", "q", "D")),),
)

EMBED = GraphSpec(
    "embed",
    (Port("input_ids", "int64", ("B", "T")),),
    (Port("inputs_embeds", "float", ("B", "T", "D")),),
)

MASK_HEAD = GraphSpec(
    "mask_head",
    (Port("features", "float", ("n", "Cf", "F", "F")), Port("queries", "float", ("m", "D"))),
    (Port("mask_logits", "float", ("m", "n", "M", "M")), Port("quality", "float", ("m", "n"))),
)


def port_records(ports: tuple[Port, ...], wide: str) -> list[dict]:
    """A contract's ports as a manifest lists them, `float` resolved to numpy's name `wide`."""
    return [
        {"name": p.name, "dtype": wide if p.dtype == "float" else p.dtype, "axes": list(p.axes)}
        for p in ports
    ]


PAST_PREFIX, PRESENT_PREFIX = "past_key_values.", "present."

WRITE_INDICES = "write_indices"
"""int64 [B]: tokens that a cache of fixed capacity holds already; an input where there is one."""


def past_names(layers: int) -> list[str]:
    """`past_key_values.{i}.key`, `past_key_values.{i}.value` of each layer."""
    return [f"{PAST_PREFIX}{i}.{part}" for i in range(layers) for part in ("key", "value")]


def present_names(layers: int) -> list[str]:
    """`present.{i}.key`, `present.{i}.value` of each layer."""
    return [f"{PRESENT_PREFIX}{i}.{part}" for i in range(layers) for part in ("key", "value")]


def llm_spec(layers: int) -> GraphSpec:
    """The LLM's contract for a number of layers."""
    past = tuple(Port(n, "float", ("B", "Hkv", "N", "Dh")) for n in past_names(layers))
    present = tuple(Port(n, "float", ("B", "Hkv", "N+T", "Dh")) for n in present_names(layers))
    return GraphSpec(
        "llm",
        (
            Port("inputs_embeds", "float", ("B", "T", "D")),
            Port("attention_mask", "int64", ("B", "N+T")),
            Port("position_ids", "int64", ("B", "T")),
            *past,
        ),
        (
            Port("logits", "float", ("B", 1, "V")),
            Port("hidden_states", "float", ("B", "T", "D")),
            *present,
        ),
    )


def all_graphs(layers: int) -> list[GraphSpec]:
    """Every graph of a bundle, in the order of the chain."""
    return [ENCODER, PSC, PSC_SELECT, PROJECTOR, EMBED, llm_spec(layers), MASK_HEAD]


CHAIN = ("encoder", "psc_select", "projector", "embed", "llm", "mask_head")
"""The graphs that the runtime's chain opens; `psc` is for tools that want one self-contained op."""


FORMS = ("onnxruntime", "openvino", "tensorrt")
"""Runtimes for which a graph may have a file of its own (int4 weights, say: MatMulNBits for ONNX
Runtime, Q/DQ in blocks for TensorRT); the portable file serves all others."""


@dataclass(frozen=True)
class Tolerance:
    """What parity allows. `relative` is the max abs error over the reference output's scale
    (its largest magnitude), per output."""

    relative: float
    mask_iou: float
    tokens_equal: bool


# Narrow precisions are judged by their answers (`calibration.gate`); past these, a graph is broken.
TOLERANCES = {
    "fp32": Tolerance(relative=1e-4, mask_iou=0.999, tokens_equal=True),
    "fp16": Tolerance(relative=3e-2, mask_iou=0.98, tokens_equal=False),
    "int8": Tolerance(relative=0.35, mask_iou=0.8, tokens_equal=False),
    "int4-llm": Tolerance(relative=0.6, mask_iou=0.8, tokens_equal=False),
    "int8+int4-llm": Tolerance(relative=0.6, mask_iou=0.8, tokens_equal=False),
    "fp8": Tolerance(relative=0.35, mask_iou=0.8, tokens_equal=False),
    "bf16": Tolerance(relative=3e-2, mask_iou=0.98, tokens_equal=False),
    "int8+bf16": Tolerance(relative=0.35, mask_iou=0.8, tokens_equal=False),
    "int8+int4-llm+bf16": Tolerance(relative=0.6, mask_iou=0.8, tokens_equal=False),
}
