"""What narrow weights do for a decoder on the CPU: time to read a prompt and to say a token.

    python -m geomag_edge.benchmarks.speed.weights BUNDLE [--rounds 5] [--threads 2]

The forms of one `llm.onnx`: float32, int8 with activations measured while it runs, int8 and int4
weights in blocks. All run in turns in one process, through I/O binding, and medians are kept: a
prompt of 576 tokens, and one token at a past of 600. `cosine` compares the prompt's hidden states
with float32's; of a model with random weights it says little. Processor time is kept beside the
clock, because it also holds on a machine that others use. The last line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from geomag_edge.benchmarks.publish import RESULTS, publish
from geomag_edge.calibration.quantization.formats.dynamic8 import dynamic_int8
from geomag_edge.calibration.quantization.formats.int4 import (
    as_matmulnbits,
    as_qdq,
    quantize_blocks,
)
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.ort import inference_session

PROMPT, PAST = 576, 600
DECODES = 5
"""Decode steps a round: one is short against a prompt."""


def _blocks(model: ir.Model, block: int, whole: bool = False, nbits: bool = False) -> None:
    names = [linear.name for linear in find_linears(model)]
    weights = quantize_blocks(model, block, wide8=names if whole else None)
    (as_matmulnbits if nbits else as_qdq)(model, weights)


FORMS: dict[str, Callable[[ir.Model], object]] = {
    "float32": lambda model: None,
    "int8, dynamic": dynamic_int8,
    "int8 weights, blocks of 128": partial(_blocks, block=128, whole=True),
    "int4, blocks of 64": partial(_blocks, block=64),
    "int4, blocks of 128": partial(_blocks, block=128),
    "int4, blocks of 128, MatMulNBits": partial(_blocks, block=128, nbits=True),
}


class Form:
    """One form of the graph, bound to a prompt and to one step."""

    def __init__(self, path: Path, threads: int):
        start = time.perf_counter()
        self.session = inference_session(path, threads)
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.runs = {"prefill": self._bind(PROMPT, 0), "decode": self._bind(1, PAST)}
        self.times: dict[str, list[tuple[float, float]]] = {name: [] for name in self.runs}

    def _bind(self, steps: int, past: int) -> ort.IOBinding:
        binding = self.session.io_binding()
        for name, array in feeds(self.session, steps, past).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for port in self.session.get_outputs():
            binding.bind_output(port.name)
        return binding

    def step(self, name: str) -> None:
        """One timed run."""
        wall, busy = time.perf_counter(), time.process_time()
        self.session.run_with_iobinding(self.runs[name])
        self.times[name].append((time.perf_counter() - wall, time.process_time() - busy))

    def medians(self) -> dict[str, float]:
        """`prefill_ms`, `prefill_cpu_ms`, `decode_ms`, `decode_cpu_ms`; the first round warms."""
        found: dict[str, float] = {}
        for name, times in self.times.items():
            kept = times[DECODES if name == "decode" else 1 :]
            wall, busy = (statistics.median(column) * 1e3 for column in zip(*kept, strict=True))
            found |= {f"{name}_ms": wall, f"{name}_cpu_ms": busy}
        return found


def feeds(session: ort.InferenceSession, steps: int, past: int) -> dict[str, np.ndarray]:
    """The same seeded inputs for every form."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {
        "attention_mask": np.ones((1, past + steps), np.int64),
        "position_ids": np.arange(past, past + steps)[None],
    }
    for port in session.get_inputs():
        if port.name == "inputs_embeds":
            found[port.name] = rng.standard_normal((1, steps, port.shape[2]), np.float32) * 0.02
        elif port.name not in found:
            shape = (1, port.shape[1], past, port.shape[3])
            found[port.name] = rng.standard_normal(shape, np.float32)
    return found


def measure(graph: Path, folder: Path, rounds: int, threads: int) -> list[dict]:
    """A row for each form, float32 first."""
    forms: dict[str, Form] = {}
    megabytes: dict[str, float] = {}
    for name, change in FORMS.items():
        print(f"making {name}", file=sys.stderr)
        model = ir.load(graph)
        change(model)
        path = folder / f"form{len(forms)}.onnx"
        ir.save(model, path, external_data=f"{path.name}.data")
        megabytes[name] = sum(p.stat().st_size for p in folder.glob(f"{path.name}*")) / 1e6
        forms[name] = Form(path, threads)
    for i in range(rounds + 1):
        print(f"round {i} of {rounds}", file=sys.stderr)
        for form in forms.values():
            form.step("prefill")
            for _ in range(DECODES):
                form.step("decode")
    rows: list[dict] = []
    reference = None
    for name, form in forms.items():
        hidden = form.session.run(["hidden_states"], feeds(form.session, PROMPT, 0))[0].ravel()
        reference = hidden if reference is None else reference
        cosine = hidden @ reference / np.linalg.norm(hidden) / np.linalg.norm(reference)
        times = form.medians()
        first = rows[0] if rows else times
        ratios = {f"{k.removesuffix('_ms')}_ratio": first[k] / ms for k, ms in times.items()}
        row = {"form": name, "mb": megabytes[name], "load_ms": form.load_ms}
        rows.append(row | times | ratios | {"cosine": float(cosine)})
    return rows


def table(report: dict) -> str:
    """The result as Markdown."""
    lines = [
        f"# Narrow weights of a decoder, `{report['bundle']}`, CPU", "",
        f"`{report['command']}`", "",
        f"{report['system']}; onnxruntime {report['onnxruntime']}, {report['threads']} threads, "
        f"medians of {report['rounds']} interleaved rounds; ratios to float32 by the clock and by "
        "processor time.", "",
        f"| form | MB | load, ms | prompt of {PROMPT}, ms | ratio | CPU | token at {PAST}, ms "
        "| ratio | CPU | cosine |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['form']} | {r['mb']:.0f} | {r['load_ms']:.0f} | {r['prefill_ms']:.0f} "
        f"| {r['prefill_ratio']:.2f}x | {r['prefill_cpu_ratio']:.2f}x | {r['decode_ms']:.1f} "
        f"| {r['decode_ratio']:.2f}x | {r['decode_cpu_ratio']:.2f}x | {r['cosine']:.4f} |"
        for r in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures a bundle's decoder and writes JSON and Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--name", default="base", help="what the result is called")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    graph = Bundle.open(args.bundle).graph("llm", "fp32")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(graph, Path(folder), args.rounds, args.threads)
    report = {
        "bundle": args.name,
        "command": "python -m geomag_edge.benchmarks.speed.weights BUNDLE "
        f"--name {args.name} --rounds {args.rounds} --threads {args.threads}",
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": version("onnxruntime"),
        "rounds": args.rounds,
        "threads": args.threads,
        "goals": {"decode int4": 3.5, "prefill int8": 2.0},
        "rows": rows,
    }
    publish(report, table(report), args.results, f"weights_{args.name}")


if __name__ == "__main__":
    main()
