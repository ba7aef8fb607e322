"""Assembles a GeoMag checkpoint from separately trained parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
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
    set_seed,
)
from transformers.utils import logging as hf_logging

from geomag_edge.errors import CheckpointError
from geomag_edge.model.config import PROMPT_FAMILIES, TEXT_FAMILIES, VISION_FAMILIES, GeoMagConfig
from geomag_edge.model.decoder import check_decoder
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.presets import save_checkpoint
from geomag_edge.prompts import IMAGE_TOKEN, SEG_TOKEN

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@dataclass
class Tower:
    """A trained tower and its projection into the joint space, if the folder had one."""

    tower: PreTrainedModel
    projection: nn.Linear | None
    embed_dim: int | None


def compose(vision: Path, prompt: Path, llm: Path, out: Path, seed: int = 0) -> list[str]:
    """Writes a checkpoint from three folders as Hugging Face saves them.

    Args:
        vision: a CLIP or SigLIP model, or its vision half.
        prompt: a CLIP or SigLIP model, or its text half, with `tokenizer.json`.
        llm: a Llama, Qwen2 or Qwen3 causal language model, with `tokenizer.json`.
        out: the folder to write.
        seed: initialises the parts that no folder brings.

    Returns:
        Names of the parts that are untrained, which the checkpoint's config and card hold too.

    Raises:
        CheckpointError: a folder is missing, of another family, not safetensors, or the vision
            and prompt towers do not share an embedding space.
    """
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        eye, reader = load_tower(vision, VISION), load_tower(prompt, PROMPT)
        speaker = _load(llm, AutoModelForCausalLM, _part_config(llm, TEXT_FAMILIES, "an LLM"))
        text_tokenizer, psc_tokenizer = _tokenizer(llm), _tokenizer(prompt)
        model, untrained = assemble(eye, reader, speaker, text_tokenizer, vision, seed)
        save_checkpoint(model, text_tokenizer, psc_tokenizer, out)
    finally:
        hf_logging.set_verbosity(level)
    (out / "README.md").write_text(_card(vision, prompt, llm, seed, untrained))
    return untrained


def assemble(
    eye: Tower,
    reader: Tower,
    speaker: PreTrainedModel,
    tokenizer: Tokenizer,
    vision: Path,
    seed: int,
) -> tuple[GeoMagForConditionalGeneration, list[str]]:
    """The model from loaded parts; adds [SEG] and <image> to the tokenizer and the embeddings."""
    check_decoder(speaker.config)
    dims = {d for d in (eye.embed_dim, reader.embed_dim) if d is not None}
    if len(dims) > 1:
        raise CheckpointError(
            f"the vision tower embeds into {eye.embed_dim} dimensions, the prompt tower into "
            f"{reader.embed_dim}: take both from one CLIP or SigLIP model"
        )
    tokenizer.add_special_tokens([SEG_TOKEN, IMAGE_TOKEN])
    set_seed(seed)
    rows = speaker.get_input_embeddings().num_embeddings
    if tokenizer.get_vocab_size() > rows:
        speaker.resize_token_embeddings(tokenizer.get_vocab_size(), mean_resizing=False)
    mean, std = _normalisation(vision, eye.tower.config)
    config = GeoMagConfig(
        vision_config=eye.tower.config,
        prompt_config=reader.tower.config,
        text_config=speaker.config,
        psc={"embed_dim": dims.pop() if dims else 512},
        image_mean=mean,
        image_std=std,
        seg_token_id=tokenizer.token_to_id(SEG_TOKEN),
        image_token_id=tokenizer.token_to_id(IMAGE_TOKEN),
    )
    with torch.no_grad():
        model = GeoMagForConditionalGeneration(config)
        untrained = [
            "encoder.neck",
            "encoder.detail",
            "psc.router",
            "psc.relevance",
            "projector",
            "mask_head",
        ]
        model.encoder.tower.load_state_dict(eye.tower.state_dict())
        model.psc.prompt_tower.tower.load_state_dict(reader.tower.state_dict())
        for part, projection, name in (
            (model.encoder, eye.projection, "encoder.projection"),
            (model.psc.prompt_tower, reader.projection, "psc.prompt_tower.projection"),
        ):
            if projection is not None:
                part.projection.load_state_dict(projection.state_dict())
            elif isinstance(part.projection, nn.Linear):
                untrained.append(name)
    model.language_model = speaker
    untrained.append(f"language_model embeddings of {SEG_TOKEN} and {IMAGE_TOKEN}")
    model.config.untrained = untrained
    return model, untrained


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
    "a vision tower", "vision_model", "visual_projection", "hidden_size", VISION_FAMILIES,
    CLIPVisionModel, CLIPVisionModelWithProjection, SiglipVisionModel,
)  # fmt: skip
PROMPT = Half(
    "a prompt tower", "text_model", "text_projection", "projection_size", PROMPT_FAMILIES,
    CLIPTextModel, CLIPTextModelWithProjection, SiglipTextModel,
)  # fmt: skip


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


def _part_config(folder: Path, families: tuple[str, ...], role: str) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json: give a folder as Hugging Face saves it"
        )
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except ValueError as e:
        raise CheckpointError(f"{folder}/config.json is not readable JSON") from e
    if model_type not in families:
        raise CheckpointError(
            f"{folder} holds a {model_type!r} model: {role} must be one of {', '.join(families)}"
        )
    return AutoConfig.from_pretrained(folder)


def _load(folder: Path, kind: Any, config: PreTrainedConfig) -> PreTrainedModel:
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no *.safetensors weights; pickle weights can run code when loaded, so "
            "convert them first"
        )
    try:
        model, info = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise CheckpointError(f"{folder} cannot be loaded: {reason}") from e
    if info["missing_keys"]:
        raise CheckpointError(f"{folder} lacks the tensor {sorted(info['missing_keys'])[0]}")
    return model


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json: save it with its fast tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from e


def _normalisation(folder: Path, config: PreTrainedConfig) -> tuple[list[float], list[float]]:
    """Mean and std from preprocessor_config.json, else the family's own."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        data = json.loads(path.read_text())
        if "image_mean" in data and "image_std" in data:
            return list(data["image_mean"]), list(data["image_std"])
    if config.model_type == "clip_vision_model":
        return CLIP_MEAN, CLIP_STD
    return [0.5] * 3, [0.5] * 3


def _card(vision: Path, prompt: Path, llm: Path, seed: int, untrained: list[str]) -> str:
    parts = "\n".join(f"- {name}" for name in untrained)
    return (
        "# GeoMag checkpoint, composed\n\n"
        f"Assembled by geomag-edge from trained parts: vision `{vision.name}`, prompt "
        f"`{prompt.name}`, language model `{llm.name}`.\n\n"
        f"Untrained, initialised with seed {seed}; answers mean nothing until they are trained:\n\n"
        f"{parts}\n"
    )
