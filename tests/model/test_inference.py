"""The readable reference and the deployed chain, two ways to one answer."""

import numpy as np
import pytest
import torch

from geomag_edge.budgets import TokenBudget
from geomag_edge.model.inference import answer
from geomag_edge.runtime.chain.scene_session import SceneSession
from geomag_edge.runtime.images.scene import Scene

FAMILIES = ("qwen3-siglip", "llama-clip", "qwen2-clip")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [None, TokenBudget(1), TokenBudget(4, 4, 3)], ids=str)
def test_the_reference_and_the_chain_on_pytorch_agree(torch_chain, picture, family, budget):
    chain, model, processor = torch_chain(family)
    with SceneSession(chain, Scene.open(picture)) as session:
        result = session.ask("segment the ships", budget, 6, answer_prefix="[SEG] and [SEG]")
    expected = answer(
        model, processor, picture, "segment the ships", budget, 6, answer_prefix="[SEG] and [SEG]"
    )
    assert result.token_ids == expected.token_ids
    assert result.granularity == expected.level
    boxes = np.concatenate([result.view_box[None], result.crop_boxes])
    np.testing.assert_array_equal(boxes, expected.view_boxes)
    masks = chain.engine.calls[-1]
    assert masks.graph == "mask_head"
    assert len(expected.mask_logits) == len(result.masks) >= 2
    for name, reference in (("mask_logits", expected.mask_logits), ("quality", expected.quality)):
        got = torch.from_numpy(masks.outputs[name])
        torch.testing.assert_close(got, reference, rtol=1e-4, atol=1e-6)


def test_the_answer_depends_on_the_image_and_the_prompt(torch_chain, picture):
    _, model, processor = torch_chain()

    def ids(image, prompt):
        return answer(model, processor, image, prompt, TokenBudget(4), 8).token_ids

    first = ids(picture, "segment the ships")
    assert ids(picture, "segment the ships") == first
    assert ids(255 - picture, "segment the ships") != first
    assert ids(picture, "how many planes?") != first


@pytest.mark.parametrize("family", FAMILIES)
def test_they_agree_where_pixels_hold_no_data(torch_chain, picture, family):
    chain, model, processor = torch_chain(family)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    valid = abs(x - 150) + abs(y - 150) < 140
    image = np.ma.MaskedArray(picture, np.repeat(~valid[..., None], 3, 2))
    budget = TokenBudget(4, 4, 3)
    with SceneSession(chain, Scene.open(image)) as session:
        result = session.ask("segment the ships", budget, 6, answer_prefix="[SEG]")
    expected = answer(
        model, processor, picture, "segment the ships", budget, 6, "[SEG]", valid=valid
    )
    assert result.token_ids == expected.token_ids
    boxes = np.concatenate([result.view_box[None], result.crop_boxes])
    np.testing.assert_array_equal(boxes, expected.view_boxes)
    got = torch.from_numpy(chain.engine.calls[-1].outputs["mask_logits"])
    torch.testing.assert_close(got, expected.mask_logits, rtol=1e-4, atol=1e-5)
