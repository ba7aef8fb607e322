"""mask_head.onnx: feature maps and [SEG] hidden states -> mask logits and quality."""

from __future__ import annotations

import torch

from geomag_edge.export.graph import GraphExport
from geomag_edge.graphs import MASK_HEAD
from geomag_edge.model.geomag import GeoMagForConditionalGeneration


def mask_head_graph(model: GeoMagForConditionalGeneration) -> GraphExport:
    """The mask head over any number of views and queries."""
    config = model.config
    side = 2 * config.grid
    features = torch.zeros(3, config.mask["feature_dim"], side, side, dtype=model.dtype)
    queries = torch.zeros(2, config.text_config.hidden_size, dtype=model.dtype)
    return GraphExport(MASK_HEAD, model.mask_head, (features, queries))
