"""psc.onnx and psc_select.onnx: prompt and patch embeddings -> level, relevance, boxes, crops.

psc_select.onnx is exported; psc.onnx is the same graph (and the same weights file) with the
image's own view box in front and the PscCrop node behind, so the cut between them is exact.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from geomag_edge.cpp_ext.psc_graph import add_crops
from geomag_edge.export.graph import GraphExport, finish
from geomag_edge.graphs import PSC, PSC_SELECT
from geomag_edge.model.config import GeoMagConfig
from geomag_edge.model.geomag import GeoMagForConditionalGeneration


def psc_select_graph(model: GeoMagForConditionalGeneration) -> GraphExport:
    """PSC and the router up to the boxes."""
    config = model.config
    embeds = torch.zeros(1, config.grid**2, config.psc["embed_dim"], dtype=model.dtype)
    prompt_ids = torch.ones(1, 5, dtype=torch.int64)
    view_box = torch.tensor([0.0, -50.0, 300.0, 250.0])
    image_shape = torch.tensor([200, 300, 3])
    return GraphExport(PSC_SELECT, model.psc, (embeds, prompt_ids, view_box, image_shape))


def psc_graph(select: Path, config: GeoMagConfig, folder: Path) -> Path:
    """Writes psc.onnx from psc_select.onnx: image in, crops out, weights shared.

    Args:
        select: path of psc_select.onnx; its external data is referred to, not copied.
        config: the model's `GeoMagConfig`.
        folder: where psc.onnx goes, the same folder.
    """
    model = onnx.load(str(select), load_external_data=False)
    mean_std = np.array([config.image_mean, config.image_std], np.float32)
    add_crops(model, mean_std, config.view_px, config.psc["max_crops"])
    path = folder / PSC.file
    onnx.save_model(model, str(path))
    finish(path, PSC)
    return path
