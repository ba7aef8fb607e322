"""`GeoMagProcessor`: images and prompts -> the model's inputs, ids -> text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedConfig

from geomag_edge.cpp_ext import torch_op  # noqa: F401 - registers torch.ops.geomag.psc_crop
from geomag_edge.errors import CheckpointError
from geomag_edge.model.config import GeoMagConfig
from geomag_edge.model.loading.agreement import check_ids, check_prompt_end
from geomag_edge.model.loading.config_fields import read_config
from geomag_edge.model.loading.ends import end_ids, valid_ids
from geomag_edge.prompts import IMAGE_TOKEN, SEG_TOKEN, PromptCoder, PromptSettings, read_tokenizer

TOKENIZERS = ("tokenizer.json", "psc_tokenizer.json")
"""The LLM's and PSC's tokenizer in a checkpoint and in a bundle."""


class GeoMagProcessor:
    """What stands before and after the model: views by PscCrop, prompts by two tokenizers."""

    def __init__(self, config: GeoMagConfig, coder: PromptCoder):
        self.coder, self.view_px = coder, config.view_px
        self.mean_std = torch.tensor([config.image_mean, config.image_std])

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path) -> GeoMagProcessor:
        """Reads a checkpoint's config and tokenizers.

        Raises:
            CheckpointError: a tokenizer is missing, has ids without an embedding, does not end a
                prompt as its tower needs, or disagrees with the config on [SEG] or <image>.
        """
        checkpoint = Path(checkpoint)
        for name in TOKENIZERS:
            if not (checkpoint / name).is_file():
                raise CheckpointError(f"checkpoint {checkpoint} has no {name}")
        config = read_config(checkpoint)
        text, psc = (read_tokenizer(checkpoint / name) for name in TOKENIZERS)
        for token, wanted in (
            (SEG_TOKEN, config.seg_token_id),
            (IMAGE_TOKEN, config.image_token_id),
        ):
            if text.token_to_id(token) != wanted:
                raise CheckpointError(
                    f"the tokenizer of {checkpoint} has {token} as {text.token_to_id(token)}, its "
                    f"config as {wanted}"
                )
        check_ids(f"the language model of {checkpoint}", text, config.text_config.vocab_size)
        check_ids(f"the prompt tower of {checkpoint}", psc, config.prompt_config.vocab_size)
        check_prompt_end(f"the prompt tower of {checkpoint}", psc, config.prompt_config)
        ends = end_ids(checkpoint, config.text_config, text)
        return cls(config, PromptCoder(prompt_settings(config, text, ends), text, psc))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes both tokenizers; the rest is in the model's config."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for tokenizer, name in zip((self.coder.text, self.coder.psc), TOKENIZERS, strict=True):
            tokenizer.save(str(Path(folder) / name))

    def views(self, image: NDArray[np.uint8], boxes: NDArray[np.float32]) -> Tensor:
        """u8[H,W,3] and boxes f32[n,4] px -> views f32[n,3,S,S]."""
        return torch.ops.geomag.psc_crop(
            torch.from_numpy(image), torch.from_numpy(boxes), self.mean_std, self.view_px
        )

    def prompt_ids(self, prompt: str) -> Tensor:
        """Text -> PSC's ids, int64 [1,L]."""
        return torch.from_numpy(self.coder.psc_ids(self.coder.check(prompt))[0])

    def decode(self, ids: list[int]) -> str:
        """Answer ids -> text, [SEG] visible."""
        return self.coder.decode(ids)


def prompt_settings(
    config: GeoMagConfig, tokenizer: Tokenizer, ends: Sequence[int] | None = None
) -> PromptSettings:
    """How this checkpoint's prompts become ids.

    Args:
        config: the checkpoint's.
        tokenizer: the LLM's.
        ends: ids that end an answer; the config's own if not given.

    Raises:
        CheckpointError: nothing ends an answer, or a padded tower's padding is in no vocabulary.
    """
    text, prompt = config.text_config, config.prompt_config
    ends = ends or valid_ids(text.eos_token_id, text.vocab_size)
    if not ends:
        raise CheckpointError("text_config.eos_token_id names no token that ends an answer: set it")
    padded = prompt.model_type == "siglip_text_model"
    padding = valid_ids(prompt.pad_token_id, prompt.vocab_size)
    if padded and not padding:
        raise CheckpointError(
            f"prompt_config.pad_token_id is {prompt.pad_token_id}, and a SigLIP tower reads padded "
            "prompts: set it to what the tower was trained with, 1 for SigLIP, 0 for SigLIP 2"
        )
    return PromptSettings(
        template=config.prompt_template,
        bos_token_id=_leading_id(tokenizer),
        eos_token_ids=tuple(ends),
        seg_token_id=config.seg_token_id,
        context=text.max_position_embeddings,
        psc_context=prompt.max_position_embeddings,
        psc_pad_to=prompt.max_position_embeddings if padded else None,
        psc_pad_id=padding[0] if padding else 0,
        text_form=config.text_form,
        psc_text_form=config.psc_text_form or _psc_form(prompt),
    )


def _psc_form(config: PreTrainedConfig) -> str:
    """CLIP's text towers were trained on lower case; so were SigLIP's, those of before SigLIP 2
    (whose vocabulary is Gemma's) without punctuation, too."""
    first = config.model_type == "siglip_text_model" and config.vocab_size < SIGLIP2_VOCABULARY
    return "canonical" if first else "lower"


SIGLIP2_VOCABULARY = 256_000


def _leading_id(tokenizer: Tokenizer) -> int | None:
    """The id that the tokenizer itself puts first (a config may name one that it never uses)."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    return whole[0] if len(whole) > len(plain) and whole[0] != plain[0] else None
