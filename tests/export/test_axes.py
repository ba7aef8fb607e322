"""Axes that are named dynamic take any length, and give what PyTorch gives there."""

import numpy as np
import pytest

from geomag_edge.views import pooling_matrix

FORMS = [("qwen2-clip", 23), ("qwen3-siglip", 20)]
FAMILY_DIM = {"qwen2-clip": 32, "qwen3-siglip": 48}

forms = pytest.mark.parametrize(("family", "opset"), FORMS)


@pytest.fixture
def same(ort_graph, torch_graph):
    """Runs a graph in ONNX Runtime and in PyTorch on the same feeds and compares."""

    def run(family, opset, graph, feeds):
        got, expected = ort_graph(family, opset, graph)(feeds), torch_graph(family, graph)(feeds)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name].shape == value.shape, name
            scale = np.abs(value).max(initial=1e-3)
            np.testing.assert_allclose(got[name], value, atol=1e-4 * scale, err_msg=name)
        return got

    return run


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@forms
@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_views_is_encoded(same, rng, family, opset, n):
    same(family, opset, "encoder", {"views": normal(rng, n, 3, 64, 64)})


@pytest.mark.parametrize(
    ("family", "opset", "length"),
    # SigLIP prompts always have their full length
    [*(("qwen2-clip", 23, length) for length in (1, 2, 7, 48)), ("qwen3-siglip", 20, 24)],
)
def test_prompts_of_any_length_select(same, rng, family, opset, length):
    embeds = normal(rng, 1, 16, FAMILY_DIM[family])
    feeds = {
        "embeds": embeds / np.linalg.norm(embeds, axis=-1, keepdims=True),
        "prompt_ids": rng.integers(4, 300, (1, length)),
        "view_box": np.array([10, -30, 410, 370], np.float32),
        "image_shape": np.array([340, 500, 3]),
    }
    same(family, opset, "psc_select", feeds)


@forms
@pytest.mark.parametrize(("n", "side"), [(1, 1), (1, 4), (5, 1), (2, 3), (4, 4)])
def test_any_token_budget_is_projected(same, rng, family, opset, n, side):
    feeds = {
        "tokens": normal(rng, n, 16, 48),
        "pooling": pooling_matrix(4, side),
        "positions": normal(rng, n, side * side, 5),
    }
    visual = same(family, opset, "projector", feeds)["visual"]
    assert visual.shape == (n, side * side, 48)


@forms
@pytest.mark.parametrize("shape", [(1, 1), (1, 0), (1, 9), (2, 4)], ids=str)
def test_any_number_of_ids_is_embedded(same, rng, family, opset, shape):
    same(family, opset, "embed", {"input_ids": rng.integers(0, 300, shape)})


@forms
@pytest.mark.parametrize(
    ("batch", "steps", "past"),
    [(1, 1, 0), (1, 9, 0), (1, 1, 1), (1, 1, 30), (1, 4, 3), (2, 5, 0), (2, 1, 7), (3, 2, 5)],
)
def test_one_llm_graph_serves_prefill_and_decode_alone_and_in_batches(
    same, rng, family, opset, batch, steps, past
):
    head_dim = 16 if family.startswith("qwen3") else 12
    mask = np.ones((batch, past + steps), np.int64)
    if batch > 1 and past + steps > 3:
        mask[1, :2] = 0  # left-padded
    feeds = {
        "inputs_embeds": normal(rng, batch, steps, 48),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, past:],
    }
    for layer in range(2):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = normal(rng, batch, 2, past, head_dim)
    out = same(family, opset, "llm", feeds)
    assert out["logits"].shape[:2] == (batch, 1)
    assert out["present.1.value"].shape == (batch, 2, past + steps, head_dim)


@forms
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 1), (1, 3), (4, 3)])
def test_any_number_of_queries_meets_any_number_of_views(same, rng, family, opset, n, m):
    feeds = {"features": normal(rng, n, 32, 8, 8), "queries": normal(rng, m, 48)}
    assert same(family, opset, "mask_head", feeds)["mask_logits"].shape == (m, n, 32, 32)
