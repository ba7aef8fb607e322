"""llm.onnx: one graph for prefill (N = 0) and decode, one prompt or a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomag_edge.export.graph import GraphExport
from geomag_edge.graphs import llm_spec
from geomag_edge.model.decoder import CachedDecoder
from geomag_edge.model.geomag import GeoMagForConditionalGeneration


class LlmGraph(nn.Module):
    """The cached decoder with its cache as flat arguments and results, as the contract has it."""

    def __init__(self, decoder: CachedDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *cache: Tensor
    ) -> tuple[Tensor, ...]:
        """See `CachedDecoder.forward`."""
        logits, hidden, present = self.decoder(
            inputs_embeds, attention_mask, position_ids, list(cache)
        )
        return logits, hidden, *present


def llm_graph(model: GeoMagForConditionalGeneration) -> GraphExport:
    """The LLM with a concatenating key-value cache."""
    decoder = model.decoder()
    batch, steps, past = 2, 3, 5
    hidden = model.config.text_config.hidden_size
    cache = [
        torch.zeros(batch, decoder.kv_heads, past, decoder.head_dim, dtype=model.dtype)
        for _ in range(2 * decoder.layers)
    ]
    example = (
        torch.zeros(batch, steps, hidden, dtype=model.dtype),
        torch.ones(batch, past + steps, dtype=torch.int64),
        torch.arange(past, past + steps).expand(batch, -1).contiguous(),
        *cache,
    )
    return GraphExport(llm_spec(decoder.layers), LlmGraph(decoder), example)
