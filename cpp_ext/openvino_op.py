"""PscCrop in OpenVINO: psc.onnx as it is, with our kernel in it.

OpenVINO's ONNX reader (2026.4) takes no model-local functions, so it needs to be told what the
node `geomag::PscCrop` is. Importing this module needs the `openvino` extra.
"""

from __future__ import annotations

from typing import Any

import openvino
from openvino.frontend.onnx import ConversionExtension

from .crop import psc_crop

DOMAIN, OP_TYPE = "geomag", "PscCrop"


class PscCrop(openvino.Op):
    """(image u8[H,W,3], boxes f32[K,4], mean_std f32[2,3]) -> views f32[K,3,size,size]."""

    def __init__(self, inputs: Any = None, size: int = 0):
        super().__init__(self)
        self.size = size
        if inputs is not None:
            self.set_arguments(inputs)
            self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        """K is known when the boxes' shape is."""
        count = self.get_input_partial_shape(1)[0]
        shape = openvino.PartialShape([count, 3, self.size, self.size])
        self.set_output_type(0, openvino.Type.f32, shape)

    def clone_with_new_inputs(self, inputs: Any) -> PscCrop:
        """OpenVINO copies nodes as it rewrites a model."""
        return PscCrop(inputs, self.size)

    def visit_attributes(self, visitor: Any) -> bool:
        """The attributes that make two nodes equal."""
        visitor.on_attributes({"size": self.size})
        return True

    def has_evaluate(self) -> bool:
        """`evaluate` computes it."""
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """Runs the CPU kernel."""
        image, boxes, mean_std = (tensor.data for tensor in inputs)
        views = psc_crop(image, boxes, mean_std, self.size)
        outputs[0].shape = views.shape
        outputs[0].data[:] = views
        return True


def psc_crop_extension() -> ConversionExtension:
    """What `openvino.Core().add_extension` takes before it reads psc.onnx."""

    def convert(node: Any) -> Any:
        inputs = [node.get_input(i) for i in range(3)]
        return PscCrop(inputs, node.get_attribute("size")).outputs()

    return ConversionExtension(OP_TYPE, DOMAIN, convert)
