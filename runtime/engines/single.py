"""Opening one engine by its name; `auto`, which opens several of these, is above (`opening`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from geomag_edge.errors import EngineError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.engine import ANY, BF16, BF16_ENGINES, Engine, graph_set

# Each engine's libraries are imported when it is opened, and not before.


def _torch(bundle: Bundle, precision: str, threads: int | None, checkpoint: Path | None) -> Engine:
    from geomag_edge.runtime.engines.torch_engine import TorchEngine

    return TorchEngine.open(bundle, precision, threads, checkpoint)


def _ort(bundle: Bundle, precision: str, threads: int | None, _: Path | None) -> Engine:
    from geomag_edge.runtime.engines.ort import OrtEngine

    return OrtEngine(bundle, precision, threads)


def _openvino(bundle: Bundle, precision: str, threads: int | None, _: Path | None) -> Engine:
    from geomag_edge.runtime.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(bundle, precision, threads)


def _ort_cuda(bundle: Bundle, precision: str, _: int | None, __: Path | None) -> Engine:
    from geomag_edge.runtime.engines.ort_cuda import OrtCudaEngine

    return OrtCudaEngine(bundle, precision)


def _tensorrt(flavour: str) -> Callable[[Bundle, str, int | None, Path | None], Engine]:
    def opened(bundle: Bundle, precision: str, _: int | None, __: Path | None) -> Engine:
        from geomag_edge.runtime.engines.tensorrt.engine import TensorRtEngine

        return TensorRtEngine(flavour, bundle, precision)

    return opened


OPENERS = {
    "torch": _torch,
    "ort-cpu": _ort,
    "openvino": _openvino,
    "ort-cuda": _ort_cuda,
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
}


def open_single(
    name: str,
    bundle: Bundle,
    precision: str,
    threads: int | None = None,
    checkpoint: Path | None = None,
) -> Engine:
    """Opens an engine on a bundle; see `open_engine`, which checks the arguments.

    Raises:
        EngineError: it lacks the precision, or is not able to run here.
    """
    if precision == ANY:
        raise EngineError(
            f"precision {ANY} is for engine auto: name one of the bundle's for {name}"
        )
    if graph_set(bundle, precision) != precision and name not in BF16_ENGINES:
        raise EngineError(
            f"{name} has no {BF16}: --engine openvino runs a bundle's fp32 graphs in bfloat16"
        )
    return OPENERS[name](bundle, precision, threads, checkpoint)
