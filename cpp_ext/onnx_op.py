"""PscCrop in ONNX: the node `geomag::PscCrop` and its model-local function body.

A runtime with a registered kernel uses that; any other inlines the body,
which is written in standard operators and gives the same views, slowly. Importing this module
needs the onnx package, and `psc_crop_translations` needs torch and onnxscript as well.
"""

from collections.abc import Callable
from typing import Any

import onnx
import onnx.inliner
import onnx.parser
from onnx import FunctionProto, ModelProto, NodeProto, helper

from geomag_edge.errors import ExportError, MissingExtraError

DOMAIN = "geomag"
DOMAIN_VERSION = 1
OP_TYPE = "PscCrop"

# Coordinates are computed in double, as in the kernels, and weights are taken relative to the
# window's first pixel, so that a runtime that narrows double to float loses little. Used
# twice: for rows (a = y) and for columns (a = x).
_AXIS = """
    {a}_low_f = Gather <axis = 0> (box, {low_index})
    {a}_high_f = Gather <axis = 0> (box, {high_index})
    {a}_length_f = Sub ({a}_high_f, {a}_low_f)
    {a}_low = Cast <to = 11> ({a}_low_f)
    {a}_high = Cast <to = 11> ({a}_high_f)
    {a}_length = Cast <to = 11> ({a}_length_f)
    {a}_scale = Div ({a}_length, size_d)
    {a}_radius = Max ({a}_scale, one_d)
    {a}_extent_i = Gather <axis = 0> (image_shape, {extent_index})
    {a}_extent = Cast <to = 11> ({a}_extent_i)

    {a}_from_edge = Sub ({a}_low, {a}_radius)
    {a}_from_floor = Floor ({a}_from_edge)
    {a}_last = Sub ({a}_extent, one_d)
    {a}_from_low = Max ({a}_from_floor, zero_d)
    {a}_from = Min ({a}_from_low, {a}_last)
    {a}_to_edge = Add ({a}_high, {a}_radius)
    {a}_to_ceil = Ceil ({a}_to_edge)
    {a}_from_next = Add ({a}_from, one_d)
    {a}_to_low = Max ({a}_to_ceil, {a}_from_next)
    {a}_to = Min ({a}_to_low, {a}_extent)
    {a}_from_i = Cast <to = 7> ({a}_from)
    {a}_to_i = Cast <to = 7> ({a}_to)

    {a}_steps = Mul (middles, {a}_scale)
    {a}_centres = Add ({a}_low, {a}_steps)
    {a}_not_before = GreaterOrEqual ({a}_centres, zero_d)
    {a}_not_after = Less ({a}_centres, {a}_extent)
    {a}_inside = And ({a}_not_before, {a}_not_after)

    {a}_base = Floor ({a}_low)
    {a}_part = Sub ({a}_low, {a}_base)
    {a}_near_centres = Add ({a}_part, {a}_steps)
    {a}_taps_i = Range ({a}_from_i, {a}_to_i, one_i)
    {a}_taps = Cast <to = 11> ({a}_taps_i)
    {a}_near_taps = Sub ({a}_taps, {a}_base)
    {a}_tap_centres = Add ({a}_near_taps, half_d)
    {a}_signed = Sub ({a}_tap_centres, {a}_near_centres)
    {a}_distance = Abs ({a}_signed)
    {a}_share = Div ({a}_distance, {a}_radius)
    {a}_rise = Sub (one_d, {a}_share)
    {a}_triangle = Max ({a}_rise, zero_d)
    {a}_total = ReduceSum <keepdims = 1> ({a}_triangle, last_axis)
    {a}_divisor = Where ({a}_inside, {a}_total, one_d)
    {a}_weights_d = Div ({a}_triangle, {a}_divisor)
    {a}_weights = Cast <to = 1> ({a}_weights_d)
"""

_FUNCTION = """
<domain: "geomag", opset_import: ["" : {opset}]>
PscCrop <size> (image, boxes, mean_std) => (views)
{{
    size_i = Constant <value_int: int = @size> ()
    size_d = Cast <to = 11> (size_i)
    zero_i = Constant <value = int64 {{0}}> ()
    one_i = Constant <value = int64 {{1}}> ()
    two_i = Constant <value = int64 {{2}}> ()
    three_i = Constant <value = int64 {{3}}> ()
    zero_d = Constant <value = double {{0.0}}> ()
    half_d = Constant <value = double {{0.5}}> ()
    one_d = Constant <value = double {{1.0}}> ()
    full_scale = Constant <value = float {{255.0}}> ()
    zero_f = Constant <value = float {{0.0}}> ()
    go_on = Constant <value = bool {{1}}> ()
    last_axis = Constant <value_ints = [-1]> ()
    first_two_axes = Constant <value_ints = [0, 1]> ()
    column = Constant <value_ints = [-1, 1]> ()
    per_channel = Constant <value_ints = [3, 1, 1]> ()
    first_axis = Constant <value_ints = [0]> ()
    three = Constant <value_ints = [3]> ()

    image_shape = Shape (image)
    mean_row = Gather <axis = 0> (mean_std, zero_i)
    std_row = Gather <axis = 0> (mean_std, one_i)
    mean = Reshape (mean_row, per_channel)
    std = Reshape (std_row, per_channel)
    steps_i = Range (zero_i, size_i, one_i)
    steps_d = Cast <to = 11> (steps_i)
    middles_row = Add (steps_d, half_d)
    middles = Reshape (middles_row, column)

    count = Shape <start = 0, end = 1> (boxes)
    count_scalar = Squeeze (count)
    stacked = Loop (count_scalar, go_on) <body = window (int64 index, bool before)
        => (bool after, float[3, rows, columns] view)
    {{
        after = Identity (before)
        box = Gather <axis = 0> (boxes, index)
        {rows}
        {columns}
        y_starts = Unsqueeze (y_from_i, first_axis)
        x_starts = Unsqueeze (x_from_i, first_axis)
        y_ends = Unsqueeze (y_to_i, first_axis)
        x_ends = Unsqueeze (x_to_i, first_axis)
        starts = Concat <axis = 0> (y_starts, x_starts)
        ends = Concat <axis = 0> (y_ends, x_ends)
        bytes = Slice (image, starts, ends, first_two_axes)
        pixels = Cast <to = 1> (bytes)
        planes = Transpose <perm = [2, 0, 1]> (pixels)
        down = MatMul (y_weights, planes)
        x_weights_t = Transpose <perm = [1, 0]> (x_weights)
        across = MatMul (down, x_weights_t)
        unit = Div (across, full_scale)
        centred = Sub (unit, mean)
        normal = Div (centred, std)
        x_inside_t = Transpose <perm = [1, 0]> (x_inside)
        inside = And (y_inside, x_inside_t)
        view = Where (inside, normal, zero_f)
    }}>
    made = Slice (stacked, first_axis, count, first_axis)
    side = Reshape (size_i, last_axis)
    shape = Concat <axis = 0> (count, three, side, side)
    views = Reshape <allowzero = 1> (made, shape)
}}
"""


def psc_crop_function(opset: int = 20) -> FunctionProto:
    """Write PscCrop's body in standard operators: a loop over boxes, two products a window.

    Only the pixels that a window reads are sliced out of the image, so the body needs memory for
    one window in float32 at a time.

    Args:
        opset: version of the standard operator set to import, 18 or newer; the model that takes
            the function must import the same.

    Returns:
        The function `geomag::PscCrop(image, boxes, mean_std) -> views` with the attributes `size`
        (int, required) and `plugin_namespace` (string, read by TensorRT alone).

    Raises:
        ExportError: the opset is older than 18.
    """
    if opset < 18:
        raise ExportError(f"PscCrop's function body needs opset 18 or newer, not {opset}")
    rows = _AXIS.format(a="y", low_index="one_i", high_index="three_i", extent_index="zero_i")
    columns = _AXIS.format(a="x", low_index="zero_i", high_index="two_i", extent_index="one_i")
    text = _FUNCTION.format(opset=opset, rows=rows, columns=columns)
    function = onnx.parser.parse_function(text)
    function.attribute_proto.append(helper.make_attribute("plugin_namespace", DOMAIN))
    function.doc_string = "Windows of a uint8 image as normalised square views."
    return function


def psc_crop_node(image: str, boxes: str, mean_std: str, views: str, *, size: int) -> NodeProto:
    """Make the node `geomag::PscCrop`.

    Args:
        image: name of the uint8 [H, W, 3] input.
        boxes: name of the float32 [K, 4] input, pixels of the image.
        mean_std: name of the float32 [2, 3] input.
        views: name of the float32 [K, 3, S, S] output.
        size: side S of a view, in pixels.
    """
    return helper.make_node(
        OP_TYPE,
        [image, boxes, mean_std],
        [views],
        name=f"{OP_TYPE}_{views}",
        domain=DOMAIN,
        size=size,
        plugin_namespace=DOMAIN,
    )


def add_psc_crop(model: ModelProto) -> None:
    """Give a model that has `geomag::PscCrop` nodes their function body, in place.

    Appends the function, written for the model's own opset, and the import of its domain. A model
    that has them already stays as it is.

    Raises:
        ExportError: the model has no such node, no standard opset, or one older than 18.
    """
    if not any(node.domain == DOMAIN and node.op_type == OP_TYPE for node in model.graph.node):
        raise ExportError(f"the graph {model.graph.name!r} has no {DOMAIN}::{OP_TYPE} node")
    imports = {entry.domain: entry.version for entry in model.opset_import}
    opset = imports.get("", imports.get("ai.onnx"))
    if opset is None:
        raise ExportError(f"the graph {model.graph.name!r} imports no standard opset")
    if not any(f.domain == DOMAIN and f.name == OP_TYPE for f in model.functions):
        model.functions.append(psc_crop_function(opset))
    if DOMAIN not in imports:
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    model.ir_version = max(model.ir_version, 9)  # the first with functions' attribute defaults


def inline_psc_crop(model: ModelProto) -> ModelProto:
    """Return the model with every PscCrop node replaced by its body.

    For runtimes that read no model-local functions: OpenVINO's ONNX reader refuses the node
    ("No conversion rule found for operations: geomag.PscCrop") and runs the inlined form.
    """
    return onnx.inliner.inline_selected_functions(model, [(DOMAIN, OP_TYPE)])


def psc_crop_translations() -> dict[Any, Callable[..., Any]]:
    """Return the table that makes `torch.onnx.export` write `torch.ops.geomag.psc_crop` as a node.

    Pass it as `custom_translation_table` with `dynamo=True`, then call `add_psc_crop` on the
    exported model: a body inside the table would be inlined by the exporter.

    Raises:
        MissingExtraError: torch or onnxscript is not installed.
    """
    try:
        import onnxscript
        import torch

        from . import torch_op  # noqa: F401  registers the operator
    except ImportError as cause:
        raise MissingExtraError(
            "exporting PscCrop needs torch and onnxscript: pip install 'geomag-edge[export]'"
        ) from cause

    schema = onnx.defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[
            onnx.defs.OpSchema.FormalParameter("image", "tensor(uint8)"),
            onnx.defs.OpSchema.FormalParameter("boxes", "tensor(float)"),
            onnx.defs.OpSchema.FormalParameter("mean_std", "tensor(float)"),
        ],
        outputs=[onnx.defs.OpSchema.FormalParameter("views", "tensor(float)")],
        attributes=[
            onnx.defs.OpSchema.Attribute("size", onnx.defs.OpSchema.AttrType.INT, required=True),
            onnx.defs.OpSchema.Attribute(
                "plugin_namespace", helper.make_attribute("plugin_namespace", DOMAIN)
            ),
        ],
    )
    domain = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)
    operator = onnxscript.values.Op(domain, OP_TYPE, schema)

    def translate(image: Any, boxes: Any, mean_std: Any, size: int) -> Any:
        return operator(image, boxes, mean_std, size=size, plugin_namespace=DOMAIN)

    return {torch.ops.geomag.psc_crop.default: translate}
