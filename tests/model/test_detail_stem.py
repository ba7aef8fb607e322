"""The detail stem adds nothing until it is trained: pretrained towers stay what they are."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, SiglipTextConfig, SiglipVisionConfig, set_seed

from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.presets import preset_config


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_fresh_tokens_are_the_tower_s_own(family: str) -> None:
    config = preset_config("nano")
    size = {
        "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    if family == "clip":
        config.vision_config = CLIPVisionConfig(**size)
    else:
        config.vision_config = SiglipVisionConfig(**size)
        text = {k: v for k, v in size.items() if k not in ("image_size", "patch_size")}
        config.prompt_config = SiglipTextConfig(vocab_size=768, projection_size=128, **text)
    set_seed(0)
    model = GeoMagForConditionalGeneration(config).eval()
    views = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.encoder(views)[0]
        wanted = model.encoder.tower(views).last_hidden_state
    if family == "clip":
        wanted = wanted[:, 1:]
    torch.testing.assert_close(tokens, wanted)
