"""Which tokens end an answer: generation settings, wherever a trained model keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from geomag_edge.errors import CheckpointError
from geomag_edge.model.loading.weights import read_json

GENERATION = "generation_config.json"
CHAT_ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|im_end|>", "<|end|>", "<|end_of_turn|>",
    "<end_of_turn>",
)  # fmt: skip
"""Tokens by which chat models end a turn, whatever their settings say."""

_NONE: tuple[Any, ...] = (None, [], {})
_OFF, _WHOLE = (None, 0), (None, 1)
NOT_GREEDY: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": _WHOLE, "encoder_repetition_penalty": _WHOLE, "guidance_scale": _WHOLE,
    "num_beams": _WHOLE, "no_repeat_ngram_size": _OFF, "encoder_no_repeat_ngram_size": _OFF,
    "min_length": _OFF, "min_new_tokens": _OFF, "penalty_alpha": _OFF,
    "suppress_tokens": _NONE, "begin_suppress_tokens": _NONE, "bad_words_ids": _NONE,
    "force_words_ids": _NONE, "sequence_bias": _NONE, "stop_strings": (*_NONE, ""),
    "forced_bos_token_id": _NONE, "forced_eos_token_id": _NONE, "dola_layers": _NONE,
    "exponential_decay_length_penalty": _NONE, "watermarking_config": _NONE,
}  # fmt: skip
"""Settings that change which word is the likeliest or where an answer ends, and the values with
which they do not."""


def end_ids(
    folder: Path,
    config: PreTrainedConfig,
    tokenizer: Tokenizer,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[int, ...]:
    """Ids that end an answer, each once: those that `transformers` would stop at come first.

    They are generation_config.json's or, where that has none, the config's; then the tokenizer's
    own end (tokenizer_config.json, special_tokens_map.json), then chat models' ends of a turn.

    Args:
        folder: the model's.
        config: the language model's.
        tokenizer: its tokenizer.
        note: called with a sentence for what the user should know.

    Raises:
        CheckpointError: nothing names an end that is in the vocabulary.
    """
    size = max(config.vocab_size, tokenizer.get_vocab_size())
    generation = read_json(folder / GENERATION) or {}
    declared = [*_listed(generation.get("eos_token_id")), *_listed(config.eos_token_id)]
    first = valid_ids(generation.get("eos_token_id"), size) or valid_ids(config.eos_token_id, size)
    named = [tokenizer.token_to_id(token) for token in _own_ends(folder)]
    chat = [tokenizer.token_to_id(token) for token in CHAT_ENDS]
    found = tuple(dict.fromkeys(i for i in [*first, *named, *chat] if i is not None))
    if not found:
        said = (
            f" (its eos_token_id is {str(declared)[:80]}, its vocabulary has {size})"
            if declared
            else ""
        )
        raise CheckpointError(
            f"{folder} names no token that ends an answer{said}: set eos_token_id in its "
            f"{GENERATION}"
        )
    outside = [i for i in declared if i not in found and i not in valid_ids(declared, size)]
    if outside:
        note(
            f"{folder.name}: eos_token_id {str(outside[0])[:80]} is not in its vocabulary and is "
            "left out"
        )
    more = [i for i in found if i not in first]
    if first and more:
        tokens = ", ".join(str(tokenizer.id_to_token(i)) for i in more)
        note(
            f"{folder.name}: answers end at {tokens}, too, which its generation settings leave out"
        )
    return found


def carry_generation(
    folder: Path,
    config: PreTrainedConfig,
    tokenizer: Tokenizer,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Puts ends, beginning and padding into the config, and returns them as a generation_config.

    What else the folder's own holds, such as sampling, has no part in greedy answers; where that
    would make a difference, it is noted.

    Raises:
        CheckpointError: as `end_ids`.
    """
    generation = read_json(folder / GENERATION) or {}
    ends = end_ids(folder, config, tokenizer, note)
    config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    for key in ("bos_token_id", "pad_token_id"):
        found = [*valid_ids(generation.get(key), config.vocab_size)]
        found += valid_ids(getattr(config, key), config.vocab_size)
        setattr(config, key, found[0] if found else None)
    source = GENERATION if (folder / GENERATION).is_file() else "config.json"
    said = read_json(folder / source) or {}
    for key, idle in NOT_GREEDY.items():
        if said.get(key) not in idle:
            note(
                f"{folder.name}: {key} {str(said[key])[:80]} of its {source} has no effect; an "
                "answer takes the likeliest token at every step, until one that ends it"
            )
    kept = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: getattr(config, key) for key in kept if getattr(config, key) is not None}


def valid_ids(value: Any, size: int) -> list[int]:
    """The ids among a setting's value (one, a list or None) that a vocabulary of `size` has."""
    return [i for i in _listed(value) if type(i) is int and 0 <= i < size]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _own_ends(folder: Path) -> list[str]:
    """The end-of-text token that the tokenizer's own files name."""
    found = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = (read_json(folder / name) or {}).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found.append(token)
    return found
