"""The training loop: stages of steps, saved often, resumed exactly."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import set_seed

from geomag_edge.budgets import TokenBudget
from geomag_edge.cores import usable_threads
from geomag_edge.disk.stored import read_json
from geomag_edge.disk.tokenizer import read_tokenizer
from geomag_edge.errors import CheckpointError, InputError
from geomag_edge.model.geomag import GeoMagForConditionalGeneration, load_checkpoint
from geomag_edge.model.presets import domain_tokenizer, preset_config, save_checkpoint
from geomag_edge.model.processor import TOKENIZERS, prompt_settings
from geomag_edge.model.train.config import Stage, TrainConfig
from geomag_edge.model.train.curve import draw_curve
from geomag_edge.model.train.losses.attention import stream_in_bfloat16, use_plain_attention
from geomag_edge.model.train.losses.heads import DenseHeads
from geomag_edge.model.train.samples import data
from geomag_edge.model.train.samples.packing import TurnMaker
from geomag_edge.model.train.samples.pool import pool_files
from geomag_edge.model.train.state import (
    named,
    optimiser_tensors,
    read_state,
    restore_optimiser,
    write_state,
)
from geomag_edge.model.train.step import Trainee
from geomag_edge.prompts import PromptCoder

HEADS = "train_heads.safetensors"
"""The training heads beside a checkpoint's weights: the model itself never reads them."""

CURVES = (
    "dense", "psc", "answer", "mask", "mask_iou", "word_accuracy", "look/object", "found",
)  # fmt: skip


_Drawn = tuple[list[data.Visit], TokenBudget, np.random.Generator]

STEPS_AHEAD = 4
"""Steps whose scenes loaders read and turn before their time."""


@dataclass(frozen=True)
class Place:
    """Where a run computes, and how many threads prepare scenes beside it (0: none).

    The shipped checkpoint was trained on a CPU; on a GPU nobody has run this yet.
    """

    device: str = "cpu"
    loaders: int = 0

    @classmethod
    def choose(cls, device: str) -> Place:
        """`auto` takes a GPU if there is one; a GPU is fed by threads.

        Raises:
            InputError: `cuda` where PyTorch finds no GPU.
        """
        found = torch.cuda.is_available()
        if device == "cuda" and not found:
            raise InputError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
        if device == "cpu" or not found:
            return cls()
        return cls("cuda", min(8, usable_threads()))


CPU = Place()

SCALES = ("q_norm", "k_norm", "relevance_scale", "relevance_bias")
SCALE_GAIN = 10.0
"""How sharply attention may look is in these few numbers: normed queries and keys have no other
length. At the rate of the rest they would stay where they began for thousands of steps."""


class Trainer:
    """A run in a folder: `state/` to resume from, `log.jsonl`, `curve.png`, `checkpoint/`."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        pool: Path,
        model: GeoMagForConditionalGeneration,
        tokenizers: tuple[Tokenizer, Tokenizer],
        place: Place = CPU,
    ):
        self.config, self.folder, self.pool = config, folder, pool
        self.device = torch.device(place.device)
        model = model.train().requires_grad_(True).to(self.device)
        self.model, self.tokenizers = model, tokenizers
        self.heads = DenseHeads(model.config).to(self.device)
        self.loaders = ThreadPoolExecutor(place.loaders) if place.loaders else None
        self.ahead: dict[int, Future[_Drawn]] = {}
        use_plain_attention(model)
        stream_in_bfloat16(model)
        coder = PromptCoder(prompt_settings(model.config, tokenizers[0]), *tokenizers)
        each = self.loaders.map if self.loaders else map
        self.trainee = Trainee(model, self.heads, TurnMaker(coder), each)
        self.parameters = named({"model": model, "heads": self.heads})
        self.optimisers = _optimisers(self.parameters, config)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.step, self.seconds, self.visits = 0, 0.0, 0
        self.log: list[dict[str, Any]] = []

    @classmethod
    def fresh(cls, config: TrainConfig, folder: Path, pool: Path, place: Place = CPU) -> Trainer:
        """A run from random weights."""
        settings = preset_config(config.preset)
        set_seed(config.seed)
        with torch.no_grad():
            model = GeoMagForConditionalGeneration(settings)
        return cls(config, folder, pool, model, domain_tokenizer(), place)

    @classmethod
    def from_checkpoint(
        cls, config: TrainConfig, folder: Path, pool: Path, checkpoint: Path, place: Place = CPU
    ) -> Trainer:
        """A run from a shipped checkpoint, at the step where that one stopped."""
        model = load_checkpoint(checkpoint)
        text, psc = (read_tokenizer(checkpoint / name) for name in TOKENIZERS)
        set_seed(config.seed)
        run = cls(config, folder, pool, model, (text, psc), place)
        file = checkpoint / "train_state.json"
        record = read_json(file, error=CheckpointError) if file.exists() else {}
        run.step, run.seconds = int(record.get("step", 0)), float(record.get("seconds", 0))
        run.visits = int(record.get("visits", 0))
        if (checkpoint / HEADS).is_file():
            with torch.no_grad():
                for name, tensor in load_file(checkpoint / HEADS).items():
                    run.parameters[name].copy_(tensor)
                    run.average[name].copy_(tensor)
        return run

    def restore(self) -> None:
        """Continues from the folder's last save, exactly."""
        groups, record = read_state(self.folder / "state")
        missing = sorted(self.parameters.keys() ^ groups["weights"].keys())
        if missing:
            raise CheckpointError(
                f"{self.folder / 'state'} is of another model: {', '.join(missing[:3])}"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(groups["weights"][name])
        self.average = {n: groups["average"][n].to(self.device) for n in self.parameters}
        for optimiser, names in self.optimisers:
            restore_optimiser(optimiser, names, groups["optimiser"])
        self.step, self.seconds = record["step"], record["seconds"]
        self.visits = record["visits"]
        lines = (self.folder / "log.jsonl").read_text().splitlines()
        self.log = [r for r in map(json.loads, lines) if r["step"] < self.step]
        (self.folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.log))

    def stage_at(self, step: int) -> tuple[int, Stage, int] | None:
        """Index, stage and the step within it, or None past the end."""
        for i, stage in enumerate(self.config.stages):
            if step < stage.steps:
                return i, stage, step
            step -= stage.steps
        return None

    def run(self, until: int | None = None) -> None:
        """Trains to the end of the last stage, or to step `until`."""
        total = sum(stage.steps for stage in self.config.stages)
        total = total if until is None else min(total, until)
        files = self._files()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            tqdm(total=total, initial=self.step, unit="step", smoothing=0.05) as bar,
            (self.folder / "log.jsonl").open("a") as log,
        ):
            while self.step < total:
                record = self.one_step(files)
                self.log.append(record)
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.set_description(record["stage"])
                bar.set_postfix(
                    {
                        k: f"{record[k]:.3g}"
                        for k in ("loss", "noun_iou", "answer", "mask_iou")
                        if k in record
                    }
                )
                bar.update()
                if self.step % self.config.save_every == 0 or self.step == total:
                    self.save()
                    files = self._files()

    def one_step(self, files: list[Path]) -> dict[str, Any]:
        """One optimiser step; returns the log's record."""
        place = self.stage_at(self.step)
        if place is None:
            raise InputError("the training is over: give a configuration with more steps")
        _, stage, within = place
        start = time.perf_counter()
        rate = stage.rate_at(within)
        for optimiser, _ in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("gain", 1.0)
        visits, budget, rng = self._draw(files)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
            loss, parts = self.trainee.losses(visits, budget, stage.losses, stage.crops, rng)
        for optimiser, _ in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        if math.isfinite(float(norm)):
            for optimiser, _ in self.optimisers:
                optimiser.step()
            self._update_average()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.visits += stage.scenes
        record = {"step": self.step, "stage": stage.name, "budget": str(budget), "rate": rate}
        parts = {k: v for k, v in parts.items() if math.isfinite(v)}
        self.step += 1
        return record | parts | {"norm": float(norm), "seconds": seconds}

    def _draw(self, files: list[Path]) -> _Drawn:
        """What this step trains on; with loaders, theirs, and they go on with the next steps."""
        if self.loaders is None:
            return self._drawn_at(self.step, files)
        for step in range(self.step, self.step + STEPS_AHEAD):
            if step not in self.ahead and self.stage_at(step) is not None:
                self.ahead[step] = self.loaders.submit(self._drawn_at, step, files)
        return self.ahead.pop(self.step).result()

    def _drawn_at(self, step: int, files: list[Path]) -> _Drawn:
        place = self.stage_at(step)
        assert place is not None
        stage = place[1]
        rng = np.random.default_rng((self.config.seed, step))
        chosen = rng.integers(len(files), size=stage.scenes)
        visits = [data.visit(files[int(i)], rng, stage.questions) for i in chosen]
        return visits, stage.budgets.draw(rng), rng

    def _update_average(self) -> None:
        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), [p.data for p in self.parameters.values()], 1 - keep
            )

    def _files(self) -> list[Path]:
        files = pool_files(self.pool)
        if not files:
            raise InputError(f"no scenes in {self.pool}: fill the pool first")
        return files

    def save(self) -> None:
        """Writes the state to resume from, the averaged checkpoint and the curve."""
        record = self.record()
        groups = {
            "weights": {n: p.data for n, p in self.parameters.items()},
            "average": self.average,
            "optimiser": {
                name: tensor
                for optimiser, names in self.optimisers
                for name, tensor in optimiser_tensors(optimiser, names).items()
            },
        }
        write_state(self.folder / "state", groups, record)
        self.save_checkpoint(self.folder / "checkpoint")
        draw_curve(self.log, self.folder / "curve.png", CURVES)

    def record(self) -> dict[str, Any]:
        """Where the run stands."""
        return {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "visits": self.visits,
            "config": self.config.to_json(),
        }

    def save_checkpoint(self, folder: Path) -> None:
        """The averaged weights as a checkpoint in fp16."""
        live = {n: p.data for n, p in self.parameters.items()}
        untrained = [] if any(s.losses.answer for s in self.config.stages) else ["all"]
        try:
            self._put({n: t.to(torch.float16) for n, t in self.average.items()})
            self.model.config.dtype = torch.float16
            self.model.config.untrained = untrained
            save_checkpoint(self.model, *self.tokenizers, folder)
        finally:
            self._put(live)
            self.model.config.dtype = torch.float32
        heads = {n: t.to(torch.float16) for n, t in self.average.items() if n.startswith("heads/")}
        save_file(heads, folder / HEADS)
        (folder / "train_state.json").write_text(json.dumps(self.record(), indent=1))

    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if name.startswith("model/"):
                parameter.data = tensors[name]


def _optimisers(
    parameters: dict[str, torch.nn.Parameter], config: TrainConfig
) -> list[tuple[torch.optim.Optimizer, list[str]]]:
    """AdamW, with Muon for the layers' matrices if asked, and the parameters of each in order.

    Muon's steps have the size of AdamW's (arXiv 2502.16982), so both share one rate.
    """
    inner = [
        n
        for n, p in parameters.items()
        if config.muon
        and n.startswith("model/")
        and p.ndim == 2
        and not any(part in n for part in ("embed", "lm_head", "mask_head.place"))
    ]
    outer = [n for n in parameters if n not in set(inner)]
    flat = [n for n in outer if parameters[n].ndim > 1]
    quick = [n for n in outer if any(part in n for part in SCALES)]
    rest = [n for n in outer if parameters[n].ndim <= 1 and n not in quick]
    adam = torch.optim.AdamW(
        [
            {"params": [parameters[n] for n in flat], "weight_decay": config.weight_decay},
            {"params": [parameters[n] for n in rest], "weight_decay": 0.0},
            {"params": [parameters[n] for n in quick], "weight_decay": 0.0, "gain": SCALE_GAIN},
        ],
        lr=1e-3,
        betas=(0.9, 0.98),
        fused=True,
    )
    found: list[tuple[torch.optim.Optimizer, list[str]]] = [(adam, [*flat, *rest, *quick])]
    if inner:
        muon = torch.optim.Muon(
            [parameters[n] for n in inner],
            lr=1e-3,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        found.append((muon, inner))
    return found
