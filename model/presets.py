"""Ready-made sizes, initialised by seed: `nano`, `base` and `half-b` (a 0.5 B language model)."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)
from transformers.utils import logging as hf_logging

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.errors import InputError
from geomag_edge.model.config import GeoMagConfig
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.processor import TOKENIZERS
from geomag_edge.prompts import IMAGE_TOKEN, SEG_TOKEN

NANO_VOCAB = 768
BOX_MARKS = ("<box>", "</box>")
PRESETS = ("nano", "base", "half-b")


def preset_config(name: str) -> GeoMagConfig:
    """The configuration of a preset.

    Raises:
        InputError: no such preset.
    """
    if name == "nano":
        return _nano_config()
    vision = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=336,
        patch_size=16,
        projection_dim=512,
    )
    prompt = CLIPTextConfig(eos_token_id=3, bos_token_id=2, pad_token_id=3)
    text_kwargs = {
        "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 3,
    }  # fmt: skip
    if name == "base":
        text = Qwen2Config(vocab_size=32000, num_hidden_layers=12, **text_kwargs)
    elif name == "half-b":
        text = Qwen2Config(vocab_size=151936, num_hidden_layers=24, **text_kwargs)
    else:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return _assemble(vision, prompt, text, embed_dim=512, feature_dim=256, heads=8, grid=12)


def _nano_config() -> GeoMagConfig:
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=128,
        patch_size=8,
        projection_dim=128,
        hidden_act="gelu",
    )
    prompt = CLIPTextConfig(
        vocab_size=NANO_VOCAB,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        projection_dim=128,
        hidden_act="gelu",
        eos_token_id=3,
        bos_token_id=2,
        pad_token_id=3,
    )
    text = Qwen3Config(
        vocab_size=NANO_VOCAB,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=3,
        bos_token_id=2,
        pad_token_id=3,
    )
    config = _assemble(vision, prompt, text, embed_dim=128, feature_dim=64, heads=4, grid=8)
    # Windows of 2, 4 and 8 of 16 patches: 8x, 4x and 2x as fine as the view they lie in.
    config.psc |= {"windows": [2, 4, 8], "max_crops": 4}
    plans = (TokenBudget(8, 4, 4), TokenBudget(8, 3, 8), TokenBudget(8, 4, 4))
    config.tmra = {"budgets": {k: b.to_json() for k, b in zip(LEVELS, plans, strict=True)}}
    # The phrases that it is trained on hold no punctuation, so a full stop means nothing to it.
    config.text_form = config.psc_text_form = "canonical"
    return config


def _assemble(
    vision: PreTrainedConfig,
    prompt: PreTrainedConfig,
    text: PreTrainedConfig,
    *,
    embed_dim: int,
    feature_dim: int,
    heads: int,
    grid: int,
) -> GeoMagConfig:
    budgets = {
        level: TokenBudget(grid, k, grid if k else 0).to_json()
        for level, k in zip(LEVELS, (0, 2, 4), strict=True)
    }
    return GeoMagConfig(
        vision_config=vision,
        prompt_config=prompt,
        text_config=text,
        psc={"embed_dim": embed_dim},
        tmra={"budgets": budgets},
        mask={"feature_dim": feature_dim, "heads": heads},
        seg_token_id=0,
        image_token_id=1,
    )


def domain_tokenizer(vocab_size: int = NANO_VOCAB) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of the presets, for the LLM and for PSC, learnt from rendered scenes' texts.

    Byte-level BPE, so any prompt can be read; digits stay single, so that a number is spelt the
    same way wherever it stands. PSC's adds the end-of-text id that its tower pools.
    """
    from geomag_edge.scenes import corpus

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(BOX_MARKS),
        special_tokens=[SEG_TOKEN, IMAGE_TOKEN, "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    markup = ["USER: \n", "ASSISTANT:", " 0:1,2,3,4"]
    tokenizer.train_from_iterator([*corpus(0, 4000), *markup * 50], trainer)
    tokenizer.add_tokens(list(BOX_MARKS))
    psc = Tokenizer.from_str(tokenizer.to_str())
    psc.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", psc.token_to_id("</s>"))]
    )
    return tokenizer, psc


def make_preset(name: str, out: Path, seed: int = 0) -> Path:
    """Writes a preset's checkpoint with random weights (its answers mean nothing)."""
    config = preset_config(name)
    config.untrained = ["all"]
    set_seed(seed)
    with torch.no_grad():
        model = GeoMagForConditionalGeneration(config)
    save_checkpoint(model, *domain_tokenizer(), out)
    return out


def shipped_checkpoint(name: str) -> Path | None:
    """The trained checkpoint of a preset that comes with the package, or None."""
    folder = Path(__file__).parent / "checkpoints" / name
    return folder if any(folder.glob("*.safetensors")) else None


def save_checkpoint(
    model: GeoMagForConditionalGeneration, text: Tokenizer, psc: Tokenizer, out: Path
) -> None:
    """Writes weights (safetensors), config and both tokenizers to one folder."""
    out.mkdir(parents=True, exist_ok=True)
    hf_logging.disable_progress_bar()
    model.save_pretrained(out)
    for tokenizer, name in zip((text, psc), TOKENIZERS, strict=True):
        tokenizer.save(str(out / name))
