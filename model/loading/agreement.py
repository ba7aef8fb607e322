"""Whether trained parts can work together: tokenizers and towers, patches and views."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from geomag_edge.errors import CheckpointError


def check_ids(owner: str, tokenizer: Tokenizer, rows: int) -> None:
    """Refuses a tokenizer with ids that the embeddings have no row for: it is another model's.

    Args:
        owner: the part, as the message calls it.
        tokenizer: without padding; ids that only its template adds count, too.
        rows: of the embeddings.

    Raises:
        CheckpointError: an id is out of reach.
    """
    last = max([*tokenizer.get_vocab().values(), *tokenizer.encode("a").ids], default=-1)
    if last >= rows:
        raise CheckpointError(
            f"{owner}: its tokenizer has ids up to {last}, its embeddings have {rows} rows: give "
            "the tokenizer that was saved with these weights"
        )


def check_prompt_end(owner: str, tokenizer: Tokenizer, config: PreTrainedConfig) -> None:
    """Refuses a CLIP text tower whose tokenizer does not end a text where the tower pools it.

    Raises:
        CheckpointError: the last id is not the end-of-text token.
    """
    if config.model_type != "clip_text_model":
        return  # SigLIP's pools the last position of its padding
    bare, whole = (tokenizer.encode("a", add_special_tokens=b).ids for b in (False, True))
    end = config.eos_token_id
    if end is None or end == LEGACY_END:
        end = max(whole, default=-1)
    if whole[-1:] != [end] or whole[-1:] == bare[-1:]:  # the text's own last word is no end
        raise CheckpointError(
            f"{owner}: its tokenizer does not end a text with the token {config.eos_token_id} that "
            "a CLIP tower pools: save tokenizer.json with CLIPTokenizerFast"
        )


LEGACY_END = 2
"""Where a CLIP config says this, `transformers` pools the greatest id: its real end was unsaid."""


def check_views(vision: PreTrainedConfig) -> None:
    """Refuses a vision tower that cannot look at square colour views in whole patches.

    Raises:
        CheckpointError: not three channels; no whole patch fits.
    """
    if vision.num_channels != 3:
        raise CheckpointError(
            f"the vision tower takes {vision.num_channels} channels, and views have 3, red, green "
            "and blue: give a tower with num_channels 3"
        )
    side, patch = vision.image_size, vision.patch_size
    if type(side) is not int or type(patch) is not int or not 0 < patch <= side:
        raise CheckpointError(
            f"the vision tower has image_size {str(side)[:40]} and patch_size {str(patch)[:40]}: "
            "both must be whole numbers, the patch no larger than the image"
        )


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuses a mean and std that are not three numbers in 0..1 units.

    Raises:
        CheckpointError: another count, not finite, out of range, or a std of 0.
    """
    for name, values, least in (("image_mean", mean, 0.0), ("image_std", std, 1e-6)):
        sound = isinstance(values, list | tuple) and len(values) == 3
        if not sound or not all(_number(v) and least <= v <= 1 for v in values):
            raise CheckpointError(
                f"{name} is {str(values)[:80]}: it must be three numbers in 0..1, one a channel, "
                "and no std 0"
            )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
