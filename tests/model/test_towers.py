"""The vision encoder and the prompt tower against the Hugging Face models that they carry."""

import pytest
import torch

from geomag_edge.errors import CheckpointError
from geomag_edge.model.encoder import GeoMagEncoder
from geomag_edge.model.psc import PromptTower

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def views():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@torch.inference_mode()
def test_clip_tokens_are_the_towers_own_without_the_class_token(make_model, views):
    encoder = make_model("qwen2-clip").encoder
    tokens, embeds, features = encoder(views)
    own = encoder.tower(views).last_hidden_state[:, 1:]
    torch.testing.assert_close(tokens, own, **CLOSE)
    projected = encoder.projection(encoder.tower.post_layernorm(own))
    torch.testing.assert_close(embeds, unit(projected), **CLOSE)
    assert features.shape == (3, 32, 8, 8)


@torch.inference_mode()
def test_siglip_tokens_are_the_towers_own(make_model, views):
    encoder = make_model("qwen3-siglip").encoder
    tokens, _, features = encoder(views)
    torch.testing.assert_close(tokens, encoder.tower(views).last_hidden_state, **CLOSE)
    assert features.shape == (3, 32, 8, 8)


@torch.inference_mode()
def test_siglip_patch_embeddings_are_its_own_pooling_of_a_sequence_of_one(make_model, views):
    encoder = make_model("qwen3-siglip").encoder
    head = encoder.tower.head
    torch.nn.init.normal_(head.attention.in_proj_bias)  # zero in a fresh tower
    tokens, embeds, _ = encoder(views)
    pooled = head(tokens.reshape(-1, 1, tokens.shape[-1])).reshape(tokens.shape)
    torch.testing.assert_close(embeds, unit(pooled), **CLOSE)


@pytest.mark.parametrize("family", ["qwen2-clip", "qwen3-siglip"])
@torch.inference_mode()
def test_a_view_is_encoded_alike_alone_and_among_others(make_model, views, family):
    encoder = make_model(family).encoder
    together = encoder(views)
    for i in range(3):
        for whole, single in zip(together, encoder(views[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], single, **CLOSE)


@torch.inference_mode()
def test_a_clip_prompt_is_embedded_as_its_tower_does(make_model):
    tower = make_model("qwen2-clip").psc.prompt_tower
    ids = torch.tensor([[40, 50, 60, 70, 3]])  # 3 ends the text
    own = tower.projection(tower.tower(input_ids=ids).pooler_output)
    torch.testing.assert_close(tower(ids), own, **CLOSE)


@torch.inference_mode()
def test_a_siglip_prompt_is_embedded_as_its_tower_does(make_model):
    tower = make_model("qwen3-siglip").psc.prompt_tower
    ids = torch.tensor([[40, 50, 60, 70, 3] + [1] * 19])
    torch.testing.assert_close(tower(ids), tower.tower(input_ids=ids).pooler_output, **CLOSE)


def test_towers_whose_spaces_do_not_meet_are_refused(make_config):
    config = make_config("qwen3-siglip")
    config.psc["embed_dim"] = 40
    for part, reason in ((GeoMagEncoder, "hidden size 48, not 40"), (PromptTower, "be equal")):
        with pytest.raises(CheckpointError, match=reason):
            part(config)


def test_an_odd_patch_size_is_refused(make_config):
    config = make_config("qwen2-clip")
    config.vision_config.patch_size = 15
    with pytest.raises(CheckpointError, match="patch size of 15 is odd"):
        GeoMagEncoder(config)


@pytest.mark.parametrize("name", ["vision_config", "prompt_config", "text_config"])
@pytest.mark.parametrize("value", [{"model_type": "bert"}, {}])
def test_other_families_are_refused_by_name(make_config, name, value):
    with pytest.raises(CheckpointError, match=f"{name} is of family .* supported are"):
        type(make_config("qwen2-clip"))(**{name: value})
