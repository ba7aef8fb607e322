"""The training configuration: one JSON file, read into frozen records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geomag_edge.disk.stored import read_json
from geomag_edge.errors import InputError
from geomag_edge.model.train.samples.data import BudgetRange
from geomag_edge.model.train.samples.pool import PoolPlan
from geomag_edge.model.train.step import CropMix, LossWeights


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own losses and learning rate.

    The rate rises over `warmup` steps to `rate`, and falls linearly to `end_rate` over the last
    `decay` steps.
    """

    name: str
    steps: int
    losses: LossWeights
    crops: CropMix = field(default_factory=CropMix)
    budgets: BudgetRange = field(default_factory=BudgetRange)
    rate: float = 1e-3
    end_rate: float = 1e-3
    warmup: int = 100
    decay: int = 0
    scenes: int = 8
    questions: tuple[int, int, int] = (3, 3, 4)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step of this stage."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        left = self.steps - step
        if left >= self.decay:
            return self.rate
        return self.end_rate + (self.rate - self.end_rate) * left / self.decay


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run."""

    preset: str = "nano"
    seed: int = 0
    pool: PoolPlan = field(default_factory=PoolPlan)
    stages: tuple[Stage, ...] = field(default_factory=tuple)
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.998
    save_every: int = 100
    autocast: bool = True
    muon: bool = False

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Reads a JSON file.

        Raises:
            InputError: not JSON, or a field that does not exist.
        """
        data = read_json(path, error=InputError)
        try:
            return cls.from_json(data)
        except (ValueError, TypeError, LookupError, AttributeError) as e:
            raise InputError(f"training configuration {path}: {str(e)[:150]}") from e

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainConfig:
        """Builds the records; absent fields have their defaults."""
        plan = dict(value.get("pool", {}))
        if "sizes_px" in plan:
            plan["sizes_px"] = tuple(plan["sizes_px"])
        stages = tuple(_stage(s) for s in value.get("stages", ()))
        return cls(**{**value, "pool": PoolPlan(**plan), "stages": stages})

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)


def _stage(value: dict[str, Any]) -> Stage:
    budgets: dict[str, Any] = {
        k: v if k == "max_tokens" else tuple(v) for k, v in value.get("budgets", {}).items()
    }
    parts: dict[str, Any] = {
        "losses": LossWeights(**value["losses"]),
        "crops": CropMix(**value.get("crops", {})),
        "budgets": BudgetRange(**budgets),
    }
    if "questions" in value:
        parts["questions"] = tuple(value["questions"])
    return Stage(**{**value, **parts})
