"""The answers of a step: their loss, and how often the deciding tokens are right."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from geomag_edge.model.train.losses import losses
from geomag_edge.model.train.samples.data import Visit
from geomag_edge.model.train.samples.packing import DIGIT_WEIGHTS, IGNORED, Packed


def answer_part(
    lm_head: nn.Module, packed: Packed, hidden: Tensor, visits: list[Visit]
) -> tuple[Tensor, dict[str, float]]:
    """Weighted cross-entropy of the answers, given hidden [B,T,D], and numbers for the log."""
    asked = packed.labels != IGNORED
    wanted = packed.labels[asked]
    logits = lm_head(hidden[asked])
    right = torch.zeros(asked.shape)
    right[asked.cpu()] = (logits.detach().argmax(-1) == wanted).float().cpu()
    heavy = packed.weights.cpu() == DIGIT_WEIGHTS[0]
    return losses.answer_loss(logits, wanted, packed.weights[asked]), _rights(
        packed, visits, right, heavy
    )


def _rights(packed: Packed, visits: list[Visit], right: Tensor, heavy: Tensor) -> dict[str, float]:
    """Shares that are right: the first token of image-level answers, by kind and as
    `word_accuracy`, descriptions as a whole, and the hundreds of boxes."""
    seen: dict[str, list[float]] = defaultdict(list)
    for b, visit in enumerate(visits):
        for question, (_, first, stop) in zip(visit.questions, packed.spans[b], strict=True):
            if question.level == "image":
                for name in (f"right/{question.kind}", "word_accuracy"):
                    seen[name].append(float(right[b, first]))
            elif question.kind == "describe_box":
                seen["right/describe_box"].append(float(right[b, first:stop].all()))
            elif question.kind == "find_box":
                hundreds = right[b, first:stop][heavy[b, first:stop]]
                seen["right/hundreds"].append(float(hundreds.mean()))
    return {name: sum(values) / len(values) for name, values in seen.items()}
