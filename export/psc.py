"""psc.onnx and psc_select.onnx: prompt and patch embeddings -> level, relevance, boxes, crops.

psc_select.onnx is exported; psc.onnx is the same graph (and the same weights file) with the
image's own view box in front and the PscCrop node behind, so the cut between them is exact.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.cpp_ext.onnx_op import DOMAIN, OP_TYPE, add_psc_crop
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


def add_crops(select: Path, config: GeoMagConfig, folder: Path) -> Path:
    """Writes psc.onnx from psc_select.onnx: image in, crops out, weights shared.

    Args:
        select: path of psc_select.onnx; its external data is referred to, not copied.
        config: the model's `GeoMagConfig`.
        folder: where psc.onnx goes, the same folder.
    """
    model = onnx.load(str(select), load_external_data=False)
    graph = model.graph
    view_px = config.view_px
    mean_std = np.array([config.image_mean, config.image_std], np.float32)
    graph.initializer.extend(
        [
            numpy_helper.from_array(mean_std, "mean_std"),
            numpy_helper.from_array(np.array([0], np.int64), "psc_zero"),
            numpy_helper.from_array(np.array([2], np.int64), "psc_two"),
            numpy_helper.from_array(np.array([1, 0], np.int64), "psc_swap"),
            numpy_helper.from_array(np.array(0.5, np.float32), "psc_half"),
        ]
    )
    front = [
        helper.make_node("Shape", ["image"], ["image_shape"]),
        helper.make_node("Slice", ["image_shape", "psc_zero", "psc_two"], ["psc_hw_int"]),
        helper.make_node("Cast", ["psc_hw_int"], ["psc_hw"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["psc_hw"], ["psc_side"], keepdims=1),
        helper.make_node("Sub", ["psc_hw", "psc_side"], ["psc_margin"]),
        helper.make_node("Mul", ["psc_margin", "psc_half"], ["psc_y0x0"]),
        helper.make_node("Gather", ["psc_y0x0", "psc_swap"], ["psc_x0y0"]),
        helper.make_node("Add", ["psc_x0y0", "psc_side"], ["psc_x1y1"]),
        helper.make_node("Concat", ["psc_x0y0", "psc_x1y1"], ["view_box"], axis=0),
    ]
    crop = helper.make_node(
        OP_TYPE, ["image", "boxes", "mean_std"], ["crops"], domain=DOMAIN, size=view_px,
        plugin_namespace=DOMAIN,
    )  # fmt: skip
    nodes = [*front, *graph.node, crop]
    del graph.node[:]
    graph.node.extend(nodes)

    kept = {v.name: v for v in graph.input}
    del graph.input[:]
    graph.input.extend(
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["H", "W", 3]),
            kept["embeds"],
            kept["prompt_ids"],
        ]
    )
    crops = config.psc["max_crops"]
    graph.output.append(
        helper.make_tensor_value_info("crops", TensorProto.FLOAT, [crops, 3, view_px, view_px])
    )
    add_psc_crop(model)
    path = folder / PSC.file
    onnx.save_model(model, str(path))
    finish(path, PSC)
    return path
