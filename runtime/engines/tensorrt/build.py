"""One graph -> one serialised engine with its profiles."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from geomag_edge.disk.staging import staged_file
from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour, started
from geomag_edge.runtime.engines.tensorrt.log import (
    BuilderMemory,
    builder_memory,
    first_error,
    memory_ran_out,
)
from geomag_edge.runtime.engines.tensorrt.network import Network
from geomag_edge.runtime.engines.tensorrt.profiles import GROWING, Profile

OnPhase = Callable[[str, int, int], None]
"""Called with a phase of the build, steps done and steps in all."""

Shapes = list[dict[str, tuple[list[int], list[int], list[int]]]]
"""For each profile: input -> least, usual, most shape."""


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is told; part of what decides whether an engine is still good.

    Attributes:
        sm: compute capabilities to build for, where the flavour builds without a GPU.
        version_compatible: engines that later versions of the same major one load too.
        stripped: without weights that the ONNX file can give back (refit at load).
        cache: of the language model, of `CACHES`: "growing" by concatenation, or of "fixed"
            capacity and updated in place (`fixed`).
        tf32: float32 products may round what they multiply to 10 bits. TensorRT's own default,
            and not ours: float32 is what answers are compared with.
        workspace_bytes: scratch memory that one layer may take; None for what the folder's
            engines were built with, or else `workspace.workspace_for`.
    """

    sm: tuple[str, ...] = ()
    version_compatible: bool = False
    stripped: bool = False
    cache: str = GROWING
    tf32: bool = False
    workspace_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in build.json."""
        return asdict(self) | {"sm": list(self.sm)}


@dataclass(frozen=True)
class Built:
    """A serialised engine and what the builder said of it."""

    data: memoryview
    memory: BuilderMemory | None
    layer_precisions: dict[str, int]
    flags: list[str]
    shapes: Shapes
    warnings: list[str]
    seconds: float


def build_engine(
    flavour: Flavour,
    path: Path,
    axes: Mapping[str, Sequence[str | int]],
    profiles: Sequence[Profile],
    options: BuildOptions,
    timing_cache: Path | None = None,
    on_phase: OnPhase | None = None,
    model: bytes | None = None,
) -> Built:
    """Builds one engine.

    Args:
        flavour: what builds it.
        path: the ONNX file, its external data beside it.
        axes: input -> the names of its axes, as the bundle's manifest has them.
        profiles: in the order that the engine will have.
        options: see `BuildOptions`.
        timing_cache: read and written where the flavour keeps timings.
        on_phase: progress.
        model: a form of the file to build instead, whose external data is the file's.

    Raises:
        EngineError: the parser or the builder refuses; one line with the cause.
        KeyboardInterrupt: the user interrupted the build.
    """
    start = time.perf_counter()
    lines: list[str] = []
    with _stdout_kept(lines):
        network = Network(flavour, path, model)
        attempt = _attempt(network, axes, profiles, options, timing_cache, on_phase)
        if attempt.plan is None and OWN_MEMORY in attempt.flags:
            attempt = _attempt(network, axes, profiles, options, timing_cache, on_phase, own=False)
            lines.append(f"{path.name} takes memory while it runs and may not be recorded")
        log = list(network.logger.lines)
        if attempt.plan is None:
            reason = first_error(log) or "it gave no reason"
            raise EngineError(
                f"{flavour.name} cannot build {path.name}: {reason}{_remedy(reason, log)}"
            )
        memory, precisions = builder_memory(log, len(profiles)), network.layer_precisions()
        logger = network.logger
        del network  # the builder's copies of the weights go before the engine's own come
        if memory is not None and (exact := _activations(flavour, logger, attempt.plan, options)):
            memory = replace(memory, activations=exact)
    said = [text for severity, text in log if severity == "WARNING"]
    return Built(
        data=memoryview(attempt.plan),
        memory=memory,
        layer_precisions=precisions,
        flags=attempt.flags,
        shapes=attempt.shapes,
        warnings=list(dict.fromkeys([*lines, *said])),
        seconds=time.perf_counter() - start,
    )


class _Attempt(NamedTuple):
    """A plan, or None, and what the builder was told for it."""

    plan: Any
    flags: list[str]
    shapes: Shapes


def _attempt(
    network: Network,
    axes: Mapping[str, Sequence[str | int]],
    profiles: Sequence[Profile],
    options: BuildOptions,
    timing_cache: Path | None,
    on_phase: OnPhase | None,
    own: bool = True,
) -> _Attempt:
    """One run of the builder; its log is in the network's logger.

    Args:
        own: ask for an engine that takes no memory but what it is given.

    Raises:
        EngineError: an option or a profile is refused.
        KeyboardInterrupt: the user interrupted it.
    """
    flavour = network.flavour
    config = network.builder.create_builder_config()
    flags = _configure(flavour.module, config, options, own)
    shapes = _add_profiles(network, config, axes, profiles)
    cache = _open_timing_cache(flavour, config, timing_cache)
    interrupted = _watch(flavour.module, config, on_phase)
    network.logger.lines.clear()
    plan = network.builder.build_serialized_network(network.network, config)
    if interrupted:
        raise KeyboardInterrupt
    if plan is not None:
        _save_timing_cache(config, cache, timing_cache)
    return _Attempt(plan, flags, shapes)


def _remedy(reason: str, log: list[tuple[str, str]]) -> str:
    if any(sign in reason for sign in ("graph_jit", "CUDA_SUCCESS", "sm_vers_")):
        return " (this option needs a GPU: build on the device)"
    if "libnvinfer_lean" in reason:
        return " (version-compatible engines need TensorRT's lean runtime, which is not installed)"
    if memory_ran_out(log):
        return (
            " (the device's memory ran out: end other programs, stop the desktop, add swap where "
            "it is shared, or build for less with --budget)"
        )
    return ""


OWN_MEMORY = "REQUIRE_USER_ALLOCATION"
"""TensorRT for RTX: the engine takes no memory while it runs, so that calls can be recorded. A
graph with shapes that depend on data cannot be built so."""


def _configure(module: Any, config: Any, options: BuildOptions, own: bool = True) -> list[str]:
    """Sets flags by name, and the scratch memory; returns the flags that are set.

    Raises:
        EngineError: an option that this version does not have.
    """
    wanted = []
    if options.version_compatible:
        wanted.append("VERSION_COMPATIBLE")
    if options.stripped:
        # 11.3 refits wrongly unless the weights are known to stay the same.
        wanted += ["STRIP_PLAN", "REFIT_IDENTICAL"]
    if own and hasattr(module.BuilderFlag, OWN_MEMORY):
        wanted.append(OWN_MEMORY)
    for name in wanted:
        flag = getattr(module.BuilderFlag, name, None)
        if flag is None:
            raise EngineError(f"{module.__name__} {module.__version__} has no option {name}")
        config.set_flag(flag)
    if options.tf32:
        config.set_flag(module.BuilderFlag.TF32)
    else:
        config.clear_flag(module.BuilderFlag.TF32)  # it is set in a new config
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    capability = getattr(module, "ComputeCapability", None)
    if options.sm and capability is not None:
        known = [getattr(capability, f"SM{sm.replace('.', '')}", None) for sm in options.sm]
        chosen = [c for c in known if c is not None]
        if chosen:
            config.num_compute_capabilities = len(chosen)
            for i, item in enumerate(chosen):
                config.set_compute_capability(item, i)
    if (verbosity := getattr(module, "ProfilingVerbosity", None)) is not None:
        config.profiling_verbosity = verbosity.DETAILED
    return wanted


def _activations(flavour: Flavour, logger: Any, plan: Any, options: BuildOptions) -> list[int]:
    """Bytes of each profile as the engine itself says; nothing where it cannot be loaded, as on a
    machine without a GPU or with no room for it beside the builder."""
    runtime = started(flavour, lambda: flavour.module.Runtime(logger))
    if options.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return []
    count = engine.num_optimization_profiles
    return [int(engine.get_device_memory_size_for_profile_v2(i)) for i in range(count)]


def _add_profiles(
    network: Network,
    config: Any,
    axes: Mapping[str, Sequence[str | int]],
    profiles: Sequence[Profile],
) -> Shapes:
    tensors = {t.name: t for t in network.inputs()}
    inputs = {name: (axes[name], tuple(t.shape)) for name, t in tensors.items()}
    table = []
    for profile in profiles:
        shapes = profile.shapes(inputs)
        made = network.builder.create_optimization_profile()
        for name, (low, usual, high) in shapes.items():
            made.set_shape(name, low, usual, high)
        if config.add_optimization_profile(made) < 0:
            reason = first_error(network.logger.lines) or f"shapes {shapes}"
            raise EngineError(
                f"{network.flavour.name} refuses profile {profile.name} of {network.path.name}: "
                f"{reason}"
            )
        table.append(shapes)
    return table


def _watch(module: Any, config: Any, on_phase: OnPhase | None) -> list[str]:
    """Sets a progress monitor; the list it returns fills when the user interrupts."""
    interrupted: list[str] = []
    base: Any = getattr(module, "IProgressMonitor", None)
    if base is None or not hasattr(config, "progress_monitor"):
        return interrupted

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.steps: dict[str, int] = {}

        def _tell(self, phase: str, done: int) -> None:
            try:
                if on_phase:
                    on_phase(phase, done, self.steps.get(phase, done))
            except KeyboardInterrupt:  # raised in a callback, it must not cross C++
                interrupted.append(phase)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not interrupted

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    config.progress_monitor = Monitor()
    return interrupted


def _open_timing_cache(flavour: Flavour, config: Any, path: Path | None) -> Any:
    """Gives the builder the timings of earlier builds; TensorRT for RTX keeps none."""
    if path is None or flavour.name == "tensorrt_rtx" or not hasattr(config, "create_timing_cache"):
        return None
    try:
        known = path.read_bytes()
    except OSError:  # none yet, or one that may not be read: either way it is only a help
        known = b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")  # of another version: start again
        config.set_timing_cache(cache, False)
    return cache


def _save_timing_cache(config: Any, cache: Any, path: Path | None) -> None:
    if cache is None or path is None:
        return
    with contextlib.suppress(OSError):  # a cache that cannot be kept costs time, not engines
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as part:
            part.write_bytes(memoryview(config.get_timing_cache().serialize()))


@contextlib.contextmanager
def _stdout_kept(lines: list[str]) -> Iterator[None]:
    """Keeps what the libraries print out of stdout, where `--json` writes; fills `lines`."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(1)
        os.dup2(kept.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(before, 1)
            os.close(before)
            kept.seek(0)
            lines += [" ".join(x.split()) for x in kept.read().decode(errors="replace").split("\n")]
            lines[:] = [x for x in lines if x]
