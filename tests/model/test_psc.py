"""Window selection and relevance in PyTorch against their numpy and plain forms."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.calibration.quantization.formats.half import to_half
from geomag_edge.graphs import PSC_SELECT
from geomag_edge.model.psc import WindowSelection, view_box_of
from geomag_edge.views import PscSettings, global_box, pooling_matrix, select_windows


@settings(max_examples=80)
@given(
    st.integers(2, 20),
    st.lists(st.integers(1, 24), min_size=1, max_size=4),
    st.integers(1, 6),
    st.floats(0, 1, width=32),
    st.integers(0, 2**31),
    st.sampled_from([1, 4, 4096]),
)
def test_window_selection_is_bit_equal_to_its_numpy_twin(grid, sizes, crops, overlap, seed, steps):
    rng = np.random.default_rng(seed)
    # In steps of a power of two sums are exact in any order; few steps make many ties.
    relevance = (rng.integers(0, steps + 1, (grid, grid)) / steps).astype(np.float32)
    x0, y0, side = rng.uniform([-500, -500, 1], [500, 500, 3000])
    box = np.array([x0, y0, x0 + side, y0 + side], np.float32)
    psc = PscSettings(crops, tuple(sizes), overlap, levels=1)
    boxes, scores = WindowSelection(psc, grid)(torch.from_numpy(relevance), torch.from_numpy(box))
    expected_boxes, expected_scores = select_windows(relevance, box, psc)
    np.testing.assert_array_equal(boxes.numpy(), expected_boxes)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


@pytest.mark.parametrize("grid", [4, 14, 24])
def test_window_scores_are_the_twins_to_the_last_digits_where_sums_are_rounded(grid):
    rng, psc = np.random.default_rng(grid), PscSettings(1, (3, grid // 2), 0.3, levels=1)
    box = np.array([0, 0, 1000, 1000], np.float32)
    for _ in range(20):
        relevance = rng.random((grid, grid)).astype(np.float32)
        found = WindowSelection(psc, grid)(torch.from_numpy(relevance), torch.from_numpy(box))
        for ours, expected in zip(found, select_windows(relevance, box, psc), strict=True):
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("opset", [20, 23])
def test_the_graph_finds_the_same_windows_without_a_running_sum(exported, manifest, opset):
    """TensorRT before 10.8 makes a loop of CumSum, which a CUDA graph may not hold."""
    graph = exported(opset=opset).graph("psc_select")
    model = onnx.load(str(graph), load_external_data=False)
    assert not {"CumSum", "Loop", "Scan", "If"} & {n.op_type for n in model.graph.node}
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    embeds = np.random.default_rng(0).standard_normal((1, 16, 32)).astype(np.float32)
    box = np.array([0, 0, 400, 400], np.float32)
    feeds = {
        "embeds": embeds / np.linalg.norm(embeds, axis=-1, keepdims=True),
        "prompt_ids": np.array([[40, 3]]), "view_box": box, "image_shape": np.array([400, 400, 3]),
    }  # fmt: skip
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    boxes, scores = select_windows(found["relevance"], box, manifest.psc)
    np.testing.assert_array_equal(found["boxes"], boxes)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_windows_are_summed_in_float32_in_half_graphs_too(exported, dtype):
    model = ir.load(exported(dtype=dtype).graph("psc_select"))
    if dtype == "fp32":
        to_half(model, PSC_SELECT)
    sums = [n for n in model.graph if n.op_type == "ReduceSum"][-2:]
    products = [n.inputs[0].producer() for n in sums]
    assert {n.op_type for n in products} == {"Mul"}
    dtypes = {v.dtype for n in products for v in n.inputs}
    assert ir.DataType.FLOAT in dtypes  # the zeros and ones
    assert ir.DataType.FLOAT16 not in dtypes


@pytest.mark.parametrize(("height", "width"), [(1, 1), (200, 300), (301, 200), (7, 20_001)])
def test_the_view_box_in_the_graph_is_the_global_box(height, width):
    box = view_box_of(torch.tensor([height, width, 3]))
    np.testing.assert_array_equal(box.numpy(), global_box(height, width))


@pytest.mark.parametrize(("height", "width"), [(64, 200), (200, 64), (128, 128), (1, 1000)])
@torch.inference_mode()
def test_nothing_outside_the_image_is_relevant(make_model, height, width):
    psc = make_model("qwen2-clip").psc
    embeds = torch.nn.functional.normalize(torch.randn(1, 16, 32), dim=-1)
    box = torch.from_numpy(global_box(height, width))
    shape = torch.tensor([height, width, 3])
    _, relevance, _, _ = psc(embeds, torch.tensor([[40, 3]]), box, shape)
    x0, y0, x1, _ = box.tolist()
    cell = (x1 - x0) / 4
    for row in range(4):
        for column in range(4):
            x, y = x0 + (column + 0.5) * cell, y0 + (row + 0.5) * cell
            inside = 0 <= x < width and 0 <= y < height
            assert (relevance[row, column] > 0) == inside
            assert relevance[row, column] <= 1


@torch.inference_mode()
def test_the_projector_pools_before_it_projects(make_model):
    # A pooled token depends on its own patches alone, and on its place.
    projector = make_model("qwen2-clip").projector
    pooling = torch.from_numpy(pooling_matrix(4, 2))
    tokens, places = torch.randn(1, 16, 48), torch.rand(1, 4, 5)
    before = projector(tokens, pooling, places)
    changed = tokens.clone()
    changed[0, 15] = torch.randn(48)  # the last patch lies in the last quarter
    after = projector(changed, pooling, places)
    torch.testing.assert_close(after[0, :3], before[0, :3])
    assert (after[0, 3] - before[0, 3]).abs().max() > 1e-3
    moved = projector(tokens, pooling, places + 0.25)
    assert ((moved - before).abs().amax(-1) > 1e-3).all()


@torch.inference_mode()
def test_a_mask_depends_on_its_own_query_and_view_alone(make_model):
    head = make_model("qwen2-clip").mask_head
    features, queries = torch.randn(3, 32, 8, 8), torch.randn(2, 48)
    logits, quality = head(features, queries)
    assert logits.shape == (2, 3, 32, 32)
    assert ((quality > 0) & (quality < 1)).all()
    for m in range(2):
        for n in range(3):
            alone, alone_quality = head(features[n : n + 1], queries[m : m + 1])
            torch.testing.assert_close(alone[0, 0], logits[m, n], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(alone_quality[0, 0], quality[m, n])


@torch.inference_mode()
def test_half_precision_keeps_places_and_windows_exact(make_model):
    model = make_model("qwen2-clip")
    places = torch.rand(2, 4, 5) - 0.5
    tokens, pooling = torch.randn(2, 16, 48), torch.from_numpy(pooling_matrix(4, 2))
    expected = model.projector(tokens, pooling, places)
    relevance = torch.rand(4, 4)
    box = torch.tensor([3.0, 5.0, 1003.0, 1005.0])
    windows = model.psc.select(relevance, box)
    model.half()
    got = model.projector(tokens.half(), pooling.half(), places).float()
    assert (got - expected).abs().max() / expected.abs().max() < 3e-3
    for a, b in zip(windows, model.psc.select(relevance, box), strict=True):
        assert torch.equal(a, b)
