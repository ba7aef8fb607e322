"""A training folder: the weights, their running average, the optimiser, the log. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geomag_edge.disk.stored import read_json
from geomag_edge.errors import CheckpointError

Tensors = dict[str, Tensor]


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: list[str]) -> Tensors:
    """The moments of each parameter by name; parameters are in the order of `names`."""
    found: Tensors = {}
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimiser.state.get(parameter, {}).items():
            found[f"{key}/{name}"] = value.detach().clone()
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, names: list[str], tensors: Tensors) -> None:
    """Puts back what `optimiser_tensors` gave; of another kind of optimiser, nothing."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    by_name = dict(zip(names, parameters, strict=True))
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name in by_name and (kind == "momentum_buffer") == isinstance(
            optimiser, torch.optim.Muon
        ):
            optimiser.state[by_name[name]][kind] = value.to(by_name[name].device)


def named(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters of several modules, by `module/parameter`."""
    return {
        f"{prefix}/{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def write_state(folder: Path, groups: dict[str, Tensors], record: dict[str, Any]) -> None:
    """Writes tensor files and the record; the record last, so that it never is ahead of them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, tensors in groups.items():
        file = f"{name}-{record['step']}.safetensors"
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / file)
        files[name] = file
    partial = folder / "train_state.json.partial"
    partial.write_text(json.dumps(record | {"files": files}, indent=1))
    os.replace(partial, folder / "train_state.json")
    for old in folder.glob("*.safetensors"):
        if old.name not in files.values():
            old.unlink()


def read_state(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Reads what `write_state` wrote.

    Raises:
        CheckpointError: no such folder or a damaged file.
    """
    record = read_json(folder / "train_state.json", error=CheckpointError)
    try:
        groups = {k: load_file(folder / v) for k, v in record.get("files", {}).items()}
    except Exception as e:
        raise CheckpointError(f"{folder} holds no training state that can be read: {e}") from e
    return groups, record
