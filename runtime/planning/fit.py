"""Will it fit, and how fast can it be? Predicted before a build from graphs and a device table.

Memory is what the engines, their activations, the cache and the buffers between stages need at the
largest sizes that the profiles allow. Time is a roofline: for each stage the longer of its
arithmetic and its memory traffic at the device's peaks; real engines are slower, none is faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle, Manifest
from geomag_edge.runtime.engines.tensorrt.profiles import (
    FIXED,
    GROWING,
    USUAL_PROMPT_TOKENS,
    Plan,
    limits_of,
    plans_of,
    up_to,
)
from geomag_edge.runtime.planning.cost import Cost, graph_cost
from geomag_edge.targets import Device, Target

FORM = "tensorrt"

WORKSPACE_BYTES = 8 << 20
"""What TensorRT for RTX 1.7 reserves for the matrix products of one engine (measured)."""

CODE_BYTES_A_KERNEL = 20_000
"""In an engine file for each layer of each profile (measured, TensorRT for RTX)."""

CODE_BYTES_A_DISTINCT_KERNEL = 200_000
"""And for each that differs from the others in operator or shapes; INT8 has half as much again."""

SHARED_SYSTEM_BYTES = 2_000_000_000
"""Left to the system where CPU and GPU share memory: Linux, CUDA's context, our own process."""

SYSTEM_BYTES = 600_000_000
"""CUDA's context and the driver's own on a discrete GPU."""


@dataclass(frozen=True)
class EngineFit:
    """One engine's predicted bytes: the file, its weights on the device, its activations."""

    stem: str
    graph: str
    profiles: tuple[str, ...]
    engine_bytes: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class StageTime:
    """One stage at one budget: calls, arithmetic, traffic, and the roofline's milliseconds."""

    stage: str
    calls: int
    gflop: float
    mbytes: float
    ms: float | None
    bound: str | None


@dataclass(frozen=True)
class Fit:
    """The prediction for one target, precision and device.

    Attributes:
        engines: of each engine.
        cache_bytes: the LLM's cache: one buffer if it is fixed, two if it grows.
        buffer_bytes: inputs and outputs of the graphs, the cache apart.
        system_bytes: not ours, but in the same memory; 0 where no device was named.
        device_bytes: the device's memory; None where no device was named.
        stages: budget level -> stages, for one answer's first token and each further one.
        alternatives: levels and precisions that would fit, largest first.
    """

    target: str
    precision: str
    device: str | None
    watts: float | None
    engines: list[EngineFit]
    cache_bytes: int
    buffer_bytes: int
    system_bytes: int
    device_bytes: int | None
    stages: dict[str, list[StageTime]]
    alternatives: list[str]

    @property
    def need_bytes(self) -> int:
        """All of it."""
        return (
            sum(e.engine_bytes + e.activation_bytes for e in self.engines)
            + self.cache_bytes
            + self.buffer_bytes
            + self.system_bytes
        )

    @property
    def ok(self) -> bool:
        """Whether it fits; True where no device was named."""
        return self.device_bytes is None or self.need_bytes <= self.device_bytes

    @property
    def verdict(self) -> str:
        """One line."""
        need = f"{self.precision} for {self.target} needs {self.need_bytes / 1e9:.2f} GB"
        if self.device_bytes is None:
            return f"{need}; name a --device to compare"
        have = f"{self.device} has {self.device_bytes / 1e9:.2f} GB"
        if self.ok:
            return f"{need}, {have}: it fits"
        instead = " or ".join(self.alternatives) or "a smaller model; nothing in the bundle does"
        return f"{need}, {have}: it does not fit; what does: {instead}"

    def to_json(self) -> dict[str, Any]:
        """The form in build.json, `need_bytes`, `ok` and `verdict` included."""
        return asdict(self) | {
            "need_bytes": self.need_bytes,
            "ok": self.ok,
            "verdict": self.verdict,
            "predicted": True,
        }


def fit_bundle(
    bundle: Bundle,
    target: Target,
    precision: str,
    device: Device | None = None,
    watts: float | None = None,
    level: str | None = None,
    cache: str = GROWING,
) -> Fit:
    """Predicts memory and time of a bundle's engines.

    Args:
        bundle: whose graphs.
        target: decides which engines there are.
        precision: which set of graphs.
        device: what to compare with; None: memory only.
        watts: the device's power mode; None: its largest.
        level: the largest budget to build for; None: all.
        cache: the language model's, of `profiles.CACHES`.

    Raises:
        BundleError, InputError, MissingExtraError.
    """
    manifest = bundle.manifest if level is None else up_to(bundle.manifest, level)
    share = _share(device, watts)
    fit = _memory(bundle, manifest, target, precision, device, watts, cache)
    stages = {
        name: _stages(bundle, manifest, budget, precision, device, share, cache)
        for name, budget in manifest.budgets.items()
    }
    alternatives = [] if fit.ok else _alternatives(bundle, target, precision, device, level, cache)
    return Fit(**{**vars(fit), "stages": stages, "alternatives": alternatives})


def _memory(
    bundle: Bundle,
    manifest: Manifest,
    target: Target,
    precision: str,
    device: Device | None,
    watts: float | None,
    cache: str,
) -> Fit:
    plans = plans_of(manifest, target, cache=cache)
    engines = [_engine(bundle, manifest, plan, target, precision) for plan in plans]
    shape, limits = manifest.decoder, limits_of(manifest)
    wide = 4 if precision == "fp32" else 2
    buffers = 1 if cache == FIXED else 2
    cache_bytes = (
        buffers * 2 * shape.layers * shape.kv_heads * limits.capacity * shape.head_dim * wide
    )  # key and value
    system = 0
    if device is not None:
        system = SHARED_SYSTEM_BYTES if device.shared_memory else SYSTEM_BYTES
    return Fit(
        target=target.name,
        precision=precision,
        device=None if device is None else device.name,
        watts=watts or (device.watts[-1] if device else None),
        engines=engines,
        cache_bytes=cache_bytes,
        buffer_bytes=_buffers(bundle, manifest, plans, precision),
        system_bytes=system,
        device_bytes=None if device is None else int(device.gb * 1e9),
        stages={},
        alternatives=[],
    )


def _engine(
    bundle: Bundle, manifest: Manifest, plan: Plan, target: Target, precision: str
) -> EngineFit:
    costs = [_cost(bundle, plan.graph, precision, s) for s in _largest(manifest, plan)]
    weights = costs[0].weight_bytes
    if target.flavour == "tensorrt_rtx":
        # What one profile multiplies with many rows and another with one is laid out twice.
        rowed = [c.row_weight_bytes for c in costs]
        weights += max(rowed) - min(rowed)
    return EngineFit(
        stem=plan.stem,
        graph=plan.graph,
        profiles=tuple(p.name for p in plan.profiles),
        engine_bytes=weights + sum(_code(c) for c in costs),
        weight_bytes=weights,
        activation_bytes=max(_activations(c) for c in costs),
    )


def _code(cost: Cost) -> int:
    wider = 1.5 if "int8" in cost.flops else 1.0
    distinct = int(CODE_BYTES_A_DISTINCT_KERNEL * wider) * cost.distinct_kernels
    return distinct + CODE_BYTES_A_KERNEL * cost.kernels


def _activations(cost: Cost) -> int:
    return cost.live_bytes + (WORKSPACE_BYTES if cost.row_weight_bytes else 0)


def _largest(manifest: Manifest, plan: Plan) -> list[dict[str, int]]:
    """The most that each profile takes; a fixed cache is always at its full length."""
    sizes = [{axis: span[2] for axis, span in p.axes.items()} for p in plan.profiles]
    if plan.graph != "llm":
        return sizes
    return [_full(manifest, s["T"]) | s for s in sizes]


def _full(manifest: Manifest, new: int) -> dict[str, int]:
    """What a growing cache's graph would have to be given to cost what a fixed one's does."""
    capacity = limits_of(manifest).capacity
    return {"T": new, "N": capacity - new, "N+T": capacity}


def _buffers(bundle: Bundle, manifest: Manifest, plans: list[Plan], precision: str) -> int:
    """Each graph's inputs and outputs at their largest; the LLM's cache is counted apart."""
    return sum(
        max(_cost(bundle, p.graph, precision, s).buffer_bytes for s in _largest(manifest, p))
        for p in plans
    )


def _cost(bundle: Bundle, graph: str, precision: str, sizes: Mapping[str, int]) -> Cost:
    path = bundle.graph(graph, precision, FORM)
    return _known_cost(path, tuple(sorted(sizes.items())))


@cache
def _known_cost(path: Path, sizes: tuple[tuple[str, int], ...]) -> Cost:
    return graph_cost(path, dict(sizes))


def _alternatives(
    bundle: Bundle,
    target: Target,
    precision: str,
    device: Device | None,
    level: str | None,
    cache: str,
) -> list[str]:
    """What would fit: the largest smaller budget in this precision, and each other precision."""
    budgets = bundle.manifest.budgets if level is None else up_to(bundle.manifest, level).budgets
    found = []
    by_size = sorted(budgets, key=lambda n: -budgets[n].visual_tokens)
    for name in by_size:
        manifest = up_to(bundle.manifest, name)
        if _memory(bundle, manifest, target, precision, device, None, cache).ok:
            found.append(f"--budget {name} ({budgets[name].visual_tokens} visual tokens)")
            break
    for other in bundle.manifest.graphs:
        if other != precision and target.takes_precision(other):
            manifest = bundle.manifest if level is None else up_to(bundle.manifest, level)
            if _memory(bundle, manifest, target, other, device, None, cache).ok:
                found.append(f"--precision {other}")
    return found


def _share(device: Device | None, watts: float | None) -> float:
    """The part of a device's peaks that a power mode leaves: in proportion, for want of better."""
    if watts is None or device is None:
        return 1.0
    if watts <= 0 or watts > device.watts[-1]:
        modes = ", ".join(f"{w:g}" for w in device.watts)
        raise InputError(f"{device.name} has no power mode of {watts:g} W: it has {modes}")
    return watts / device.watts[-1]


def _stages(
    bundle: Bundle,
    manifest: Manifest,
    budget: TokenBudget,
    precision: str,
    device: Device | None,
    share: float,
    cache: str,
) -> list[StageTime]:
    """The stages of one answer at one budget, all crops found in one look."""
    whole, crops = budget.global_grid**2, budget.crop_grid**2
    prompt = budget.visual_tokens + USUAL_PROMPT_TOKENS
    prompt_ids = manifest.prompt.psc_pad_to or 16
    one = {"B": 1}
    prefill = {"T": prompt, "N": 0, "N+T": prompt}
    decode = {"T": 1, "N": prompt, "N+T": prompt + 1}
    if cache == FIXED:
        prefill, decode = _full(manifest, prompt), _full(manifest, 1)
    calls: list[tuple[str, str, list[dict[str, int]]]] = [
        ("encode", "encoder", [{"n": 1}, *([{"n": budget.crops}] if budget.crops else [])]),
        ("select", "psc_select", [{"L": prompt_ids}]),
        (
            "project",
            "projector",
            [{"n": 1, "q": whole}, *([{"n": budget.crops, "q": crops}] if budget.crops else [])],
        ),
        ("embed", "embed", [one | {"T": USUAL_PROMPT_TOKENS}]),
        ("prefill", "llm", [one | prefill]),
        ("decode, a token", "llm", [one | decode]),
        ("mask", "mask_head", [{"n": 1 + budget.crops, "m": 1}]),
    ]
    return [
        _time(stage, [_cost(bundle, graph, precision, s) for s in sizes], device, share)
        for stage, graph, sizes in calls
    ]


def _time(stage: str, costs: list[Cost], device: Device | None, share: float) -> StageTime:
    flop = sum(sum(c.flops.values()) for c in costs)
    traffic = sum(c.traffic_bytes for c in costs)
    if device is None:
        return StageTime(stage, len(costs), flop / 1e9, traffic / 1e6, None, None)
    total, arithmetic = 0.0, 0.0
    for cost in costs:
        compute = sum(f / (_peak(device, kind) * share) for kind, f in cost.flops.items())
        moving = cost.traffic_bytes / (device.gb_s * 1e9 * share)
        total += max(compute, moving)
        arithmetic += compute
    bound = "arithmetic" if arithmetic >= total / 2 else "memory"
    return StageTime(stage, len(costs), flop / 1e9, traffic / 1e6, total * 1e3, bound)


def _peak(device: Device, kind: str) -> float:
    """Operations a second of a type; int4 weights are widened and multiplied in half."""
    half = device.fp16_tflops * 1e12
    if kind in ("int8", "fp8"):
        return device.int8_tops * 1e12 if device.int8_tops else 2 * half
    return half / 2 if kind == "fp32" else half


def graph_ms(
    bundle: Bundle, graph: str, precision: str, sizes: Mapping[str, int], device: Device
) -> float:
    """The roofline's milliseconds of one run of a graph on a device.

    Raises:
        BundleError, MissingExtraError.
    """
    time = _time(graph, [_cost(bundle, graph, precision, sizes)], device, 1.0)
    assert time.ms is not None  # a device was given
    return time.ms
