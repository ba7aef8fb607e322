"""The language model's decode step in torch on the same GPU, for comparison."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from geomag_edge.manifest import Bundle


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
