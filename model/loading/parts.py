"""A trained part as Hugging Face saves it: loaded whole and as its config says, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipModel,
    SiglipTextModel,
    SiglipVisionModel,
)

from geomag_edge.disk.tokenizer import read_tokenizer
from geomag_edge.errors import BundleError, CheckpointError
from geomag_edge.model.config import PROMPT_FAMILIES, TEXT_FAMILIES, VISION_FAMILIES
from geomag_edge.model.decoder import check_decoder
from geomag_edge.model.loading.config_fields import part_config
from geomag_edge.model.loading.ends import valid_ids
from geomag_edge.model.loading.weights import (
    check_finite,
    check_loaded,
    check_size,
    check_weights,
    read_json,
    reason,
)

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@dataclass
class Tower:
    """A trained tower and its projection into the joint space, if the folder had one."""

    tower: PreTrainedModel
    projection: nn.Linear | None
    embed_dim: int | None


@dataclass(frozen=True)
class Half:
    """The vision or the text half of a CLIP or SigLIP model: its classes and names."""

    role: str
    attribute: str  # of the half in the whole model
    projection: str  # of CLIP's projection into the joint space
    siglip_dim: str  # in SigLIP's half config, its joint space
    families: tuple[str, ...]
    clip: type
    clip_projected: type
    siglip: type


VISION = Half(
    "a vision tower",
    "vision_model",
    "visual_projection",
    "hidden_size",
    VISION_FAMILIES,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipVisionModel,
)
PROMPT = Half(
    "a prompt tower",
    "text_model",
    "text_projection",
    "projection_size",
    PROMPT_FAMILIES,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    SiglipTextModel,
)


def load_tower(folder: Path, half: Half) -> Tower:
    """A tower from a whole CLIP or SigLIP model's folder, or from that half's own."""
    config = _part_config(folder, ("clip", "siglip", *half.families), half.role)
    kind, names = config.model_type, config.architectures or []
    if kind.startswith("siglip"):
        tower = _load(folder, SiglipModel if kind == "siglip" else half.siglip, config)
        if kind == "siglip":
            tower = getattr(tower, half.attribute)
        return Tower(tower, None, getattr(tower.config, half.siglip_dim))
    if kind == "clip" or half.clip_projected.__name__ in names:
        whole = _load(folder, CLIPModel if kind == "clip" else half.clip_projected, config)
        projection = getattr(whole, half.projection)
        return Tower(getattr(whole, half.attribute), projection, config.projection_dim)
    return Tower(_load(folder, half.clip, config), None, None)


def load_llm(folder: Path) -> PreTrainedModel:
    """A causal language model.

    Raises:
        CheckpointError: as `load_tower`; a decoder that the graph cannot carry.
    """
    config = _part_config(folder, TEXT_FAMILIES, "an LLM")
    check_decoder(config)
    # Padding beyond the vocabulary, or -1 for none, as some trained models have it
    padding = valid_ids(config.pad_token_id, config.vocab_size)
    config.pad_token_id = padding[0] if padding else None
    return _load(folder, AutoModelForCausalLM, config)


def _part_config(folder: Path, families: tuple[str, ...], role: str) -> PreTrainedConfig:
    data = read_json(folder / "config.json")
    if data is None:
        if (folder / "adapter_config.json").is_file():
            check_weights(folder)  # an adapter alone, which says so better
        raise CheckpointError(
            f"{folder} has no config.json: give a folder as Hugging Face saves it"
        )
    model_type = data.get("model_type")
    if model_type not in families:
        raise CheckpointError(
            f"{folder} holds a {model_type!r} model: {role} must be one of {', '.join(families)}"
        )
    return part_config(folder, data)


def _load(folder: Path, kind: Any, config: PreTrainedConfig) -> PreTrainedModel:
    check_size(str(folder), kind, config, check_weights(folder))
    try:
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below
        )
    except Exception as e:
        raise CheckpointError(f"{folder} cannot be loaded: {reason(e)}") from e
    if "lm_head.weight" in info["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks lm_head.weight, and its config.json does not tie it to the "
            "embeddings: copy all weights, or set tie_word_embeddings to true if they are one"
        )
    check_loaded(str(folder), info)
    check_finite(str(folder), model)
    return model


def siglip_form(folder: Path) -> str | None:
    """How a SigLIP tower's text is spelt, by its tokenizer's class; None where nothing says."""
    data = read_json(folder / "tokenizer_config.json") or {}
    name = str(data.get("tokenizer_class", ""))
    if name.startswith(("Siglip2", "Gemma")):
        return "lower"
    return "canonical" if name.startswith("Siglip") else None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The part's tokenizer.json, without the padding and truncation it was saved with.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"{folder} has no tokenizer.json: save it with its fast tokenizer")
    try:
        return read_tokenizer(path)
    except BundleError as e:
        raise CheckpointError(str(e)) from e


def normalisation(folder: Path, config: PreTrainedConfig) -> tuple[list[float], list[float]]:
    """Mean and std from preprocessor_config.json, else the family's own."""
    path = folder / "preprocessor_config.json"
    data = read_json(path) or {}
    if "image_mean" in data and "image_std" in data:
        return data["image_mean"], data["image_std"]
    if config.model_type == "clip_vision_model":
        return CLIP_MEAN, CLIP_STD
    return [0.5] * 3, [0.5] * 3
