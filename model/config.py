"""`GeoMagConfig`: the composite configuration, Hugging Face style."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.errors import CheckpointError
from geomag_edge.model.loading.agreement import check_normalisation, check_views

VISION_FAMILIES = ("clip_vision_model", "siglip_vision_model")
PROMPT_FAMILIES = ("clip_text_model", "siglip_text_model")
TEXT_FAMILIES = ("llama", "qwen2", "qwen3")

PROMPT_TEMPLATE = "USER: <image>\n{prompt}\nASSISTANT:"


class GeoMagConfig(PreTrainedConfig):
    """Towers of supported families plus the parts that make them GeoMag.

    Args:
        vision_config: CLIP or SigLIP vision tower; `image_size` becomes what its patches cover.
        prompt_config: CLIP or SigLIP text tower that embeds the prompt for PSC and TMRA.
        text_config: Llama, Qwen2 or Qwen3 decoder.
        psc: `max_crops`, `windows` (sides in patches), `overlap` (greatest IoU of two crops),
            `levels` (looks at most), `embed_dim` (the joint image-text space).
        tmra: `budgets`, for each of image, region, pixel: `global_grid`, `crops`, `crop_grid`.
        mask: `feature_dim`, `depth`, `heads` of the mask head.
        image_mean, image_std: per channel, in 0..1 units.
        prompt_template: what the LLM reads; holds `<image>` and `{prompt}` once each.
        seg_token_id, image_token_id: ids in the LLM's vocabulary.
        text_form, psc_text_form: how the towers' texts are spelt, `geomag_edge.spelling.FORMS`;
            None: told from the tokenizers.
        untrained: names of parts that were initialised by seed and never trained.
    """

    model_type = "geomag"
    sub_configs = {  # noqa: RUF012 - the name and form that transformers reads
        "vision_config": AutoConfig,
        "prompt_config": AutoConfig,
        "text_config": AutoConfig,
    }

    # Any, because None and plain dicts are taken too, and are made whole in __post_init__
    vision_config: Any = None
    prompt_config: Any = None
    text_config: Any = None
    psc: Any = None
    tmra: Any = None
    mask: Any = None
    image_mean: Any = None
    image_std: Any = None
    prompt_template: str = PROMPT_TEMPLATE
    seg_token_id: int = 0
    image_token_id: int = 1
    text_form: str | None = None
    psc_text_form: str | None = None
    untrained: Any = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _sub_config(self.vision_config, "vision_config", VISION_FAMILIES)
        self.prompt_config = _sub_config(self.prompt_config, "prompt_config", PROMPT_FAMILIES)
        self.text_config = _sub_config(self.text_config, "text_config", TEXT_FAMILIES)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        check_views(self.vision_config)
        grid = self.grid
        # What whole patches cover: a tower never sees what is left over (384 px of 14: 378)
        self.vision_config.image_size = grid * self.vision_config.patch_size
        self.psc = {
            "max_crops": 4,
            "windows": [max(2, grid // 4), max(2, grid // 3), max(2, grid // 2)],
            "overlap": 0.3,
            "levels": 2,
            "embed_dim": 512,
            **(self.psc or {}),
        }
        g = max(1, grid // 2)
        default_budgets = {
            level: TokenBudget(g, crops, g if crops else 0).to_json()
            for level, crops in zip(LEVELS, (0, 2, 4), strict=True)
        }
        self.tmra = {"budgets": default_budgets, **(self.tmra or {})}
        self.mask = {"feature_dim": 256, "depth": 2, "heads": 8, **(self.mask or {})}
        self.image_mean = self.image_mean or [0.5, 0.5, 0.5]
        self.image_std = self.image_std or [0.5, 0.5, 0.5]
        check_normalisation(self.image_mean, self.image_std)
        self.untrained = self.untrained or []
        super().__post_init__(**kwargs)

    @property
    def view_px(self) -> int:
        """Side S of a view, in pixels."""
        return int(self.vision_config.image_size)

    @property
    def grid(self) -> int:
        """Patches G along a view's side."""
        return int(self.vision_config.image_size // self.vision_config.patch_size)

    @property
    def budgets(self) -> dict[str, TokenBudget]:
        """The token budget of each level."""
        return {k: TokenBudget.from_json(self.tmra["budgets"][k]) for k in LEVELS}


def _sub_config(value: Any, name: str, families: tuple[str, ...]) -> PreTrainedConfig:
    """A config object from None, a dict or a config; refuses other families."""
    if value is None:
        value = {"model_type": families[0]}
    family = value.get("model_type") if isinstance(value, dict) else value.model_type
    if family not in families:
        raise CheckpointError(
            f"{name} is of family {family!r}: supported are {', '.join(families)}"
        )
    return AutoConfig.for_model(**value) if isinstance(value, dict) else value
