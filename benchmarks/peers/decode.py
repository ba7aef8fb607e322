"""LLM decode and prefill against onnxruntime-genai, optimum-onnx and Hugging Face eager.

    python -m geomag_edge.benchmarks.peers.decode --bundle BUNDLE [--checkpoint CKPT]
        [--optimum-python PYTHON]

The language model of the bundle's checkpoint is saved as a plain Hugging Face folder; each peer
converts that with its own tool (`onnxruntime_genai.models.builder`, `optimum-cli export onnx`) and
runs it in a process of its own (`worker.py`), asked in turn with ours. All read the same prompt
of random ids as long as a pixel-level prompt and decode greedily. In fp32 all must say the same
ids before anything is timed; forms in int4 have weights rounded by different tools, so their
share of equal ids is reported.

Ours takes embeddings and hands out hidden states, which masks need; genai and optimum take ids and
give logits alone. In int4 our graph has blocks of 128 rows and an output layer in 8 bits
(`int8+int4-llm`); genai is built alike (`rtn_last`) and also as its tool does by default (blocks of
32, the output layer in 4 bits too).

optimum-onnx 0.1.0 pins transformers below 4.58, so it needs an environment of its own, named by
`--optimum-python`. It exports the plain language model as it is; it knows no task for the model
class of this package (its graphs take views, boxes and a cache), so the other parts have no peer.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.peers.agreement import require_same_tokens
from geomag_edge.benchmarks.publish import interval, page_of, publish, table_of
from geomag_edge.benchmarks.timing import ratios, spreads
from geomag_edge.errors import EngineError, GeoMagError, MissingExtraError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.decode import LanguageModel, Prompt, Stop, decode_greedily
from geomag_edge.runtime.engines.opening import open_engine

WORKER = Path(__file__).with_name("worker.py")
INT4 = "int8+int4-llm"
TIMES = ("prefill_wall_ms", "prefill_cpu_ms", "decode_wall_ms", "decode_cpu_ms")
GOAL = 1.0

Said = dict[str, Any]
"""`ids`, and the milliseconds of `TIMES`."""


@dataclass(frozen=True)
class Peer:
    """A way of running the plain language model.

    Attributes:
        name: what the table says.
        kind: of `worker.py`.
        module: what must be importable in its interpreter.
        precision: fp32 or int4; forms of one precision are compared.
        convert: arguments of its converter after `python -m`, with {source} and {target}.
        hint: how to get it.
    """

    name: str
    kind: str
    module: str
    precision: str
    convert: tuple[str, ...]
    hint: str


_GENAI = ("onnxruntime_genai.models.builder", "-i", "{source}", "-o", "{target}", "-e", "cpu", "-p")
_PEERS_EXTRA = 'pip install "geomag-edge[peers]"'
PEERS = (
    Peer("onnxruntime-genai fp32", "genai", "onnxruntime_genai", "fp32",
         (*_GENAI, "fp32"), _PEERS_EXTRA),
    Peer("optimum-onnx fp32", "optimum", "optimum.onnxruntime", "fp32",
         ("optimum.commands.optimum_cli", "export", "onnx", "--model", "{source}", "--task",
          "text-generation-with-past", "{target}"),
         'pip install "optimum-onnx[onnxruntime]" in an environment of its own, --optimum-python'),
    Peer("Hugging Face eager fp32", "transformers", "transformers", "fp32", (),
         'pip install "geomag-edge[export]"'),
    Peer("onnxruntime-genai int4", "genai", "onnxruntime_genai", "int4",
         (*_GENAI, "int4", "--extra_options", "int4_block_size=128", "int4_accuracy_level=4",
          "int4_algo_config=rtn_last"), _PEERS_EXTRA),
    Peer("onnxruntime-genai int4, blocks of 32", "genai", "onnxruntime_genai", "int4",
         (*_GENAI, "int4", "--extra_options", "int4_block_size=32", "int4_accuracy_level=4"),
         _PEERS_EXTRA),
)  # fmt: skip


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, checkpoint=None, name="base", rounds=7, threads=1)
    parser.add_argument("--genai-python", default=sys.executable)
    parser.add_argument("--optimum-python", default=sys.executable)
    parser.add_argument("--work", type=Path, help="keep the converted models here")
    parser.add_argument("--prompt-tokens", type=int, default=734)
    parser.add_argument("--new-tokens", type=int, default=17)
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(args, args.work or Path(folder))
    except GeoMagError as e:
        raise SystemExit(f"error: {e}") from e
    publish(report, as_markdown(report), args.results, f"peers_decode_{args.name}")


@dataclass
class Forms:
    """What is compared: how each form answers, in which precision, and who is missing why."""

    ask: dict[str, Callable[[list[int], int], Said]] = field(default_factory=dict)
    precision: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    close: list[Callable[[], None]] = field(default_factory=list)


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Converts, opens, compares, times in turn."""
    host = machine(args.threads)
    bundle = Bundle.open(args.bundle)
    forms = Forms()
    try:
        _open_ours(forms, bundle, args.threads)
        _open_peers(forms, bundle, args, work)
        vocabulary = bundle.manifest.model_config["text_config"]["vocab_size"]
        ids = np.random.default_rng(0).integers(10, vocabulary, args.prompt_tokens).tolist()
        first = {name: ask(ids, args.new_tokens) for name, ask in forms.ask.items()}
        in_fp32 = {n: s["ids"] for n, s in first.items() if forms.precision[n] == "fp32"}
        require_same_tokens(in_fp32, "ours fp32")
        rounds = _in_turn(forms, ids, args.new_tokens, args.rounds)
    finally:
        for close in forms.close:
            close()
    steps = args.new_tokens - 1
    times = {
        name: {
            key: [said[key] / (steps if key.startswith("decode") else 1) for said in found]
            for key in TIMES
        }
        for name, found in rounds.items()
    }
    ours = {p: f"ours {p}" for p in ("fp32", "int4")}
    reference = first["ours fp32"]["ids"]
    return {
        "command": f"python -m geomag_edge.benchmarks.peers.decode --bundle {args.name} "
        f"--rounds {args.rounds} --threads {args.threads} --prompt-tokens {args.prompt_tokens} "
        f"--new-tokens {args.new_tokens} --optimum-python PYTHON",
        "machine": host,
        "prompt_tokens": args.prompt_tokens,
        "steps": steps,
        "rounds": args.rounds,
        "goal": GOAL,
        "missing": forms.missing,
        "versions": forms.versions,
        "same_ids_as_fp32": {
            n: float(np.mean([a == b for a, b in zip(s["ids"], reference, strict=True)]))
            for n, s in first.items()
        },
        "times": spreads(times),
        "raw_ms": times,
        "ratios": {
            name: ratios(t, times[own])
            for name, t in times.items()
            if (own := ours[forms.precision[name]]) in times and name != own
        },
    }


def _open_ours(forms: Forms, bundle: Bundle, threads: int) -> None:
    """The bundle's own language model in ONNX Runtime, in fp32 and, if it has it, in int4."""
    for label, precision in (("fp32", "fp32"), ("int4", INT4)):
        if precision not in bundle.manifest.graphs:
            forms.missing[f"ours {label}"] = f"the bundle has no {precision}"
            continue
        engine = open_engine("ort-cpu", bundle, precision, threads)
        llm, embed = engine.session("llm"), engine.session("embed")
        forms.ask[f"ours {label}"] = own_answer(llm, embed, bundle)
        forms.precision[f"ours {label}"] = label
        forms.close += [llm.close, embed.close, engine.close]


def _open_peers(forms: Forms, bundle: Bundle, args: argparse.Namespace, work: Path) -> None:
    """Every peer on the bundle's language model; one that cannot be had is noted as missing."""
    source = plain_language_model(bundle, args.checkpoint, work / "plain")
    for peer in PEERS:
        python = args.optimum_python if peer.kind == "optimum" else args.genai_python
        try:
            worker = open_peer(peer, python, source, work, args.threads)
        except GeoMagError as e:
            print(f"without {peer.name}: {e}", file=sys.stderr)
            forms.missing[peer.name] = str(e)
            continue
        forms.ask[peer.name], forms.precision[peer.name] = worker.ask, peer.precision
        forms.versions[peer.name] = worker.versions
        forms.close.append(worker.close)


def _in_turn(forms: Forms, ids: list[int], new: int, rounds: int) -> dict[str, list[Said]]:
    """What each form said in each round."""
    said: dict[str, list[Said]] = {name: [] for name in forms.ask}
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        for name, ask in forms.ask.items():
            said[name].append(ask(ids, new))
    return said


def own_answer(llm: Any, embed: Any, bundle: Bundle) -> Callable[[list[int], int], Said]:
    """Our decode loop on a prompt of ids, with no token that ends it or asks for a mask."""
    model = LanguageModel(llm, embed, bundle.manifest.decoder)
    nothing = np.zeros((0, model.shape.hidden), np.float32)

    def answer(ids: list[int], new: int) -> Said:
        with _CpuClock() as clock:
            said = decode_greedily(
                model, Prompt(ids, nothing, []), Stop(-1, (), new), on_ids=clock.at_ids
            )
        return {
            "ids": said.ids,
            "prefill_wall_ms": said.prefill_ms,
            "decode_wall_ms": said.decode_ms,
            "prefill_cpu_ms": clock.first_ms,
            "decode_cpu_ms": clock.rest_ms,
        }

    return answer


class _CpuClock:
    """CPU milliseconds of this process until the first id, and of all after it."""

    def __enter__(self) -> _CpuClock:
        self._start = time.process_time()
        self._first: float | None = None
        return self

    def at_ids(self, ids: list[int]) -> None:
        """Notes the first id's time."""
        if self._first is None:
            self._first = time.process_time()

    def __exit__(self, *error: object) -> None:
        first = self._first or self._start
        self.first_ms = (first - self._start) * 1e3
        self.rest_ms = (time.process_time() - first) * 1e3


def plain_language_model(bundle: Bundle, checkpoint: Path | None, folder: Path) -> Path:
    """The checkpoint's language model as a Hugging Face folder of its own, with its tokenizer.

    Raises:
        MissingExtraError: no PyTorch.
        CheckpointError: the checkpoint is not there, or is another one.
    """
    if (folder / "tokenizer.json").exists():
        return folder
    from geomag_edge.runtime.engines.torch_engine import TorchEngine

    engine = TorchEngine.open(bundle, "fp32", None, checkpoint)
    engine.model.language_model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(bundle.file("tokenizer.json").read_bytes())
    return folder


def open_peer(peer: Peer, python: str, source: Path, work: Path, threads: int) -> Worker:
    """Converts the model for a peer, where that has not been done, and starts its process.

    Raises:
        MissingExtraError: it is not installed in that interpreter.
        EngineError: it cannot convert or load the model; its own last line says why.
    """
    check = f"import {peer.module}"
    if subprocess.run([python, "-c", check], capture_output=True, check=False).returncode:
        raise MissingExtraError(f"{peer.name} needs the module {peer.module}: {peer.hint}")
    target = source
    if peer.convert:
        target = work / peer.name.replace(" ", "_").replace(",", "")
        if not target.exists():
            print(f"{peer.name}: converting", file=sys.stderr)
            command = [part.format(source=source, target=target) for part in peer.convert]
            done = subprocess.run(
                [python, "-m", *command], capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise EngineError(f"{peer.name} cannot convert the model: {last}")
    return Worker(peer, python, target, threads)


class Worker:
    """A peer's process.

    Raises:
        EngineError: it cannot load the model, or fails on a prompt.
    """

    def __init__(self, peer: Peer, python: str, folder: Path, threads: int):
        self.name = peer.name
        self._process = subprocess.Popen(
            [python, str(WORKER), peer.kind, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.versions: dict[str, str] = self._read()["ready"]

    def ask(self, ids: list[int], new: int) -> Said:
        """`new` ids after a prompt of ids, and their times."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ids": ids, "new": new}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in said:
            self.close()
            raise EngineError(f"{self.name}: {said['error']}")
        return said


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    said = (
        f"{described(report['machine'])}. Prompt of {report['prompt_tokens']} tokens, "
        f"{report['steps']} decode steps, {report['rounds']} interleaved rounds, each form in a "
        "process of its own but ours. A ratio above 1 means that ours, at the same precision, is "
        f"faster; goal {report['goal']:g}x. In fp32 all forms gave the same ids."
    )
    heads = (
        "form | decode, ms a token, wall p50 / p90 | CPU p50 | ours is faster, wall | by CPU "
        "time | prefill, ms, wall p50 | CPU p50 | ours is faster, by CPU time | ids as in fp32"
    )
    rows = []
    for name, times in report["times"].items():
        wall, found = times["decode_wall_ms"], report["ratios"].get(name)
        faster = {key: interval(found[key]) if found else "-" for key in TIMES}
        rows.append(
            (name, f"{wall['p50']:.1f} / {wall['p90']:.1f}",
             f"{times['decode_cpu_ms']['p50']:.1f}", faster["decode_wall_ms"],
             faster["decode_cpu_ms"], f"{times['prefill_wall_ms']['p50']:.0f}",
             f"{times['prefill_cpu_ms']['p50']:.0f}", faster["prefill_cpu_ms"],
             f"{report['same_ids_as_fp32'][name]:.0%}")
        )  # fmt: skip
    notes = [
        f"{name}: {', '.join(f'{k} {v}' for k, v in found.items())}."
        for name, found in report["versions"].items()
    ]
    notes += [f"Not there: {name}, {why}." for name, why in report["missing"].items()]
    return page_of("Decode against peers", report, said, table_of(heads, rows), "\n".join(notes))


if __name__ == "__main__":
    main()
