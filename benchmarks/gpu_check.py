"""Everything that an NVIDIA GPU can be asked here, in one command.

    python -m geomag_edge.benchmarks.gpu_check BUNDLE [--precision fp32] [--rounds 20]

Parts, each of which runs if it can and else is recorded with the reason why not:

- PscCrop on the GPU against its numpy twin and the CPU kernel, under compute-sanitizer where that
  is installed, and its speed on the case of 16 windows: bytes touched a second, beside the
  device's own copies within its memory, and torch on the same GPU;
- for `ort-cuda`, `tensorrt` and `tensorrt-rtx`: every graph on the bundle's reference inputs, the
  chain's answers beside those of `ort-cpu`, what was copied to the host, how many calls CUDA graphs
  replayed, and each stage's time, which for engines is also stored in their build.json, beside the
  fit check's prediction;
- the same engines once more, loaded and run by Polygraphy (if installed) instead of our runtime;
- one decode step of the bundle's language model in torch on the same GPU, eager and compiled.

What bounds them: PscCrop and a decode step move bytes (pixels and views; weights and cache) and
little else, so the device's memory is their floor.

Exit code 0: nothing that ran was wrong; 1: something was; 2: there is no GPU, or bad usage. The
result is a dated JSON, also printed as the last line of stdout.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from geomag_edge.benchmarks.arguments import parser_of
from geomag_edge.benchmarks.gpu.outside import in_a_process
from geomag_edge.benchmarks.machine import versions
from geomag_edge.benchmarks.publish import publish
from geomag_edge.benchmarks.timing import stage_medians
from geomag_edge.errors import GeoMagError
from geomag_edge.graphs import TOLERANCES, Tolerance
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.answers.masks import mask_iou
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.chain.result import Result
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.driver import CudaDriver
from geomag_edge.runtime.engines.cuda.refusals import first_line
from geomag_edge.runtime.engines.engine import GPU_ENGINES
from geomag_edge.runtime.engines.reference import Sample, reference_of
from geomag_edge.runtime.engines.tensorrt.bundle import store_measured
from geomag_edge.runtime.engines.tensorrt.engine import FLAVOURS
from geomag_edge.runtime.engines.tensorrt.record import RECORD
from geomag_edge.runtime.proof.verify import verify
from geomag_edge.targets.detect import look_around

PACKAGES = (
    "geomag-edge", "numpy", "onnxruntime-gpu", "onnxruntime", "cuda-core", "cuda-bindings",
    "tensorrt", "tensorrt-rtx-cu13", "torch",
)  # fmt: skip
TO_HOST = frozenset(
    {"token", "mask_logits", "quality", "granularity", "relevance", "boxes", "scores"}
)
"""What may come to the host: token ids, final masks, and PSC's answer, by which the host chooses
the budget and the crops."""

Part = Callable[[], dict[str, Any]]


def main() -> int:
    """Parses, runs every part, writes the result; the exit code."""
    parser = parser_of(__doc__, precision="fp32", rounds=20)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="the bundle's checkpoint, for torch")
    args = parser.parse_args()
    try:
        device = Device(CudaDriver())
        bundle = Bundle.open(args.bundle)
    except GeoMagError as e:
        print(f"gpu_check: {e}", file=sys.stderr)
        return 2
    report = check(bundle, args.precision, args.rounds, device, args.checkpoint)
    report["command"] = "python -m geomag_edge.benchmarks.gpu_check " + " ".join(sys.argv[1:])
    day = report["when"][:10]
    slug = "".join(c if c.isalnum() else "-" for c in report["machine"]["gpu"].lower())
    name = f"gpu_check_{slug}_{day}"
    publish(report, None, args.results, name)
    print(f"wrote {args.results / name}.json", file=sys.stderr)
    return 0 if report["ok"] else 1


def check(
    bundle: Bundle, precision: str, rounds: int, device: Device, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Every part on one device, as the report that is written."""
    from geomag_edge.benchmarks.gpu import psc_crop as psc

    parts: dict[str, Part] = {
        "psc_crop, exactness": lambda: psc.exactness(device),
        "psc_crop, compute-sanitizer": sanitized,
        "psc_crop, speed": lambda: psc.speed(device, rounds),
        "psc_crop, torch on this GPU": lambda: psc.torch_speed(rounds),
    }
    for engine in GPU_ENGINES:
        parts[f"chain, {engine}"] = _chain_part(bundle, engine, precision, rounds)
        if engine in FLAVOURS:
            parts[f"polygraphy, {engine}"] = _witness_part(bundle, engine, precision)
    parts["decode step, torch on this GPU"] = lambda: torch_decode(bundle, checkpoint, rounds)
    done = {}
    for name, part in parts.items():
        done[name] = ran(part)
        print(f"{name}: {_said(done[name])}", file=sys.stderr)
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(device),
        "bundle": {"untrained": bundle.manifest.untrained, "precision": precision},
        "parts": done,
        "ok": not any(p["ran"] and not p["ok"] for p in done.values()),
    }


def ran(part: Part) -> dict[str, Any]:
    """A part's result with `ran` and `ok`; one that cannot run gives its reason instead."""
    try:
        result = part()
    except (GeoMagError, ImportError) as e:
        return {"ran": False, "reason": first_line(e)}
    except Exception as e:  # a crash is a wrong result, and must not hide the other parts
        return {"ran": True, "ok": False, "error": f"{type(e).__name__}: {first_line(e)}"}
    return {"ran": True, "ok": bool(result.pop("ok", True)), **result}


def _said(part: dict[str, Any]) -> str:
    if not part["ran"]:
        return f"not run: {part['reason']}"
    return "ok" if part["ok"] else f"WRONG: {part.get('error') or part.get('wrong')}"


def machine(device: Device) -> dict[str, Any]:
    """The device and what runs on it."""
    driver = device.driver
    smi = shutil.which("nvidia-smi")
    said = None
    if smi is not None:
        asked = [smi, "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv"]
        said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return {
        "gpu": driver.name,
        "compute_capability": f"{driver.capability[0]}.{driver.capability[1]}",
        "integrated": driver.integrated,
        "cuda_of_driver": driver.version,
        "driver_and_limits": said,
        "free_bytes": driver.free_bytes(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }


def sanitized() -> dict[str, Any]:
    """PscCrop's exactness check in a process of its own, under compute-sanitizer's memcheck."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise ImportError("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
    script = "from geomag_edge.benchmarks.gpu.psc_crop import alone; alone()"
    done = subprocess.run(
        [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=900,
    )
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return {"ok": done.returncode == 0, "wrong": last, "said": last}


def _chain_part(bundle: Bundle, engine: str, precision: str, rounds: int) -> Part:
    return lambda: chain(bundle, engine, precision, rounds)


def _witness_part(bundle: Bundle, engine: str, precision: str) -> Part:
    return lambda: in_a_process(bundle, engine, precision)


def chain(bundle: Bundle, engine: str, precision: str, rounds: int) -> dict[str, Any]:
    """An engine's graphs, answers, copies, replays and times, beside `ort-cpu`'s."""
    samples = reference_of(bundle)
    tolerance = TOLERANCES.get(precision, TOLERANCES["fp16"])
    with Pipeline.load(bundle, engine, precision) as ours:
        opened: Any = ours.chain.engine
        report = verify(ours.chain, samples, tolerance)
        with Pipeline.load(bundle, "ort-cpu", precision) as theirs:
            answers = [_compare(ours, theirs, sample, tolerance) for sample in samples]
        sample = max(samples, key=lambda s: len(s.crop_boxes))
        for _ in range(3):  # compiles, records
            _ask(ours, sample)
        opened.device.to_host_bytes.clear()
        runs = [_ask(ours, sample) for _ in range(rounds)]
        copied = {name: n // rounds for name, n in opened.device.to_host_bytes.items()}
        replayed = {
            graph: sum(r.replayed for r in getattr(session, "_replays", {}).values())
            for graph, session in ours.chain.sessions.items()
        }
        by_budget = {s.budget: _stages_ms(ours, s, rounds) for s in samples}
        stored = _store(bundle, opened, by_budget)
    wrong = [a["wrong"] for a in answers if a["wrong"]]
    if not report.ok:
        wrong.append(str(report.first_drift))
    if beyond := copied.keys() - TO_HOST:
        wrong.append(f"copied to the host between stages: {', '.join(sorted(beyond))}")
    stages = stage_medians([r.timings_ms for r in runs])
    steps = max(1, runs[0].decode_steps)
    return {
        "ok": not wrong,
        "wrong": wrong[0] if wrong else None,
        "providers": runs[0].providers,
        "graphs": [vars(d) for d in report.graphs],
        "answers": answers,
        "host_copies_bytes": copied,
        "cuda_graphs_replayed": replayed,
        "budget": sample.budget,
        "stages_ms": stages,
        "stages_ms_by_budget": by_budget,
        "stored_in": stored,
        "decode_step_ms": stages["decode"] / steps,
        "decode_steps": steps,
    }


def _stages_ms(pipe: Pipeline, sample: Sample, rounds: int) -> dict[str, float]:
    """Each stage's median time, by the fit check's names."""
    runs = [_ask(pipe, sample) for _ in range(rounds)]
    found = stage_medians([r.timings_ms for r in runs])
    found["decode, a token"] = found.pop("decode") / max(1, runs[0].decode_steps)
    return found


def _store(bundle: Bundle, engine: Any, by_budget: dict[str, dict[str, float]]) -> str | None:
    """Puts times beside the fit check's prediction, if built engines were measured; where."""
    record = getattr(engine, "record", None)
    if record is None:
        return None
    entry = {
        "gpu": engine.device.driver.name,
        "power_mode": look_around().power_mode,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stages_ms": by_budget,
    }
    try:
        store_measured(Bundle.open(bundle.root), record, entry)
    except GeoMagError as e:  # a bundle may be read-only; the report has the times
        return first_line(e)
    return f"{record.folder}/{RECORD}"


def _ask(pipe: Pipeline, sample: Sample) -> Result:
    return pipe(
        sample.image, sample.prompt, sample.budget, sample.max_new_tokens, sample.answer_prefix
    )


def _compare(
    ours: Pipeline, theirs: Pipeline, sample: Sample, tolerance: Tolerance
) -> dict[str, Any]:
    """One question to both engines."""
    a, b = _ask(ours, sample), _ask(theirs, sample)
    ious = [mask_iou(x, y) for x, y in zip(a.masks, b.masks, strict=False)]
    crop_px = (
        float(np.abs(a.crop_boxes - b.crop_boxes).max(initial=0.0))
        if a.crop_boxes.shape == b.crop_boxes.shape
        else None
    )
    equal = a.token_ids == b.token_ids
    wrong = None
    if tolerance.tokens_equal and not equal:
        wrong = f"other tokens than ort-cpu on {sample.prompt!r}"
    elif len(a.masks) != len(b.masks) and equal:
        wrong = f"{len(a.masks)} masks, ort-cpu has {len(b.masks)} on {sample.prompt!r}"
    elif equal and ious and min(ious) < tolerance.mask_iou:
        wrong = f"mask IoU {min(ious):.4f} with ort-cpu's on {sample.prompt!r}"
    return {
        "prompt": sample.prompt, "budget": sample.budget, "tokens_equal": equal,
        "mask_iou": min(ious, default=None), "crop_px": crop_px, "wrong": wrong,
    }  # fmt: skip


def torch_decode(bundle: Bundle, checkpoint: Path | None, rounds: int) -> dict[str, Any]:
    """One decode step of Hugging Face's model on this GPU, eager and compiled, float16, in ms."""
    import torch
    from transformers import DynamicCache

    from geomag_edge.runtime.engines.torch_engine import TorchEngine

    if not torch.cuda.is_available():
        raise ImportError(f"torch {torch.__version__} has no CUDA here")
    model = TorchEngine.open(bundle, "fp32", None, checkpoint).model.language_model
    model = model.to("cuda", torch.float16)
    past = max(b.visual_tokens for b in bundle.manifest.budgets.values()) + 64
    hidden = bundle.manifest.decoder.hidden

    def embeds(tokens: int) -> Any:
        return torch.randn(1, tokens, hidden, device="cuda", dtype=torch.float16) * 0.02

    def step_ms(call: Any) -> float:
        cache = DynamicCache()
        times = []
        with torch.inference_mode():
            call(inputs_embeds=embeds(past), past_key_values=cache, use_cache=True)
            for i in range(rounds + 5):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                token = embeds(1)
                start.record()
                call(inputs_embeds=token, past_key_values=cache, use_cache=True)
                end.record()
                end.synchronize()
                if i >= 5:
                    times.append(start.elapsed_time(end))
        return median(times)

    eager = step_ms(model)
    return {"past_tokens": past, "eager_ms": eager, "compiled_ms": step_ms(torch.compile(model))}


if __name__ == "__main__":
    sys.exit(main())
