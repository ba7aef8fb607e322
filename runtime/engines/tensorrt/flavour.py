"""The two Python modules that build and load engines: `tensorrt` and `tensorrt_rtx`.

Their APIs differ by version, so everything else asks for names and never for numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from geomag_edge.errors import EngineError, MissingExtraError
from geomag_edge.targets import Target

INSTALL = {
    "tensorrt": "on a Jetson it comes with JetPack (apt install tensorrt, then a virtual "
    "environment with --system-site-packages); elsewhere it comes from NVIDIA's package index",
    "tensorrt_rtx": 'pip install "geomag-edge[tensorrt-rtx]"',
}


@dataclass(frozen=True)
class Flavour:
    """An imported engine module and its version."""

    name: str
    module: Any
    version: str


T = TypeVar("T")


def started(flavour: Flavour, make: Callable[[], T]) -> T:
    """A builder or runtime, which starts CUDA.

    Raises:
        EngineError: it does not start; the bindings then raise a TypeError of their own.
    """
    try:
        return make()
    except (TypeError, RuntimeError) as e:
        raise EngineError(
            f"{flavour.name} {flavour.version} does not start here ({str(e).splitlines()[0]}): the "
            "driver may be older than its CUDA, or the GPU's memory is full (nvidia-smi)"
        ) from e


def load_flavour(name: str) -> Flavour:
    """Imports a flavour.

    Raises:
        MissingExtraError: it is not installed, or is a stub without its libraries.
    """
    try:
        module = importlib.import_module(name)
        version = str(module.__version__)
        module.Builder, module.OnnxParser  # noqa: B018  (PyPI's `tensorrt` may be an empty shell)
    except (ImportError, AttributeError, OSError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise MissingExtraError(f"{name} cannot be imported ({reason}): {INSTALL[name]}") from e
    return Flavour(name, module, version)


def flavour_for(target: Target) -> Flavour:
    """The flavour that builds a target's engines, if it is here in the right version.

    Raises:
        EngineError: the target has no engines, or its flavour's version here is out of its range.
        MissingExtraError: its flavour is not installed.
    """
    if target.flavour is None or target.versions is None:
        raise EngineError(
            f"target {target.name!r} has no engines to build: its graphs run as they are"
        )
    flavour = load_flavour(target.flavour)
    if not target.takes_version(flavour.version):
        low, high = target.versions
        raise EngineError(
            f"target {target.name!r} wants {target.flavour} from {low} and before {high}, "
            f"{flavour.version} is installed: build on the device itself, or choose the target "
            "that fits (`geomag-edge targets`)"
        )
    return flavour
