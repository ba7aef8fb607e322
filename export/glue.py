"""The glue graphs: embed.onnx (token ids -> embeddings) and projector.onnx (tokens -> LLM)."""

from __future__ import annotations

import torch

from geomag_edge.export.graph import GraphExport
from geomag_edge.graphs import EMBED, PROJECTOR
from geomag_edge.model.geomag import GeoMagForConditionalGeneration


def embed_graph(model: GeoMagForConditionalGeneration) -> GraphExport:
    """The LLM's token embedding."""
    return GraphExport(EMBED, model.get_input_embeddings(), (torch.zeros(2, 3, dtype=torch.int64),))


def projector_graph(model: GeoMagForConditionalGeneration) -> GraphExport:
    """Pooling and projection; the pooling matrix is an input, so any token budget runs."""
    config, dtype = model.config, model.dtype
    patches = config.grid**2
    tokens = torch.zeros(2, patches, config.vision_config.hidden_size, dtype=dtype)
    pooling = torch.zeros(9, patches, dtype=dtype)
    return GraphExport(PROJECTOR, model.projector, (tokens, pooling, torch.zeros(2, 9, 5)))
