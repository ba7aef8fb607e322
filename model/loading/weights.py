"""What a folder of weights holds, read from names and headers, and what was made of it.

`transformers` warns where weights and config disagree, loads an adapter or leaves it out depending
on whether `peft` is installed, and fills gaps with random numbers. Here each is an error or a note.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from geomag_edge.disk import stored
from geomag_edge.errors import CheckpointError

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Types of weights; weights of any other type are quantised or damaged."""

HEADER_BYTES = 32_000_000
SLACK = 2**25
"""Tables that no file holds, such as the windows of a view; 0.1 GB."""

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_TENSOR = re.compile(
    r"(^|\.)(lora_\w+|ia3_l|vera_lambda_\w|oft_r|hada_w\d\w?|lokr_w\d\w?|base_layer|base_model"
    r"|modules_to_save)(\.|$)"
)
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,250}\.safetensors")
_TABLE = re.compile(r"(^|\.)position_ids$")  # integers in files of before they were left out
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def check_weights(folder: Path) -> int:
    """How many weights a folder holds; refuses those that no model should be built from.

    Raises:
        CheckpointError: an unmerged adapter, quantised, a shard that is missing, pickle weights or
            none, a damaged file.
    """
    for name in _ADAPTER_FILES:
        if (folder / name).exists():
            raise _unmerged(folder, name)
    config = read_json(folder / "config.json") or {}
    method = config.get("quantization_config")
    if method:
        kind = method.get("quant_method", "") if isinstance(method, dict) else ""
        raise _quantised(folder, f"quantization_config {kind}".strip())
    read_json(folder / "generation_config.json")  # transformers reads it without a look at it
    held = 0
    for file in _files(folder):
        try:
            _check_header(file)
            with safe_open(file, framework="np") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                types = {name: part.get_dtype() for name, part in slices.items()}
                held += sum(math.prod(part.get_shape()) for part in slices.values())
        except (SafetensorError, OSError, ValueError) as e:
            raise CheckpointError(
                f"{folder} cannot be loaded: {file.name} is damaged ({reason(e)}); copy it again"
            ) from e
        for name, dtype in types.items():
            if _ADAPTER_TENSOR.search(name):
                raise _unmerged(folder, name)
            if dtype not in FLOATS and not (dtype == "I64" and _TABLE.search(name)):
                raise _quantised(folder, f"{name[:80]} is {dtype}")
    return held


def _check_header(path: Path) -> None:
    """A header of hundreds of megabytes would be parsed into gigabytes."""
    with stored.open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
            raise ValueError("its header is larger than it can be")


def check_size(what: str, kind: Any, config: PreTrainedConfig, held: int) -> None:
    """Refuses a config that describes a far larger model than its weights are, before any of that
    is allocated; `check_loaded` compares tensor by tensor later.

    Args:
        what: the checkpoint, as the message calls it.
        kind: the model's class, or one of the `AutoModel` classes.
        config: as `kind` takes it.
        held: how many weights the files hold.

    Raises:
        CheckpointError: too many weights and tables, or none that can be built.
    """
    build = getattr(kind, "_from_config", None) or kind.from_config
    try:
        with heard(), torch.device("meta"), no_init_weights():
            model = build(config)
    except CheckpointError:
        raise
    except Exception as e:
        raise CheckpointError(f"{what} cannot be loaded: {reason(e)}") from e
    described = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    if described > 2 * held + SLACK:
        raise CheckpointError(
            f"{what} holds {held} weights, and its config.json describes a model of {described}: "
            "copy both again from one place"
        )


def reason(error: Exception) -> str:
    """What an error of a library says, in a line: validation errors begin with their name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__


def _files(folder: Path) -> list[Path]:
    """The files that `transformers` reads: one, or the shards that an index names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = read_json(folder / INDEX)
    if index is None:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if others:
            raise CheckpointError(
                f"{folder} holds pickle weights ({others[0]}), which can run code when loaded: "
                "convert them to safetensors"
            )
        raise CheckpointError(
            f"{folder} has no *.safetensors weights called model.safetensors, nor {INDEX}"
        )
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{folder / INDEX} names no shards: copy it again")
    for name in places.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise CheckpointError(
                f"{folder / INDEX} names {str(name)[:80]!r}, which is no safetensors file of this "
                "folder: copy it again"
            )
    shards = [folder / name for name in sorted(set(places.values()))]
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(
                f"{folder} lacks the shard {shard.name} that {INDEX} names: copy all of them"
            )
    return shards


def _unmerged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds an unmerged adapter ({what}): load it with peft, call "
        "merge_and_unload(), and save the result to a folder of its own"
    )


def _quantised(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds quantised weights ({what}): give the model in float32, float16 or "
        "bfloat16, and quantise the bundle with `geomag-edge quantize`"
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Raises:
        CheckpointError: not JSON, or no object.
    """
    if not path.exists():
        return None
    data = stored.read_json(path, error=CheckpointError, bits=128)  # endless lengths
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object: copy it again")
    return data


def check_loaded(what: str, info: dict[str, Any]) -> None:
    """Refuses a model of which a tensor was left at random, or for which one was left out.

    Args:
        what: the checkpoint, as the message calls it.
        info: `output_loading_info` of `from_pretrained`, `ignore_mismatched_sizes` given.

    Raises:
        CheckpointError: missing, unknown or misshapen tensors, the first of them named.
    """
    misshapen = [k[0] if isinstance(k, tuple) else k for k in info["mismatched_keys"]]
    for word, keys in (
        ("lacks", info["missing_keys"]),
        ("has unknown", info["unexpected_keys"]),
        ("has misshapen", misshapen),
    ):
        if keys:
            names = sorted(keys)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{what} {word} tensors: {', '.join(names[:3])}{more}; it must hold "
                "exactly what its config.json describes"
            )


def check_finite(what: str, model: PreTrainedModel) -> None:
    """Refuses weights that hold NaN or infinity, which make every answer NaN.

    Args:
        what: the checkpoint, as the message calls it.
        model: loaded.

    Raises:
        CheckpointError: the first such tensor, named.
    """
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if not weight.isfinite().all():
            raise CheckpointError(
                f"{what} has NaN or infinite weights ({name}, as {str(weight.dtype)[6:]}): "
                "training went astray or the file is damaged; give weights that are finite"
            )


def untie_own_head(language_model: PreTrainedModel, *configs: PreTrainedConfig) -> bool:
    """Whether the head has weights of its own against its config; the configs then say so.

    `transformers` keeps both where they differ. A config that went on saying "tied" would tie them
    at the next change of the vocabulary, or at the next load.
    """
    head = language_model.get_output_embeddings()
    own = head.weight is not language_model.get_input_embeddings().weight
    if not own or not language_model.config.tie_word_embeddings:
        return False
    for config in (language_model.config, *configs):
        config.tie_word_embeddings = False
    return True


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collects what `transformers` and Python warn of, in one line each, instead of printing it."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            keep(record.getMessage())

    def keep(message: str) -> None:
        line = " ".join(_STYLE.sub("", message).split())
        if line and line not in said:
            said.append(line)

    library = logging.getLogger("transformers")
    before = library.handlers, library.level, library.propagate
    library.handlers, library.propagate = [Ear(logging.WARNING)], False
    library.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield said
        for warning in caught:
            keep(str(warning.message))
    finally:
        library.handlers, library.level, library.propagate = before
