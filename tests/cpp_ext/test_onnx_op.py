"""The ONNX node and its body: the same views from any runtime, kernel or not."""

import numpy as np
import pytest

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.errors import ExportError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

from geomag_edge.cpp_ext.onnx_op import (  # noqa: E402
    add_psc_crop,
    inline_psc_crop,
    psc_crop_function,
    psc_crop_node,
    psc_crop_translations,
)

SIZE = 40
TOLERANCE = 1e-4


def model_of_one_node(opset):
    """(image, boxes, mean_std) -> views, with the body."""
    graph = helper.make_graph(
        [psc_crop_node("image", "boxes", "mean_std", "views", size=SIZE)],
        "crops",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["H", "W", 3]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["K", 4]),
            helper.make_tensor_value_info("mean_std", TensorProto.FLOAT, [2, 3]),
        ],
        [helper.make_tensor_value_info("views", TensorProto.FLOAT, ["K", 3, SIZE, SIZE])],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    add_psc_crop(model)
    return model


def run_ort(model, feeds):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.fixture(scope="module", params=[18, 20, 23, 24])
def model(request):
    return model_of_one_node(request.param)


def test_the_model_is_valid_onnx(model):
    onnx.checker.check_model(model, full_check=True)


def test_onnx_runtime_makes_the_kernels_views(model, scene, telling_boxes, mean_std):
    feeds = {"image": scene, "boxes": telling_boxes, "mean_std": mean_std}
    views = run_ort(model, feeds)
    assert np.abs(views - psc_crop(scene, telling_boxes, mean_std, SIZE)).max() <= TOLERANCE


def test_onnx_runtime_makes_no_views_of_no_boxes(model, scene, mean_std):
    feeds = {"image": scene, "boxes": np.zeros((0, 4), np.float32), "mean_std": mean_std}
    assert run_ort(model, feeds).shape == (0, 3, SIZE, SIZE)


@pytest.mark.parametrize("opset", [20, 23])
def test_random_windows_of_a_larger_image_agree(opset, mean_std):
    rng = np.random.default_rng(11)
    image = rng.integers(0, 256, (700, 5000, 3), dtype=np.uint8)
    low = rng.uniform([-300, -300], [4900, 650], (12, 2))
    boxes = np.hstack([low, low + rng.uniform(0.5, 900, (12, 2))]).astype(np.float32)
    feeds = {"image": image, "boxes": boxes, "mean_std": mean_std}
    views = run_ort(model_of_one_node(opset), feeds)
    assert np.abs(views - psc_crop(image, boxes, mean_std, SIZE)).max() <= TOLERANCE


@pytest.mark.parametrize("opset", [20, 23])
def test_openvino_runs_the_inlined_form(opset, scene, telling_boxes, mean_std, tmp_path):
    openvino = pytest.importorskip("openvino")
    inlined = inline_psc_crop(model_of_one_node(opset))
    onnx.checker.check_model(inlined, full_check=True)
    onnx.save(inlined, tmp_path / "crops.onnx")
    precision = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = openvino.Core().compile_model(tmp_path / "crops.onnx", "CPU", precision)
    for boxes in (telling_boxes, telling_boxes[:1], telling_boxes[:0]):
        views = compiled({"image": scene, "boxes": boxes, "mean_std": mean_std})[0]
        expected = psc_crop(scene, boxes, mean_std, SIZE)
        assert views.shape == expected.shape
        assert np.abs(views - expected).max(initial=0) <= TOLERANCE


@pytest.mark.parametrize("opset", [20, 23])
def test_torch_exports_the_node_and_the_body_fits_it(opset, scene, telling_boxes, mean_std):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    import geomag_edge.cpp_ext.torch_op  # noqa: F401

    class Crops(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean_std", torch.from_numpy(mean_std))

        def forward(self, image, boxes):
            return torch.ops.geomag.psc_crop(image, boxes, self.mean_std, SIZE)

    example = torch.from_numpy(scene), torch.from_numpy(telling_boxes)
    program = torch.onnx.export(
        Crops().eval(),
        example,
        dynamo=True,
        opset_version=opset,
        input_names=["image", "boxes"],
        output_names=["views"],
        dynamic_shapes=({0: "H", 1: "W"}, {0: "K"}),
        custom_translation_table=psc_crop_translations(),
        verbose=False,
    )
    exported = program.model_proto
    (node,) = [node for node in exported.graph.node if node.domain == "geomag"]
    assert node.op_type == "PscCrop"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"size": SIZE, "plugin_namespace": b"geomag"}
    add_psc_crop(exported)
    onnx.checker.check_model(exported, full_check=True)
    views = run_ort(exported, {"image": scene[:90], "boxes": telling_boxes[2:5]})
    expected = psc_crop(scene[:90], telling_boxes[2:5], mean_std, SIZE)
    assert np.abs(views - expected).max() <= TOLERANCE


def test_adding_the_body_twice_changes_nothing():
    model = model_of_one_node(20)
    before = model.SerializeToString(deterministic=True)
    add_psc_crop(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_graph_without_the_node_is_refused():
    model = model_of_one_node(20)
    del model.graph.node[:]
    with pytest.raises(ExportError, match="no geomag::PscCrop node"):
        add_psc_crop(model)


def test_an_old_opset_is_refused():
    with pytest.raises(ExportError, match="opset 18 or newer, not 17"):
        psc_crop_function(17)
