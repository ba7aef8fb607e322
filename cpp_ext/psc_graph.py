"""psc.onnx from psc_select.onnx: the image's own view box in front, the PscCrop node behind.

Everything else, weights included, is psc_select's own, so the cut between the two is exact.
"""

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto, TensorProto, helper, numpy_helper

from .onnx_op import DOMAIN, OP_TYPE, add_psc_crop


def add_crops(model: ModelProto, mean_std: ArrayLike, view_px: int, max_crops: int) -> None:
    """Turns psc_select into psc, in place: image in, crops out.

    Args:
        model: psc_select; external data is referred to, not read.
        mean_std: f32[2,3] in 0..1 units.
        view_px: side S of a crop.
        max_crops: K, the boxes that psc_select gives.
    """
    graph = model.graph
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray(mean_std, np.float32), "mean_std"),
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
        OP_TYPE,
        ["image", "boxes", "mean_std"],
        ["crops"],
        domain=DOMAIN,
        size=view_px,
        plugin_namespace=DOMAIN,
    )
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
    graph.output.append(
        helper.make_tensor_value_info("crops", TensorProto.FLOAT, [max_crops, 3, view_px, view_px])
    )
    add_psc_crop(model)
