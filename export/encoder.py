"""encoder.onnx: views -> tokens, embeds, features."""

from __future__ import annotations

import torch

from geomag_edge.export.graph import GraphExport
from geomag_edge.graphs import ENCODER
from geomag_edge.model.geomag import GeoMagForConditionalGeneration


def encoder_graph(model: GeoMagForConditionalGeneration) -> GraphExport:
    """The encoder over any number of views."""
    side = model.config.view_px
    return GraphExport(ENCODER, model.encoder, (torch.zeros(2, 3, side, side, dtype=model.dtype),))
