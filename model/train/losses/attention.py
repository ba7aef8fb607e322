"""Forms of the model's parts that train faster in bfloat16 on CPUs; the weights are the same.

On CPUs with AMX the backward pass of PyTorch's fused attention takes longer than the rest of a
small vision tower together; two matrix products and a softmax take half of its time. Keeping the
residual streams in bfloat16 saves another tenth, one fused RMSNorm as much in the language model.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.mask_head import CrossAttention

NAME = "geomag_plain"


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B,H,T,D], key and value [B,Hkv,N,D], mask [B,1,T,N] to add -> [B,T,H,D]."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores += attention_mask  # in place: a product's gradient does not need its result
    watch = getattr(module, "watch", None)
    if watch is not None:
        watch.keep_scores(module.layer_idx, scores)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add from one that is True where attention is allowed."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min / 2)


def use_plain_attention(model: GeoMagForConditionalGeneration) -> None:
    """Switches the towers and the language model; nothing of it is saved with the weights."""
    AttentionInterface.register(NAME, plain_attention)
    config = model.config
    for part in (config.vision_config, config.text_config):
        part._attn_implementation = NAME
    for module in model.mask_head.modules():
        if isinstance(module, CrossAttention):
            module.attend = _plain
    for module in model.language_model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_rms, module)


def stream_in_bfloat16(model: GeoMagForConditionalGeneration) -> None:
    """Makes the vision tower's residual stream bfloat16 under autocast."""

    def to_half(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        kind = output.device.type
        return output.to(torch.bfloat16) if torch.is_autocast_enabled(kind) else output

    model.encoder.tower.embeddings.register_forward_hook(to_half)
    model.encoder.detail.to(memory_format=torch.channels_last)


def _rms(self: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.variance_epsilon)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[b,H,t,D], [b,H,s,D] twice -> [b,H,t,D]."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value
