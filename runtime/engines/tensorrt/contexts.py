"""How contexts are made of an engine: by one call in full TensorRT, by a configuration in TensorRT
for RTX, which compiles kernels on the machine where an engine runs.

Two things are said there. What was compiled is kept in the user's cache folder, so that the next
process does not compile it again. And when kernels are specialised by shape: the language model's
never, as a growing cache has a new one at every step, and each would start a compilation of its
own; the others' at once, as by default (later, beside the work) a CUDA graph would hold the kernels
that are to be replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

from geomag_edge.disk.staging import staged_file
from geomag_edge.runtime.engines.auto.remembered import cache_root
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour
from geomag_edge.runtime.engines.tensorrt.record import EngineFile

MOST_BYTES = 1 << 30
"""No file of kernels is as large; one that is was not written here."""


class Contexts:
    """Makes the contexts of one opened engine; `keep` before it goes.

    Args:
        flavour: what opened it.
        engine: the opened engine.
        file: its record; the sha256 in it names the kept kernels.
        graph: the graph's name.
        sm: the GPU's compute capability, for which the kernels are.
    """

    def __init__(self, flavour: Flavour, engine: Any, file: EngineFile, graph: str, sm: str):
        module = flavour.module
        self._engine, self._strategy = engine, module.ExecutionContextAllocationStrategy
        self._config = self._cache = None
        self._place, self._known = place_of(flavour, file, sm), b""
        if not hasattr(engine, "create_runtime_config") or flavour.name != "tensorrt_rtx":
            return
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(self._strategy.USER_MANAGED)
        kinds = module.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            kinds.NONE if graph == "llm" else kinds.EAGER
        )
        self._cache = self._config.create_runtime_cache()
        self._known = kernels_in(self._place)
        if self._known and not self._cache.deserialize(self._known):
            self._known = b""  # of another driver or GPU, as TensorRT finds: compile again
        self._config.set_runtime_cache(self._cache)

    def make(self) -> Any:
        """A context whose memory the caller gives; None if TensorRT makes none."""
        if self._config is not None:
            return self._engine.create_execution_context(self._config)
        return self._engine.create_execution_context(self._strategy.USER_MANAGED)

    def keep(self) -> None:
        """Writes what was compiled, if that is new; a cache that cannot be kept costs time only."""
        if self._cache is None or self._place is None:
            return
        kernels = self._cache.serialize()
        data = b"" if kernels is None else bytes(memoryview(kernels))
        if not data or data == self._known:
            return
        with contextlib.suppress(OSError):
            self._place.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(self._place) as part:
                part.write_bytes(_digest(data) + data)
            self._known = data


def place_of(flavour: Flavour, file: EngineFile, sm: str) -> Path | None:
    """Where an engine's kernels are kept: every engine, version and GPU has a file of its own."""
    root = cache_root()
    name = re.sub(r"[^\w.]+", "-", f"{file.sha256[:32]}-{flavour.name}-{flavour.version}-{sm}")
    return root and root / "kernels" / f"{name}.cache"


def kernels_in(place: Path | None) -> bytes:
    """A file's kernels, or nothing where it is not whole: TensorRT need not see what is damaged."""
    try:
        if place is None or place.stat().st_size > MOST_BYTES:
            return b""
        data = place.read_bytes()
    except OSError:
        return b""
    digest, kernels = data[: hashlib.sha256().digest_size], data[hashlib.sha256().digest_size :]
    return kernels if digest == _digest(kernels) else b""


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
