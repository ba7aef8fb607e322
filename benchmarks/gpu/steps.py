"""The steps of `gpu_check`, in the order in which they lean on each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from geomag_edge.benchmarks.gpu import basics, engines, facts
from geomag_edge.benchmarks.gpu.outcome import Result
from geomag_edge.errors import MissingExtraError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.engine import GPU_ENGINES
from geomag_edge.runtime.engines.tensorrt.fitting import FLAVOURS

BUNDLE = "bundle"
"""Among what a step needs: that a bundle was given."""
BUILD = 6
"""How many times as long as any other step a build may take."""


@dataclass(frozen=True)
class Settings:
    """What was asked for, as plain data; `bundle` and `checkpoint` are folders, or None."""

    bundle: str | None = None
    precision: str = "fp32"
    rounds: int = 20
    checkpoint: str | None = None

    def open(self) -> Bundle:
        """The bundle.

        Raises:
            BundleError: it is none.
        """
        return Bundle.open(Path(str(self.bundle)))


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        act: does it, here; raises the package's errors where it cannot be done on this machine.
        needs: steps that must be right before it, or `BUNDLE`.
        limits: how many times the limit it may take.
        advice: what to do where it is wrong.
    """

    act: Callable[[Settings], Result]
    needs: tuple[str, ...] = ()
    limits: int = 1
    advice: str = ""


def steps_of(settings: Settings) -> dict[str, Step]:
    """Every step by its name."""
    return {**_basic_steps(), **_crop_steps(), **_engine_steps(), **_torch_steps()}


def _on_device(act: Callable[..., Result]) -> Callable[[Settings], Result]:
    return lambda settings: act(basics.opened())


def _basic_steps() -> dict[str, Step]:
    return {
        "machine": Step(lambda s: facts.facts()),
        "driver": Step(
            lambda s: basics.driver(),
            advice="nothing below can work before the driver does: reinstall it, or reboot",
        ),
        "memory": Step(
            _on_device(basics.memory),
            ("driver",),
            advice="cuda-python and the driver do not agree: compare `cuda-core`, `cuda-bindings` "
            "and the driver's CUDA version under FOUND",
        ),
        "kernels compiled": Step(
            _on_device(basics.compiled),
            ("memory",),
            advice="NVRTC and cuda-bindings must be of the driver's CUDA major version",
        ),
        "kernels right": Step(
            _on_device(basics.small_kernels),
            ("kernels compiled",),
            advice="machine code of a newer CUDA than the driver's does not load: install "
            "nvidia-cuda-nvrtc-cu12 and 'cuda-bindings==12.*' for a driver of CUDA 12",
        ),
    }


def _crop_steps() -> dict[str, Step]:
    from geomag_edge.benchmarks.gpu import psc_crop as psc

    needs = ("kernels right",)
    return {
        "crop right": Step(
            _on_device(psc.exactness),
            needs,
            advice="the crop kernel is at fault: `--engine ort-cpu` goes without it",
        ),
        "crop compute-sanitizer": Step(
            lambda s: psc.sanitized(), needs, advice="the lines under `said` name the access"
        ),
        "crop speed": Step(lambda s: psc.speed(basics.opened(), s.rounds), needs),
    }


def _engine_steps() -> dict[str, Step]:
    """Per engine: builds and graphs one by one, then the chain; ort-cuda has nothing to build."""
    made: dict[str, Step] = {}
    for engine in GPU_ENGINES:
        built: tuple[str, ...] = ()
        if engine in FLAVOURS:
            for graph in CHAIN:
                made[f"build {engine} {graph}"] = Step(
                    partial(_build, engine, graph),
                    ("driver", BUNDLE),
                    BUILD,
                    "the line names the node that the builder refuses; ended from outside: more "
                    "swap (docs/jetson/prepare.sh), or --precision int8",
                )
            built = tuple(f"build {engine} {graph}" for graph in CHAIN)
        for graph in CHAIN:
            own = (f"build {engine} {graph}",) if built else ()
            made[f"graph {engine} {graph}"] = Step(
                partial(_graph, engine, graph),
                ("kernels right", BUNDLE, *own),
                advice="compare with `polygraphy` below: right there, the fault is our runtime's; "
                "wrong there, too, it is the engine's",
            )
            if built:
                made[f"polygraphy {engine} {graph}"] = Step(
                    partial(_witness, engine, graph), ("driver", BUNDLE, *own)
                )
        made |= _chain_steps(engine, ("crop right", BUNDLE, *built))
    return made


def _chain_steps(engine: str, needs: tuple[str, ...]) -> dict[str, Step]:
    return {
        f"chain {engine}": Step(
            lambda s: engines.chain(s.open(), engine, s.precision),
            needs,
            advice=f"do not use --engine {engine} here before this is right",
        ),
        f"captures {engine}": Step(
            lambda s: engines.captures(s.open(), engine, s.precision), needs
        ),
        f"timings {engine}": Step(
            lambda s: engines.timings(s.open(), engine, s.precision, s.rounds), needs
        ),
    }


def _torch_steps() -> dict[str, Step]:
    def crops(settings: Settings) -> Result:
        from geomag_edge.benchmarks.gpu.psc_crop import torch_speed

        return torch_speed(settings.rounds)

    def decode(settings: Settings) -> Result:
        from geomag_edge.benchmarks.gpu.torch_decode import torch_decode

        checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
        return torch_decode(settings.open(), checkpoint, settings.rounds)

    return {
        "crop in torch": Step(crops, ("driver",)),
        "decode step in torch": Step(decode, ("driver", BUNDLE)),
    }


def _build(engine: str, graph: str, settings: Settings) -> Result:
    return engines.build(settings.open(), engine, settings.precision, graph)


def _graph(engine: str, graph: str, settings: Settings) -> Result:
    return engines.graph(settings.open(), engine, settings.precision, graph)


def _witness(engine: str, graph: str, settings: Settings) -> Result:
    """A graph's engines, loaded and run by Polygraphy instead of our runtime."""
    from importlib.util import find_spec

    from geomag_edge.benchmarks.gpu.outside import by_polygraphy, compared

    if find_spec("polygraphy") is None:
        raise MissingExtraError("polygraphy is not installed: pip install polygraphy")
    # It serves one flavour of TensorRT in each process, and reads which one when it is imported.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if engine == "tensorrt-rtx" else "0"
    return compared(settings.open(), engine, settings.precision, by_polygraphy, (graph,))
