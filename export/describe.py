"""A checkpoint's configuration -> the manifest's records, all that the runtime needs of it."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizers import Tokenizer

import geomag_edge
from geomag_edge.errors import CheckpointError
from geomag_edge.graphs import Port
from geomag_edge.manifest import DecoderShape, Manifest, ViewSettings
from geomag_edge.model.digest import checkpoint_digest
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.prompts import IMAGE_TOKEN, SEG_TOKEN, PromptCoder, PromptSettings, read_tokenizer
from geomag_edge.views import PscSettings

TOKENIZERS = ("tokenizer.json", "psc_tokenizer.json")


def describe(model: GeoMagForConditionalGeneration, checkpoint: Path, out: Path) -> Manifest:
    """The manifest of a bundle to be, without graphs, files and reports.

    Raises:
        CheckpointError: a tokenizer is missing, or lacks [SEG] or <image> where the config has
            them.
    """
    config = model.config
    decoder = model.decoder()
    return Manifest(
        created_by=f"geomag-edge {geomag_edge.__version__}",
        model_config=config.to_dict(),
        view=ViewSettings(
            config.view_px, config.grid, tuple(config.image_mean), tuple(config.image_std)
        ),
        prompt=prompt_settings(model, checkpoint),
        psc=PscSettings.from_json(config.psc),
        budgets=config.budgets,
        decoder=DecoderShape(
            decoder.layers, decoder.kv_heads, decoder.head_dim, config.text_config.hidden_size
        ),
        graphs={},
        files={},
        checkpoint={
            "sha256": checkpoint_digest(checkpoint),
            "path": os.path.relpath(checkpoint.resolve(), out.resolve()),
        },
        untrained=list(config.untrained),
    )


def prompt_settings(model: GeoMagForConditionalGeneration, checkpoint: Path) -> PromptSettings:
    """How this checkpoint's prompts become ids."""
    config = model.config
    text, prompt = config.text_config, config.prompt_config
    for name in TOKENIZERS:
        if not (checkpoint / name).is_file():
            raise CheckpointError(f"checkpoint {checkpoint} has no {name}")
    tokenizer = read_tokenizer(checkpoint / TOKENIZERS[0])
    for token, expected in ((SEG_TOKEN, config.seg_token_id), (IMAGE_TOKEN, config.image_token_id)):
        if tokenizer.token_to_id(token) != expected:
            raise CheckpointError(
                f"the tokenizer of {checkpoint} has {token} as {tokenizer.token_to_id(token)}, its "
                f"config as {expected}"
            )
    ends = text.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    padded = prompt.model_type == "siglip_text_model"
    return PromptSettings(
        template=config.prompt_template,
        bos_token_id=_leading_id(tokenizer),
        eos_token_ids=tuple(int(e) for e in ends if e is not None),
        seg_token_id=config.seg_token_id,
        context=text.max_position_embeddings,
        psc_context=prompt.max_position_embeddings,
        psc_pad_to=prompt.max_position_embeddings if padded else None,
        psc_pad_id=int(prompt.pad_token_id or 0),
    )


def _leading_id(tokenizer: Tokenizer) -> int | None:
    """The id that the tokenizer itself puts first (a config may name one that it never uses)."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    return whole[0] if len(whole) > len(plain) and whole[0] != plain[0] else None


def load_coder(manifest: Manifest, checkpoint: Path) -> PromptCoder:
    """The prompt coder of a checkpoint."""
    return PromptCoder.load(manifest.prompt, *(checkpoint / name for name in TOKENIZERS))


def ports(items: tuple[Port, ...], precision: str) -> list[dict]:
    """A contract's ports as the manifest lists them, `float` resolved."""
    wide = {"fp32": "float32", "fp16": "float16"}[precision]
    return [
        {"name": p.name, "dtype": wide if p.dtype == "float" else p.dtype, "axes": list(p.axes)}
        for p in items
    ]
