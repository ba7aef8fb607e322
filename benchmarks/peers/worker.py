"""A peer's language model in a process of its own, asked over standard input and output.

    PYTHON worker.py genai|optimum|transformers FOLDER THREADS

Runs in whatever interpreter holds the peer, so it imports nothing of this package. The first line
that it writes is {"ready": versions} or {"error": one line}. Then every line {"ids": prompt,
"new": n} is answered by {"ids": n new ids, and wall and CPU milliseconds of the prompt's pass and
of the n - 1 steps after it}. Greedy, no token is barred but the end of the answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Clock = tuple[float, float]
Answer = tuple[list[int], Clock, Clock, Clock]
"""New ids; the clocks at the start, after the first new id, and at the end."""


def now() -> Clock:
    """Wall and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def genai(folder: str, threads: int) -> Callable[[list[int], int], Answer]:
    """onnxruntime-genai on a folder that its model builder wrote."""
    import onnxruntime_genai as og

    config = og.Config(folder)
    options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def answer(ids: list[int], new: int) -> Answer:
        params = og.GeneratorParams(model)
        length = len(ids) + new
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        start = now()
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = now()
        for _ in range(new - 1):
            generator.generate_next_token()
        end = now()
        return [int(i) for i in generator.get_sequence(0)[len(ids) :]], start, first, end

    return answer


def hugging_face(load: Callable[[], Any]) -> Callable[[list[int], int], Answer]:
    """Anything with Hugging Face's `generate`."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stamps(StoppingCriteria):
        """Notes when each id was there; stops nothing."""

        def __init__(self) -> None:
            self.at: list[Clock] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.at.append(now())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    model = load()

    def answer(ids: list[int], new: int) -> Answer:
        stamps = Stamps()
        prompt = torch.tensor([ids])
        start = now()
        with torch.inference_mode():
            whole = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                num_beams=1, min_new_tokens=new, max_new_tokens=new,
                stopping_criteria=StoppingCriteriaList([stamps]),
            )  # fmt: skip
        return whole[0, len(ids) :].tolist(), start, stamps.at[0], stamps.at[-1]

    return answer


def optimum(folder: str, threads: int) -> Callable[[list[int], int], Answer]:
    """optimum-onnx's export in ONNX Runtime, through its own `generate`."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return hugging_face(
        lambda: ORTModelForCausalLM.from_pretrained(folder, session_options=options)
    )


def transformers(folder: str, threads: int) -> Callable[[list[int], int], Answer]:
    """PyTorch eager."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    return hugging_face(lambda: AutoModelForCausalLM.from_pretrained(folder).eval())


KINDS = {"genai": genai, "optimum": optimum, "transformers": transformers}
PACKAGES = ("onnxruntime-genai", "onnxruntime", "optimum-onnx", "optimum", "transformers", "torch")


def versions() -> dict[str, str]:
    """Of what this interpreter has."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Serves until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    kind, folder, threads = sys.argv[1:]

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        answer = KINDS[kind](folder, int(threads))
    except Exception as e:
        reason = (str(e).strip().splitlines() or [""])[0]
        say({"error": f"{type(e).__name__}: {reason}"})
        return
    say({"ready": versions()})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            ids, start, first, end = answer(asked["ids"], asked["new"])
        except Exception as e:
            reason = (str(e).strip().splitlines() or [""])[0]
            say({"error": f"{type(e).__name__}: {reason}"})
            continue
        spans = {"prefill": (start, first), "decode": (first, end)}
        times = {
            f"{name}_{clock}_ms": (b[i] - a[i]) * 1e3
            for name, (a, b) in spans.items()
            for i, clock in enumerate(("wall", "cpu"))
        }
        say({"ids": ids, **times})


if __name__ == "__main__":
    main()
