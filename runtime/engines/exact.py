"""Whether integer products are exact here: a graph of one int8 layer whose sums leave 16 bits.

CPUs without VNNI multiply bytes in pairs and add each pair in 16 bits, where 2 * 255 * 127 does not
fit. Which kernels do so depends on the CPU, the library and its settings, so it is tried.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomag_edge.runtime.engines.engine import Session

PROBE = Path(__file__).with_name("int8_probe.onnx")
"""`x` f32[16,64] -> Q/DQ in steps of 0.01 -> MatMul with int8 weights of 127 * 0.01 [64,64] -> `y`
f32[16,64], in standard ONNX; its test makes it anew."""

LARGEST = 1.27
"""The largest value that the probe's steps reach, as activation and as weight."""


def mentions(model: Path | bytes, name: bytes) -> bool:
    """Whether an ONNX file holds an operator or attribute of that name, which protobuf writes as
    plain text. A graph in which something else is called so is treated alike."""
    if isinstance(model, bytes):
        return name in model
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(name) >= 0


def integer_error(run: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> float:
    """How far an engine's answer to the probe is from exact integer arithmetic, over its scale.

    Args:
        run: x f32[16,64] -> y f32[16,64] of `PROBE`.

    Returns:
        0 where it is exact to float rounding; about 0.5 where pairs of products saturate.
    """
    right = 64 * LARGEST * LARGEST
    error = np.abs(run(np.full((16, 64), LARGEST, np.float32)) - right).max() / right
    return 0.0 if error < 1e-5 else float(error)


def is_exact(session: Session) -> bool:
    """Whether an open session of `PROBE` computes it exactly; closes it."""
    try:
        return integer_error(lambda x: session.run({"x": x})["y"]) == 0
    finally:
        session.close()
