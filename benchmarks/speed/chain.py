"""How fast the exported chain answers on a CPU, against the PyTorch it came from.

    python -m geomag_edge.benchmarks.speed.chain [--preset base] [--rounds 9]

What is measured, at full precision (fp32) on the same inputs, interleaved in one process, medians:

- one decode step of the LLM after a pixel-level prompt, in three forms: Hugging Face eager with its
  DynamicCache (what `generate` runs), the `torch` engine, and `ort-cpu`;
- a whole pixel-level query (crop, encode, select, project, prefill, decode, mask) on a rendered
  scene, `torch` engine against `ort-cpu`.

What bounds it: a decode step reads every weight of the decoder once, so its floor is bytes of
weights over memory bandwidth; what is above that in eager PyTorch is launching some 40 small
operators a layer. Prefill and the encoder are matrix products, where both use the same kind of
kernels and little is to be gained before quantisation.

On the Xeon of the committed result a decode step reads the decoder's 830 MB in 38.7 ms, 21 GB/s,
where a plain read of 145 MB ran at 18 GB/s (psc_crop's result, same machine), so at full
precision little is left. The encoder and the prefill are large fp32 matrix products, within a
fifth of each other in both engines; fewer bytes or cheaper products (int8, int4, bf16) are what
could give more. The `torch` engine runs our own decoder form, which is itself 1.8x faster a step
than Hugging Face eager. Both goals are missed here. Tried by hand, on a machine that was not
always quiet: huge pages for the weights, and one memory arena for all graphs; neither showed a
gain in time (the arena is kept for its memory).

The weights are random and seeded: time does not depend on what a model has learnt. Answers of both
engines must be equal before anything is timed. The last line of stdout is one JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from geomag_edge.benchmarks.arguments import parser_of
from geomag_edge.benchmarks.machine import machine
from geomag_edge.benchmarks.publish import page_of, publish, stage_table, table_of
from geomag_edge.benchmarks.timing import Form, interleaved, medians, stage_medians
from geomag_edge.export.exporter import export_bundle
from geomag_edge.graphs import present_names
from geomag_edge.model.presets import make_preset
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.feeds import prompt_feeds, step_feeds
from geomag_edge.runtime.engines.torch_engine import TorchEngine
from geomag_edge.scenes import render_scene

PROMPT, PREFIX, NEW_TOKENS = "segment the ships near the pier", "[SEG]", 16
PACKAGES = ("torch", "transformers", "onnxruntime", "numpy")
GOALS = {"decode step": 2.2, "pixel-level query": 1.3}


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, preset="base", rounds=9, threads=2)
    parser.add_argument("--bundle", type=Path, help="use this bundle of the preset, do not export")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            print(f"exporting a seeded {args.preset} checkpoint", file=sys.stderr)
            bundle = Path(folder) / "bundle"
            export_bundle(make_preset(args.preset, Path(folder) / "checkpoint"), bundle)
        report = measure(bundle, args.preset, args.rounds, args.threads)
    publish(report, as_markdown(report), args.results, f"chain_{args.preset}")


def measure(bundle: Path, preset: str, rounds: int, threads: int) -> dict[str, Any]:
    """Times both engines on one scene; see the module's docstring."""
    scene = render_scene(11, size_px=2048).image
    with (
        Pipeline.load(bundle, engine="torch", threads=threads) as eager,
        Pipeline.load(bundle, engine="ort-cpu", threads=threads) as ours,
    ):
        queries = {"torch": eager, "ort-cpu": ours}
        answers = {name: ask(pipe, scene) for name, pipe in queries.items()}
        if answers["torch"].token_ids != answers["ort-cpu"].token_ids:
            raise SystemExit("the engines' answers differ: nothing was timed")
        forms = {name: partial(ask, pipe, scene) for name, pipe in queries.items()}
        whole = medians(interleaved(forms, rounds))
        stages = {
            name: stage_medians([form().timings_ms for _ in range(max(3, rounds // 3))])
            for name, form in forms.items()
        }
        past = answers["ort-cpu"].budget.visual_tokens + 24
        step = medians(interleaved(decode_steps(eager, ours, past), rounds * 5, warmup=5))
    ratios = {
        "decode step": step["hugging-face eager"] / step["ort-cpu"],
        "decode step, torch engine": step["torch"] / step["ort-cpu"],
        "pixel-level query": whole["torch"] / whole["ort-cpu"],
    }
    return {
        "preset": preset,
        "command": f"python -m geomag_edge.benchmarks.speed.chain --preset {preset} "
        f"--rounds {rounds}",
        "machine": machine(threads, PACKAGES),
        "scene_px": list(scene.shape[:2]),
        "visual_tokens": answers["ort-cpu"].budget.visual_tokens,
        "new_tokens": NEW_TOKENS,
        "past_tokens_at_decode": past,
        "decode_step_ms": step,
        "query_ms": whole,
        "stages_ms": stages,
        "ratios": ratios,
        "goals": GOALS,
        "rounds": rounds,
    }


def ask(pipe: Pipeline, scene: np.ndarray) -> Any:
    """One whole pixel-level query, nothing reused from an earlier one."""
    return pipe(scene, PROMPT, "pixel", NEW_TOKENS, PREFIX)


def decode_steps(eager: Pipeline, ours: Pipeline, past: int) -> dict[str, Form]:
    """One decode step at `past` tokens in each form, each with a cache of its own making."""
    engine = eager.chain.engine
    assert isinstance(engine, TorchEngine)
    language_model = engine.model.language_model
    shape = ours.bundle.manifest.decoder
    rng = np.random.default_rng(0)
    prompt = rng.standard_normal((1, past, shape.hidden), np.float32) * 0.02
    token = rng.standard_normal((1, 1, shape.hidden), np.float32) * 0.02
    kept = frozenset(present_names(shape.layers))

    def by_graph(pipe: Pipeline) -> Callable[[], Any]:
        llm = pipe.chain.sessions["llm"]
        filled = llm.run(prompt_feeds(prompt, shape), keep=kept)
        feeds = step_feeds(token, past, shape.layers, filled)
        return lambda: llm.run(feeds, keep=kept)["logits"]

    cache = DynamicCache()
    with torch.inference_mode():
        language_model(
            inputs_embeds=torch.from_numpy(prompt), past_key_values=cache, logits_to_keep=1
        )

    def hugging_face() -> Any:
        with torch.inference_mode():
            out = language_model(
                inputs_embeds=torch.from_numpy(token), past_key_values=cache, use_cache=True
            )
        cache.crop(-1)  # back to where every other form starts: a view, no copy
        return out.logits.numpy()

    steps = {
        "hugging-face eager": hugging_face,
        "torch": by_graph(eager),
        "ort-cpu": by_graph(ours),
    }
    logits = [step() for step in steps.values()]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-4 * np.abs(logits[0]).max())
    return steps


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    said = (
        f"{report['machine']['cpu']}, {report['machine']['threads']} threads; "
        + ", ".join(f"{k} {v}" for k, v in report["machine"]["versions"].items())
        + f". Scene {report['scene_px'][1]} x {report['scene_px'][0]} px, "
        f"{report['visual_tokens']} visual tokens, {report['new_tokens']} new tokens, decode at "
        f"{report['past_tokens_at_decode']} past tokens. Medians, interleaved."
    )
    step, whole, ratios = report["decode_step_ms"], report["query_ms"], report["ratios"]
    rows = (
        ("decode step, ms", f"{step['hugging-face eager']:.1f}", f"{step['torch']:.1f}",
         f"{step['ort-cpu']:.1f}", f"{ratios['decode step']:.2f}x", f"{GOALS['decode step']}x"),
        ("pixel-level query, ms", "-", f"{whole['torch']:.0f}", f"{whole['ort-cpu']:.0f}",
         f"{ratios['pixel-level query']:.2f}x", f"{GOALS['pixel-level query']}x"),
    )  # fmt: skip
    stages = {
        "torch engine": report["stages_ms"]["torch"],
        "ort-cpu": report["stages_ms"]["ort-cpu"],
    }
    return page_of(
        f"Chain on `{report['preset']}`, fp32, CPU",
        report,
        said,
        table_of(
            "what | Hugging Face eager | torch engine | ort-cpu | ratio to ort-cpu | goal", rows
        ),
        stage_table(stages),
    )


if __name__ == "__main__":
    main()
