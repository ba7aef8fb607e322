"""The training loop: stages of steps, saved often, resumed exactly."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import set_seed

from geomag_edge.errors import CheckpointError, InputError
from geomag_edge.model.geomag import GeoMagForConditionalGeneration, load_checkpoint
from geomag_edge.model.presets import domain_tokenizer, preset_config, save_checkpoint
from geomag_edge.model.processor import TOKENIZERS, prompt_settings
from geomag_edge.model.train import data
from geomag_edge.model.train.attention import stream_in_bfloat16, use_plain_attention
from geomag_edge.model.train.config import Stage, TrainConfig
from geomag_edge.model.train.curve import draw_curve
from geomag_edge.model.train.heads import DenseHeads
from geomag_edge.model.train.packing import TurnMaker
from geomag_edge.model.train.pool import pool_files
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

CURVES = ("loss", "dense", "psc", "answer", "mask", "noun_iou", "mask_iou", "word_accuracy")


class Trainer:
    """A run in a folder: `state/` to resume from, `log.jsonl`, `curve.png`, `checkpoint/`."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        pool: Path,
        model: GeoMagForConditionalGeneration,
        tokenizers: tuple[Tokenizer, Tokenizer],
    ):
        self.config, self.folder, self.pool = config, folder, pool
        self.model, self.tokenizers = model.train().requires_grad_(True), tokenizers
        self.heads = DenseHeads(model.config)
        use_plain_attention(model)
        stream_in_bfloat16(model)
        coder = PromptCoder(prompt_settings(model.config, tokenizers[0]), *tokenizers)
        self.trainee = Trainee(model, self.heads, TurnMaker(coder))
        self.parameters = named({"model": model, "heads": self.heads})
        flat = [p for p in self.parameters.values() if p.ndim > 1]
        rest = [p for p in self.parameters.values() if p.ndim <= 1]
        self.order = [n for n, p in self.parameters.items() if p.ndim > 1]
        self.order += [n for n, p in self.parameters.items() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": flat, "weight_decay": config.weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=1e-3, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.step, self.seconds, self.visits = 0, 0.0, 0
        self.log: list[dict[str, Any]] = []

    @classmethod
    def fresh(cls, config: TrainConfig, folder: Path, pool: Path) -> Trainer:
        """A run from random weights."""
        settings = preset_config(config.preset)
        set_seed(config.seed)
        with torch.no_grad():
            model = GeoMagForConditionalGeneration(settings)
        return cls(config, folder, pool, model, domain_tokenizer())

    @classmethod
    def from_checkpoint(
        cls, config: TrainConfig, folder: Path, pool: Path, checkpoint: Path
    ) -> Trainer:
        """A run from a shipped checkpoint, at the step where that one stopped."""
        model = load_checkpoint(checkpoint)
        text, psc = (Tokenizer.from_file(str(checkpoint / name)) for name in TOKENIZERS)
        set_seed(config.seed)
        run = cls(config, folder, pool, model, (text, psc))
        file = checkpoint / "train_state.json"
        record = json.loads(file.read_text()) if file.is_file() else {}
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
        self.average = {name: groups["average"][name] for name in self.parameters}
        restore_optimiser(self.optimiser, self.order, groups["optimiser"])
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
        rng = np.random.default_rng((self.config.seed, self.step))
        rate = stage.rate_at(within)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        chosen = rng.integers(len(files), size=stage.scenes)
        visits = [data.visit(files[int(i)], rng, stage.questions) for i in chosen]
        budget = stage.budgets.draw(rng)
        half = torch.autocast("cpu", torch.bfloat16) if self.config.autocast else nullcontext()
        with half:
            loss, parts = self.trainee.losses(visits, budget, stage.losses, stage.crops, rng)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        if math.isfinite(float(norm)):
            self.optimiser.step()
            self._update_average()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.visits += stage.scenes
        record = {"step": self.step, "stage": stage.name, "budget": str(budget), "rate": rate}
        parts = {k: v for k, v in parts.items() if math.isfinite(v)}
        self.step += 1
        return record | parts | {"norm": float(norm), "seconds": seconds}

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
            "optimiser": optimiser_tensors(self.optimiser, self.order),
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
