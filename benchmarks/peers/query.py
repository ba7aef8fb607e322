"""A whole pixel-level query on a large scene: this package against PyTorch and plain ONNX Runtime.

    python -m geomag_edge.benchmarks.peers.query --bundle BUNDLE [--checkpoint CKPT]

All forms answer one question about one rendered scene, read from memory, with one token budget, a
forced "[SEG]" and a fixed number of tokens after it:

- `eager, reference`: `geomag_edge.model.inference.answer`, PyTorch with Hugging Face `generate`,
  written to be read (it encodes crops twice and reads the answer again for its hidden states);
- `eager`: the same modules with every view encoded once and no second reading: what a PyTorch user
  would deploy, and the baseline of the ratios;
- `eager bf16`: that with parameters and arithmetic in bfloat16;
- `torch.compile`: that in float32 with encoder, mask head and LLM compiled (dynamic shapes,
  inductor on the CPU), compiled before anything is timed, with Hugging Face's growing cache;
  `torch.compile, static cache` with its static one;
- `ort-cpu fp32`: our chain, each graph in ONNX Runtime as exported;
- `openvino bf16`, `openvino int8`: our chain, each graph in OpenVINO, one precision for all;
- `ours`: our chain as `--engine auto --precision auto` chooses (or another ENGINE/PRECISION that
  `--ours` names), measured before anything is timed.

Cropping is PscCrop's own kernel in all of them, so its gain (`speed/psc_crop.py`) is in none of the
ratios. Forms in fp32 must agree in tokens, views and mask logits before anything is timed; of the
others the agreement is reported. On random weights that says little: the logits of an untrained
decoder lie so close together that any rounding changes the words.

Rounds are interleaved in one process. The ratios of CPU time hold on a machine that does something
else as well. The last line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine
from geomag_edge.benchmarks.peers.agreement import Answer, agreement, require_same
from geomag_edge.benchmarks.publish import interval, page_of, publish, stage_table, table_of
from geomag_edge.benchmarks.timing import interleaved, ratios, spreads, stage_medians
from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import EngineError, GeoMagError, InputError
from geomag_edge.manifest import Bundle
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.scenes import render_scene

SCENE_SEED, PROMPT, PREFIX = 11, "segment the ships near the pier", "[SEG]"
OURS = "auto/auto"
CHAINS = {
    "ort-cpu fp32": "ort-cpu/fp32",
    "openvino bf16": "openvino/bf16",
    "openvino int8": "openvino/int8",
}
FP32 = ("eager, reference", "eager", "torch.compile", "torch.compile, static cache",
        "ort-cpu fp32")  # fmt: skip
FORMS = (*FP32[:2], "eager bf16", *FP32[2:4], *CHAINS, "ours")
GOALS = {"eager": 6.0, "torch.compile": 4.0, "ort-cpu fp32": 3.0}


@dataclass(frozen=True)
class Question:
    """What every form is asked.

    Attributes:
        image: u8[H,W,3].
        budget: visual tokens.
        new_tokens: ids after the prefix.
    """

    image: NDArray[np.uint8]
    budget: TokenBudget
    new_tokens: int


@dataclass
class Opened:
    """A form that is ready.

    Attributes:
        ask: answers once; what is timed.
        answer: the same, for the comparison.
        pipe: its chain, if it has one.
        stages: of a chain, the stages' milliseconds of each timed round.
    """

    ask: Callable[[], Any]
    answer: Callable[[], Answer]
    pipe: Pipeline | None = None
    stages: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, checkpoint=None, name="base", rounds=3, threads=1)
    parser.add_argument(
        "--forms", default=";".join(FORMS), help="separated by ; and the last is what is compared"
    )
    parser.add_argument("--ours", default=OURS, help="ENGINE/PRECISION (auto/auto)")
    parser.add_argument("--scene-px", type=int, default=4096)
    parser.add_argument("--new-tokens", type=int, default=16)
    args = parser.parse_args()
    try:
        report = measure(args)
    except GeoMagError as e:
        raise SystemExit(f"error: {e}") from e
    publish(report, as_markdown(report), args.results, f"peers_query_{args.name}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Opens the forms, compares their answers, times them in turn."""
    host = machine(args.threads)
    bundle = Bundle.open(args.bundle)
    scene = render_scene(SCENE_SEED, size_px=args.scene_px).image
    question = Question(scene, bundle.manifest.budgets["pixel"], args.new_tokens)
    forms = [name.strip() for name in args.forms.split(";")]
    opened, left_out = open_forms(forms, bundle, args, question)
    answers = {name: _first_answer(name, form, args.new_tokens) for name, form in opened.items()}
    reference = next((name for name in FP32 if name in answers), forms[0])
    require_same({n: a for n, a in answers.items() if n in FP32}, reference)
    times = interleaved(
        {name: form.ask for name, form in opened.items()},
        args.rounds,
        warmup=0,  # the answers that were compared have warmed all forms up
        progress=lambda name: print(f"{name}: timing", file=sys.stderr),
    )
    pipes = {name: form.pipe for name, form in opened.items() if form.pipe is not None}
    providers = {
        name: {graph: session.provider for graph, session in pipe.chain.sessions.items()}
        for name, pipe in pipes.items()
    }
    for pipe in pipes.values():
        pipe.close()
    ours = forms[-1]
    return {
        "command": "python -m geomag_edge.benchmarks.peers.query "
        f"--bundle {args.name} --rounds {args.rounds} --threads {args.threads} "
        f"--scene-px {args.scene_px} --new-tokens {args.new_tokens} --ours {args.ours!r}",
        "machine": host,
        "scene_px": args.scene_px,
        "visual_tokens": question.budget.visual_tokens,
        "views": len(answers[reference].boxes),
        "new_tokens": args.new_tokens,
        "rounds": args.rounds,
        "ours": args.ours,
        "reference": reference,
        "agreement": {n: agreement(a, answers[reference]) for n, a in answers.items()},
        "times": spreads(times),
        "raw_ms": times,
        "ratios": {n: ratios(t, times[ours]) for n, t in times.items() if n != ours},
        "goals": GOALS,
        "stages_ms": {n: stage_medians(form.stages) for n, form in opened.items() if form.stages},
        "providers": providers,
        "left_out": left_out,
    }


def open_forms(
    names: Sequence[str], bundle: Bundle, args: argparse.Namespace, question: Question
) -> tuple[dict[str, Opened], dict[str, str]]:
    """The forms that are ready, and why the others are left out."""
    opened: dict[str, Opened] = {}
    left_out: dict[str, str] = {}
    for name in names:
        print(f"{name}: opening", file=sys.stderr)
        try:
            opened[name] = open_form(name, bundle, args, question)
        except GeoMagError as e:
            if name not in CHAINS:  # only what a CPU or a bundle may lack is left out
                raise
            left_out[name] = str(e)
    return opened, left_out


def _first_answer(name: str, form: Opened, new_tokens: int) -> Answer:
    """What a form answers, as long as it has to be.

    Raises:
        InputError: the answer ended early.
    """
    print(f"{name}: first answer", file=sys.stderr)
    answer = form.answer()
    if len(answer.token_ids) != new_tokens + 1:
        raise InputError(
            f"{name} ended its answer after {len(answer.token_ids)} tokens, so it would "
            "do less work than the others: ask with another --new-tokens"
        )
    return answer


def open_form(name: str, bundle: Bundle, args: argparse.Namespace, question: Question) -> Opened:
    """Makes a form ready; for `torch.compile` its first answer is what compiles it."""
    if name == "ours" or name in CHAINS or "/" in name:
        return _open_chain(name, bundle, args, question)
    if name not in FORMS:
        raise EngineError(f"unknown form {name!r}: this script has {'; '.join(FORMS)}")
    import torch

    from geomag_edge.benchmarks.peers.torch_forms import TorchForm
    from geomag_edge.model.inference import answer
    from geomag_edge.model.processor import GeoMagProcessor

    torch.set_num_threads(args.threads)
    model = _model(bundle.root, args.checkpoint, name == "eager bf16")
    coder = PromptCoder.load(
        bundle.manifest.prompt, bundle.file("tokenizer.json"), bundle.file("psc_tokenizer.json")
    )
    processor = GeoMagProcessor(model.config, coder)
    if name == "eager, reference":
        image, budget = question.image, question.budget
        whole = partial(
            answer, model, processor, image, PROMPT, budget, question.new_tokens, PREFIX
        )

        def first_mask() -> Answer:
            found = whole()
            logits, quality = found.mask_logits[0].numpy(), found.quality[0].numpy()
            return Answer(found.token_ids, logits, quality, found.view_boxes, image.shape[:2])

        return Opened(whole, first_mask)
    form = TorchForm(model, processor, compiled="compile" in name, static_cache="static" in name)
    ask = partial(form.ask, question.image, PROMPT, question.budget, question.new_tokens, PREFIX)
    return Opened(ask, ask)


@cache
def _model(bundle: Path, checkpoint: Path | None, in_bf16: bool) -> Any:
    """The checkpoint's model; the forms of one dtype share its parameters."""
    from geomag_edge.runtime.engines.torch_engine import TorchEngine

    if in_bf16:
        import torch

        return copy.deepcopy(_model(bundle, checkpoint, False)).to(torch.bfloat16)
    return TorchEngine.open(Bundle.open(bundle), "fp32", None, checkpoint).model


def _open_chain(name: str, bundle: Bundle, args: argparse.Namespace, question: Question) -> Opened:
    engine, _, precision = {"ours": args.ours, **CHAINS}.get(name, name).partition("/")
    pipe = Pipeline.load(bundle, engine, precision, args.threads)
    ask = partial(pipe, question.image, PROMPT, question.budget, question.new_tokens, PREFIX)
    stages: list[dict[str, float]] = []
    return Opened(
        lambda: stages.append(ask().timings_ms), partial(answer_of, pipe, ask), pipe, stages
    )


def answer_of(pipe: Pipeline, ask: Callable[[], Any]) -> Answer:
    """A chain's answer, with the logits of its mask head view by view."""
    session, seen = pipe.chain.sessions["mask_head"], []

    class Seen:
        provider = session.provider
        close = session.close

        def run(self, feeds: Any, keep: frozenset[str] = frozenset()) -> dict[str, Any]:
            seen.append(session.run(feeds, keep))
            return seen[-1]

    pipe.chain.sessions["mask_head"] = Seen()
    try:
        result = ask()
    finally:
        pipe.chain.sessions["mask_head"] = session
    logits, quality = (
        np.asarray(seen[-1][key][0], np.float32) for key in ("mask_logits", "quality")
    )
    boxes = np.concatenate([result.view_box[None], result.crop_boxes])
    return Answer(result.token_ids, logits, quality, boxes, result.masks[0].shape)


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    said = (
        f"{described(report['machine'])}. Scene of {report['scene_px']} px, "
        f"{report['visual_tokens']} visual tokens from {report['views']} views, "
        f"{report['new_tokens']} new tokens; {report['rounds']} interleaved rounds. Speed is our "
        "form's over the row's, with a 95 % interval. Agreement is with "
        f"`{report['reference']}`; forms in fp32 had to give its tokens, views and masks."
    )
    heads = (
        "form | wall p50 / p90, ms | CPU p50, ms | ours is faster, wall | by CPU time | goal | "
        "tokens alike | views alike | mask IoU"
    )
    rows = []
    for name, times in report["times"].items():
        wall, goal = times["wall_ms"], report["goals"].get(name)
        alike, found = report["agreement"][name], report["ratios"].get(name)
        faster = [interval(found[c]) for c in ("wall_ms", "cpu_ms")] if found else ["-", "-"]
        rows.append(
            (name, f"{wall['p50']:.0f} / {wall['p90']:.0f}", f"{times['cpu_ms']['p50']:.0f}",
             *faster, f"{goal:g}x" if goal else "-", f"{alike['tokens']:.0%}",
             f"{alike['views']:.0%}", f"{alike['mask_iou']:.3f}")
        )  # fmt: skip
    parts = [said, table_of(heads, rows)]
    parts += [f"Left out: {name} ({why})." for name, why in report["left_out"].items()]
    parts.append(f"ours: `{report['ours']}`")
    if report["stages_ms"]:
        parts.append(stage_table(report["stages_ms"]))
    return page_of("A pixel-level query, against peers", report, *parts)


if __name__ == "__main__":
    main()
