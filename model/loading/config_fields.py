"""What a checkpoint's config.json may say, checked before anything is built from it.

Of the fields that `transformers` knows only those that shape a model are handed on. Others would
name weights that nobody looked at, kernels to fetch, or attributes of the config to overwrite.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from geomag_edge.budgets import LEVELS
from geomag_edge.disk.bounds import MOST, TEMPLATE_CHARACTERS, TOKEN_ID
from geomag_edge.disk.fields import Check, listed, maybe, one_of, real, record, refuse, text, whole
from geomag_edge.disk.manifest_fields import BUDGET, PSC, check_looks
from geomag_edge.errors import BundleError, CheckpointError
from geomag_edge.model.config import (
    PROMPT_FAMILIES,
    TEXT_FAMILIES,
    VISION_FAMILIES,
    GeoMagConfig,
)
from geomag_edge.model.decoder import check_decoder
from geomag_edge.model.loading.weights import heard, read_json, reason
from geomag_edge.spelling import FORMS

WIDTH, WORDS = 1_048_576, 10_000_000
"""The widest hidden layer and the largest vocabulary; real ones have a tenth of that."""

_NUMBER = real(1e-9, 1e15)


def _rope(value: Any, place: str, depth: int = 0) -> None:
    """Settings of rotary positions, for all layers or for each kind of layer."""
    if not isinstance(value, dict) or depth > 1:
        refuse(value, place, "a record")
    for key, item in value.items():
        inner = f"{place}.{key[:40]}"
        if isinstance(item, dict):
            _rope(item, inner, depth + 1)
        elif isinstance(item, str):
            text(64)(item, inner)
        elif item is not None and not isinstance(item, bool):
            _NUMBER(item, inner)


_TOWER: dict[str, Check] = {
    "hidden_size": whole(1, MOST["hidden"]),
    "intermediate_size": whole(1, WIDTH),
    "num_hidden_layers": whole(1, MOST["layers"]),
    "num_attention_heads": whole(1, MOST["kv_heads"]),
    "num_key_value_heads": whole(1, MOST["kv_heads"]),
    "head_dim": whole(1, MOST["head_dim"]),
    "vocab_size": whole(1, WORDS),
    "max_position_embeddings": whole(1, MOST["context"]),
    "image_size": whole(1, MOST["view_px"]),
    "patch_size": whole(1, MOST["view_px"]),
    "num_channels": whole(1, 64),
    "projection_dim": whole(1, MOST["hidden"]),
    "projection_size": whole(1, MOST["hidden"]),
    "sliding_window": whole(0, MOST["context"]),
    "max_window_layers": whole(0, MOST["context"]),
    "layer_types": listed(text(64), MOST["layers"]),
    "architectures": listed(text(), 16),
    "hidden_act": text(64),
    "layer_norm_eps": real(0, 1),
    "rms_norm_eps": real(0, 1),
    "attention_dropout": real(0, 1),
    "initializer_range": real(0, 100),
    "initializer_factor": real(0, 100),
    "logit_scale_init_value": real(-1000, 1000),
    "rope_theta": _NUMBER,
    "partial_rotary_factor": _NUMBER,
    "rope_scaling": _rope,
    "rope_parameters": _rope,
}

_BESIDE = {
    "model_type", "architectures", "tie_word_embeddings", "is_causal",
    "rope_theta", "partial_rotary_factor", "rope_scaling",
}  # fmt: skip
"""Fields that shape a model without being declared by its family's class."""

_COMPOSITE: dict[str, Check] = {
    "psc": record({}, PSC | {"embed_dim": whole(1, MOST["hidden"])}),
    "tmra": record({}, {"budgets": record(dict.fromkeys(LEVELS, BUDGET))}),
    "mask": record(
        {},
        {"feature_dim": whole(8, MOST["hidden"]), "depth": whole(0, 64), "heads": whole(1, 1024)},
    ),
    "prompt_template": text(TEMPLATE_CHARACTERS),
    "seg_token_id": whole(0, TOKEN_ID),
    "image_token_id": whole(0, TOKEN_ID),
    "text_form": one_of(*FORMS),
    "psc_text_form": one_of(*FORMS),
    "untrained": listed(text(), 1000),
}
_PARTS = {
    "vision_config": VISION_FAMILIES,
    "prompt_config": PROMPT_FAMILIES,
    "text_config": TEXT_FAMILIES,
}


def read_config(folder: Path) -> GeoMagConfig:
    """A GeoMag checkpoint's configuration.

    Raises:
        CheckpointError: no config.json, of another model, or a field that is not what it must be.
    """
    path = folder / "config.json"
    data = read_json(path)
    if data is None:
        raise CheckpointError(f"checkpoint {folder} has no readable config.json")
    made = _kept(GeoMagConfig, data, _COMPOSITE, str(path))
    for part, families in _PARTS.items():
        value = data.get(part)
        if isinstance(value, dict) and value.get("model_type") in families:
            made[part] = plain_config(value, f"{path}: {part}")
        elif value is not None:
            family = value.get("model_type") if isinstance(value, dict) else value
            raise CheckpointError(
                f"{path}: {part} is of family {str(family)[:40]!r}: supported are "
                f"{', '.join(families)}"
            )
    return _sound(_made(lambda: GeoMagConfig(**made), path), path)


def part_config(folder: Path, data: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a trained part, from its config.json.

    Raises:
        CheckpointError: a field that is not what it must be.
    """
    path = folder / "config.json"
    made = plain_config(data, str(path))
    return _made(lambda: AutoConfig.for_model(**made), path)


def plain_config(data: dict[str, Any], place: str) -> dict[str, Any]:
    """The fields of a tower's config that shape it, each checked; those of its halves, too.

    Args:
        data: as config.json has it; its `model_type` is a known one.
        place: what an error calls it.

    Raises:
        CheckpointError: a field that is not what it must be.
    """
    kind = CONFIG_MAPPING[data["model_type"]]
    made = _kept(kind, data, _TOWER, place)
    for part, half in kind.sub_configs.items():
        for name in (part, f"{part}_dict"):  # the second as CLIP's first models have it
            if isinstance(data.get(name), dict):
                inner = {**data[name], "model_type": half.model_type}
                made[name] = plain_config(inner, f"{place}: {name}")
            elif data.get(name) is not None:
                raise CheckpointError(f"{place}: {name} is no record: copy it again")
    return made


def _kept(kind: Any, data: dict[str, Any], checks: dict[str, Check], place: str) -> dict[str, Any]:
    own = {f.name for f in dataclasses.fields(kind)}
    own -= {f.name for f in dataclasses.fields(PreTrainedConfig)} | {*kind.sub_configs}
    made = {name: value for name, value in data.items() if name in own | _BESIDE}
    try:
        for name, value in made.items():
            if name in checks:
                maybe(checks[name])(value, f"{place}: {name}")
    except BundleError as e:
        raise CheckpointError(str(e)) from e
    return made


def _made(build: Any, path: Path) -> Any:
    try:
        with heard():  # what it says of older names of fields
            return build()
    except CheckpointError:
        raise
    except Exception as e:  # transformers raises many kinds for what a field says
        raise CheckpointError(f"{path} cannot be used: {reason(e)}") from e


def _sound(config: GeoMagConfig, path: Path) -> GeoMagConfig:
    """Numbers that must agree with each other, before modules of their sizes are made."""
    mask = config.mask
    if mask["feature_dim"] % mask["heads"] or mask["feature_dim"] // 2 % mask["heads"]:
        raise CheckpointError(
            f"{path}: mask has a feature_dim of {mask['feature_dim']} and {mask['heads']} heads: "
            "the half of the first must be a multiple of the second"
        )
    looks = {
        "preprocessing": {"view_px": config.view_px, "grid": config.grid},
        "psc": config.psc,
        "token_budgets": {level: budget.to_json() for level, budget in config.budgets.items()},
    }
    try:
        check_looks(looks, str(path))
    except BundleError as e:
        raise CheckpointError(str(e)) from e
    check_decoder(config.text_config)
    return config
