"""Targets: what a machine's runtime can take, as data.

Only what the exporter needs stands here so far; see the README for what has run where.
"""

from __future__ import annotations

from dataclasses import dataclass

from geomag_edge.errors import InputError


@dataclass(frozen=True)
class Target:
    """What graphs for a target look like.

    Attributes:
        opset: ONNX opset of the graphs.
        note: what runs there.
    """

    name: str
    opset: int
    note: str


TARGETS = {
    t.name: t
    for t in (
        Target("portable", 23, "ONNX Runtime >= 1.23, OpenVINO >= 2026.4"),
        Target("older", 20, "runtimes without the Attention operator: attention decomposed"),
        Target("jetpack6", 20, "TensorRT 10.3 on Orin: attention decomposed"),
        Target("jetpack7", 20, "TensorRT 10.13 on Thor: attention decomposed"),
    )
}


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        InputError: no such target.
    """
    if name not in TARGETS:
        raise InputError(f"unknown target {name!r}: choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
