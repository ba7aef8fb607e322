"""`GeoMagForConditionalGeneration`: the towers and the parts between them, one checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils import logging as hf_logging

from geomag_edge.disk.staging import found_again
from geomag_edge.errors import CheckpointError
from geomag_edge.model.config import GeoMagConfig
from geomag_edge.model.decoder import CachedDecoder
from geomag_edge.model.encoder import GeoMagEncoder, init_encoder
from geomag_edge.model.loading.config_fields import read_config
from geomag_edge.model.loading.weights import (
    check_finite,
    check_loaded,
    check_size,
    check_weights,
    heard,
    read_json,
    reason,
    untie_own_head,
)
from geomag_edge.model.mask_head import GeoMagMaskHead
from geomag_edge.model.projector import GeoMagProjector
from geomag_edge.model.psc import PromptSelector, WindowSelection


class GeoMagForConditionalGeneration(PreTrainedModel):
    """The whole model. Each part is the module of one graph:

    `encoder` (encoder.onnx), `psc` (psc.onnx), `projector` (projector.onnx), `language_model`
    (llm.onnx and embed.onnx), `mask_head` (mask_head.onnx).
    """

    config_class = GeoMagConfig
    base_model_prefix = ""
    main_input_name = "views"
    _supports_sdpa = True

    def __init__(self, config: GeoMagConfig):
        super().__init__(config)
        self.encoder = GeoMagEncoder(config)
        self.psc = PromptSelector(config)
        self.projector = GeoMagProjector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.mask_head = GeoMagMaskHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights for the parts of our own; towers initialise themselves.

        PyTorch's own scale rather than a flat 0.02, with which an untrained mask head would
        answer in the sixth decimal.
        """
        super()._init_weights(module)
        if getattr(module, "starts_at_zero", False):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
        elif isinstance(module, WindowSelection):
            module.reset_constants()
        elif isinstance(module, GeoMagEncoder):
            init_encoder(module)
        elif isinstance(module, GeoMagMaskHead):
            nn.init.normal_(module.place, std=0.5)
            nn.init.normal_(module.quality_token, std=0.5)

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's token embedding."""
        return self.language_model.get_input_embeddings()

    def decoder(self) -> CachedDecoder:
        """The LLM with an explicit cache, sharing this model's parameters."""
        return CachedDecoder(self.language_model)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> ModelOutput:
        """The LLM over embedded visual and text tokens.

        Args:
            inputs_embeds: [B,T,D]; visual tokens come from `encoder` and `projector`.
            attention_mask: int64 [B,T].
            labels: int64 [B,T], -100 where no loss is wanted.

        Returns:
            The language model's output, with the hidden states whose [SEG] positions are the
            mask queries.
        """
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            labels=labels,
            output_hidden_states=True,
            use_cache=False,
        )


def load_checkpoint(
    path: str | Path, dtype: torch.dtype = torch.float32
) -> GeoMagForConditionalGeneration:
    """Loads a checkpoint folder; every tensor of the model must be there and no other.

    Raises:
        CheckpointError: no such folder, pickle weights, a damaged file, a family that is not
            supported, missing, extra or misshapen tensors, weights that are not finite, a
            decoder that the graph cannot carry.
    """
    path = Path(path)
    held = check_folder(path)
    config = read_config(path)
    what = f"checkpoint {path}"
    check_size(what, GeoMagForConditionalGeneration, config, held)
    hf_logging.disable_progress_bar()
    with heard():  # what it says is looked at below
        try:
            model, info = GeoMagForConditionalGeneration.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except CheckpointError:
            raise
        except Exception as e:
            raise CheckpointError(f"{what} cannot be loaded: {reason(e)}") from e
    check_loaded(what, info)
    check_finite(what, model)
    untie_own_head(model.language_model, model.config, model.config.text_config)
    return model.eval().requires_grad_(False)


def check_folder(path: Path) -> int:
    """How many weights a folder with config.json and whole safetensors files holds.

    Raises:
        CheckpointError: it is something else.
    """
    found_again(path)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at {path}")
    try:
        config = read_json(path / "config.json")
        if config is None:
            raise CheckpointError("there is none")
    except CheckpointError as e:
        raise CheckpointError(f"checkpoint {path} has no readable config.json: {e}") from e
    model_type = config.get("model_type")
    if model_type != GeoMagConfig.model_type:
        raise CheckpointError(
            f"{path} holds a {str(model_type)[:40]!r} model, not a GeoMag checkpoint: "
            "assemble one with `geomag-edge compose`"
        )
    return check_weights(path)
