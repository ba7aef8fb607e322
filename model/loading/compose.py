"""Assembles a GeoMag checkpoint from separately trained parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging as hf_logging

from geomag_edge.errors import CheckpointError
from geomag_edge.model.config import GeoMagConfig
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.loading.agreement import check_ids, check_prompt_end
from geomag_edge.model.loading.ends import GENERATION, carry_generation
from geomag_edge.model.loading.parts import (
    PROMPT,
    VISION,
    Tower,
    load_llm,
    load_tokenizer,
    load_tower,
    normalisation,
    siglip_form,
)
from geomag_edge.model.loading.weights import heard, untie_own_head
from geomag_edge.model.presets import save_checkpoint
from geomag_edge.prompts import IMAGE_TOKEN, SEG_TOKEN


def compose(
    vision: Path,
    prompt: Path,
    llm: Path,
    out: Path,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Writes a checkpoint from three folders as Hugging Face saves them.

    Args:
        vision: a CLIP or SigLIP model, or its vision half.
        prompt: a CLIP or SigLIP model, or its text half, with `tokenizer.json`.
        llm: a Llama, Qwen2 or Qwen3 causal language model, with `tokenizer.json`.
        out: the folder to write.
        seed: initialises the parts that no folder brings.
        note: called with a sentence for each thing that the user should know of the parts.

    Returns:
        Names of the parts that are untrained, which the checkpoint's config and card hold too.

    Raises:
        CheckpointError: a folder is missing, of another family, not safetensors, quantised, an
            unmerged adapter, lacks or has too many tensors, has weights that are not finite or a
            tokenizer that is not its own, names no end of an answer, is of a form that cannot be
            exported, or the vision and prompt towers do not share an embedding space.
    """
    hf_logging.disable_progress_bar()
    with heard() as said:
        eye, reader = load_tower(vision, VISION), load_tower(prompt, PROMPT)
        speaker = load_llm(llm)
        text_tokenizer, psc_tokenizer = load_tokenizer(llm), load_tokenizer(prompt)
        check_ids(str(llm), text_tokenizer, speaker.get_input_embeddings().num_embeddings)
        check_ids(str(prompt), psc_tokenizer, reader.tower.config.vocab_size)
        check_prompt_end(str(prompt), psc_tokenizer, reader.tower.config)
        if untie_own_head(speaker):
            note(
                f"{llm.name}: its lm_head is not its embeddings, as its config.json says: both stay"
            )
        side = eye.tower.config.image_size
        model, untrained = assemble(eye, reader, speaker, text_tokenizer, vision, seed)
        if model.config.view_px != side:
            note(
                f"{vision.name}: its patches of {eye.tower.config.patch_size} px cover "
                f"{model.config.view_px} of {side} px, so a view is {model.config.view_px} px"
            )
        generation = carry_generation(llm, speaker.config, text_tokenizer, note)
        model.config.text_config = speaker.config
        model.config.psc_text_form = siglip_form(prompt)
        save_checkpoint(model, text_tokenizer, psc_tokenizer, out)
    for line in said:
        if not any(known in line for known in ACTED_ON):
            note(f"transformers says: {line}")
    (out / GENERATION).write_text(json.dumps(generation, indent=2) + "\n")
    (out / "README.md").write_text(_card(vision, prompt, llm, seed, untrained))
    return untrained


ACTED_ON = ("LOAD REPORT", "so we will NOT tie them")
"""Warnings of which an error or a sentence of our own has come."""


def assemble(
    eye: Tower,
    reader: Tower,
    speaker: PreTrainedModel,
    tokenizer: Tokenizer,
    vision: Path,
    seed: int,
) -> tuple[GeoMagForConditionalGeneration, list[str]]:
    """The model from loaded parts; adds [SEG] and <image> to the tokenizer and the embeddings."""
    dims = {d for d in (eye.embed_dim, reader.embed_dim) if d is not None}
    if len(dims) > 1:
        raise CheckpointError(
            f"the vision tower embeds into {eye.embed_dim} dimensions, the prompt tower into "
            f"{reader.embed_dim}: take both from one CLIP or SigLIP model"
        )
    tokenizer.add_special_tokens([SEG_TOKEN, IMAGE_TOKEN])
    set_seed(seed)
    rows = max(tokenizer.get_vocab().values()) + 1
    if rows > speaker.get_input_embeddings().num_embeddings:
        speaker.resize_token_embeddings(rows, mean_resizing=False)
    mean, std = normalisation(vision, eye.tower.config)
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


def _card(vision: Path, prompt: Path, llm: Path, seed: int, untrained: list[str]) -> str:
    parts = "\n".join(f"- {name}" for name in untrained)
    return (
        "# GeoMag checkpoint, composed\n\n"
        f"Assembled by geomag-edge from trained parts: vision `{vision.name}`, prompt "
        f"`{prompt.name}`, language model `{llm.name}`.\n\n"
        f"Untrained, initialised with seed {seed}; answers mean nothing until they are trained:\n\n"
        f"{parts}\n"
    )
