"""The LLM as a graph: one step over new tokens with an explicit key-value cache.

Runs the parameters of a Hugging Face Llama, Qwen2 or Qwen3 model (none are copied) in the form
that exports to few, fused nodes: RMSNormalization, Attention with grouped heads, concatenation.
Source: the three models' definitions in `transformers`; the ONNX operators `Attention` and
`RMSNormalization` (opset 23).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomag_edge.errors import CheckpointError


class CachedDecoder(nn.Module):
    """`llm.onnx` around a causal language model of `transformers`."""

    def __init__(self, language_model: nn.Module):
        super().__init__()
        config = language_model.config
        check_decoder(config)
        self.language_model = language_model
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = config.num_hidden_layers

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One prefill (N = 0) or decode step.

        Args:
            inputs_embeds: [B,T,D].
            attention_mask: int64 [B,N+T], 1 where a position is real (prompts are left-padded).
            position_ids: int64 [B,T].
            past: key and value of each layer, 2 x layers tensors [B,Hkv,N,Dh].

        Returns:
            logits [B,1,V] of the last position, hidden_states [B,T,D] after the final norm, and
            the extended cache, 2 x layers tensors [B,Hkv,N+T,Dh].
        """
        model = self.language_model.model
        cos, sin = model.rotary_emb(inputs_embeds, position_ids)
        mask = _mask(attention_mask, inputs_embeds.shape[1])
        hidden = inputs_embeds
        present: list[Tensor] = []
        for i, layer in enumerate(model.layers):
            attended, key, value = self._attend(
                layer.self_attn,
                _rms(layer.input_layernorm, hidden),
                mask,
                cos,
                sin,
                past[2 * i],
                past[2 * i + 1],
            )
            present += [key, value]
            hidden = hidden + attended
            hidden = hidden + layer.mlp(_rms(layer.post_attention_layernorm, hidden))
        hidden = _rms(model.norm, hidden)
        logits = self.language_model.lm_head(hidden[:, -1:])
        return logits, hidden, present

    def _attend(
        self,
        attn: nn.Module,
        x: Tensor,
        mask: Tensor,
        cos: Tensor,
        sin: Tensor,
        past_key: Tensor,
        past_value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,T,D], mask [B,1,T,N+T] -> output [B,T,D], key and value [B,Hkv,N+T,Dh]."""
        batch, steps = x.shape[0], x.shape[1]
        query = attn.q_proj(x).view(batch, steps, self.heads, self.head_dim)
        key = attn.k_proj(x).view(batch, steps, self.kv_heads, self.head_dim)
        value = attn.v_proj(x).view(batch, steps, self.kv_heads, self.head_dim).transpose(1, 2)
        if hasattr(attn, "q_norm"):  # Qwen3
            query, key = _rms(attn.q_norm, query), _rms(attn.k_norm, key)
        query = _rotate(query.transpose(1, 2), cos, sin)
        key = _rotate(key.transpose(1, 2), cos, sin)
        key = torch.cat([past_key, key], dim=2)
        value = torch.cat([past_value, value], dim=2)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=self.head_dim**-0.5,
            enable_gqa=self.heads != self.kv_heads,
        )
        return attn.o_proj(out.transpose(1, 2).reshape(batch, steps, -1)), key, value


def _mask(attention_mask: Tensor, steps: int) -> Tensor:
    """int64 [B,N+T] -> bool [B,1,T,N+T]: causal, and blind to padding.

    A padded query row keeps its own position, since a row of all False has no softmax.
    """
    total = attention_mask.shape[1]
    position = torch.arange(total, device=attention_mask.device)
    query = (torch.arange(steps, device=attention_mask.device) + (total - steps))[:, None]  # [T,1]
    causal = position[None] <= query  # [T,N+T]
    itself = position[None] == query
    real = attention_mask.bool()[:, None, None]  # [B,1,1,N+T]
    return (causal & real) | itself


def _rms(norm: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B,H,T,Dh] by cos, sin [B,T,Dh] (halves, not interleaved)."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos[:, None] + turned * sin[:, None]


def check_decoder(config: Any) -> None:
    """Refuses what the graph form does not carry.

    Raises:
        CheckpointError: attention over anything but all that came before, or a rotary scaling
            that changes with length, is unknown or does not fit a head.
    """
    if not getattr(config, "is_causal", True):
        raise CheckpointError(
            "the language model's config says is_causal false: its words look ahead, so it cannot "
            "answer word by word; give a causal model"
        )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(
            f"the language model has {heads} heads of {head_dim}, and {kv_heads} for keys and "
            "values: the first must be a multiple of the last, and a head's size even"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if "sliding_attention" in kinds:
        raise CheckpointError(
            "the language model uses sliding-window attention, which the exported cache does not "
            "support: set use_sliding_window to false"
        )
    if kinds:
        raise CheckpointError(
            f"the language model has layers of {min(kinds)!r}, which the exported cache does not "
            "support: only full_attention"
        )
    rotary = getattr(config, "rope_parameters", None) or {}
    forms = [rotary, *(form for form in rotary.values() if isinstance(form, dict))]
    for form in forms:  # one for all layers, or one for each kind of layer
        rope = form.get("rope_type", "default")
        if rope not in FIXED_ROPES:
            raise CheckpointError(
                f"rotary scaling {rope!r} changes with the prompt's length and cannot be exported: "
                "use default, linear, llama3 or yarn"
                if rope in ("dynamic", "longrope")
                else f"rotary scaling {rope!r} is not supported: use {', '.join(FIXED_ROPES)}"
            )
        share = form.get("partial_rotary_factor")
        if rope in WHOLE_ROPES and share not in (None, 1):
            raise CheckpointError(
                f"rotary scaling {rope!r} with partial_rotary_factor {share} turns a part of each "
                "head, which these decoders cannot do in transformers either: set it to 1"
            )


FIXED_ROPES = ("default", "linear", "llama3", "yarn", "proportional")
WHOLE_ROPES = ("linear", "llama3", "yarn")
"""Those that a partial factor would make narrower than a head; `default` ignores it."""
