import shutil

import numpy as np
import pytest
from PIL import Image

from geomag_edge.cli.main import main


@pytest.fixture
def command(capsys):
    """Runs a command in this process: (code, stdout, stderr)."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as e:  # argparse ends so
            code = e.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def bundle_copy(bundle, tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "copy")


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """A PNG of 200 x 150 px with something to see."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (150, 200, 3), np.uint8)).save(path)
    return path


LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {"hidden_size": 48, "image_size": 64, "patch_size": 16, "projection_dim": 32, **LAYERS}


@pytest.fixture(scope="session")
def parts(tmp_path_factory, tokenizers, make_text_config, vocab_size):
    """Folders of trained parts, by name."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        CLIPConfig,
        CLIPModel,
        CLIPTextModelWithProjection,
        CLIPVisionModel,
        CLIPVisionModelWithProjection,
        SiglipConfig,
        SiglipModel,
    )

    root = tmp_path_factory.mktemp("parts")
    words = {
        "vocab_size": vocab_size, "hidden_size": 32, "max_position_embeddings": 24,
        "projection_dim": 32, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3, **LAYERS,
    }  # fmt: skip
    clip = CLIPConfig(text_config=words, vision_config=PICTURE, projection_dim=32)
    siglip = SiglipConfig(
        text_config=words | {"hidden_size": 48, "projection_size": 48}, vision_config=PICTURE
    )
    torch.manual_seed(5)
    whole = CLIPModel(clip)
    saved = {
        "clip": whole,
        "siglip": SiglipModel(siglip),
        "clip-vision": CLIPVisionModelWithProjection(clip.vision_config),
        "clip-bare-vision": CLIPVisionModel(clip.vision_config),
        "clip-text": CLIPTextModelWithProjection(clip.text_config),
    }
    for llm in ("llama", "qwen2", "qwen3"):
        saved[llm] = AutoModelForCausalLM.from_config(make_text_config(llm))
    for name, model in saved.items():
        model.save_pretrained(root / name)
        tokenizers[1].save(str(root / name / "tokenizer.json"))
    return root
