"""Makes the checkpoint that the package ships: `python -m geomag_edge.model.train.ship RUN -o DIR`.

Takes a run's averaged weights, its loss curve and what `evaluate` measured, and writes the
model card that says all of it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from geomag_edge.disk.stored import read_json
from geomag_edge.errors import CheckpointError, GeoMagError, InputError
from geomag_edge.model.train.cost import TILES

LIMIT_BYTES = int(15.5 * 2**20)


def ship(
    run: Path, metrics: dict[str, Any], cost: dict[str, Any], hardware: str, notes: str, out: Path
) -> None:
    """Writes the checkpoint folder.

    Args:
        run: a training folder with `checkpoint/` and `curve.png`.
        metrics: what `evaluate` printed, by scene side.
        cost: what `evaluate --cost` printed, by scene side.
        hardware: what the run was trained on, for the card.
        notes: the card's last part: what the checkpoint cannot do, and why.
        out: the folder to write.

    Raises:
        CheckpointError: the run holds no checkpoint, or a larger one than the package may ship.
    """
    checkpoint = run / "checkpoint"
    if not (checkpoint / "model.safetensors").is_file():
        raise CheckpointError(f"{run} holds no checkpoint: train first")
    size = (checkpoint / "model.safetensors").stat().st_size
    if size > LIMIT_BYTES:
        raise CheckpointError(
            f"the checkpoint of {run} has {size} bytes, the package ships at most {LIMIT_BYTES}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        shutil.copyfile(file, out / file.name)
    shutil.copyfile(run / "curve.png", out / "curve.png")
    record = read_json(checkpoint / "train_state.json", error=CheckpointError)
    (out / "README.md").write_text(card(record, metrics, cost, hardware, notes, size))


def card(
    record: dict[str, Any],
    metrics: dict[str, Any],
    cost: dict[str, Any],
    hardware: str,
    notes: str,
    size_bytes: int,
) -> str:
    """The model card, Markdown."""
    config = record["config"]
    pool = config["pool"]
    last = pool["first_seed"] + pool["count"] - 1
    stages = "\n".join(
        f"| {s['name']} | {s['steps']} | {_rates(s)} | {_parts(s)} |" for s in config["stages"]
    )
    tables = "\n".join(_table(size, rows) for size, rows in metrics.items())
    costs = "\n".join(_cost_rows(size, row) for size, row in cost.items())
    optimiser = "Muon for the layers' matrices, AdamW for the rest" if config["muon"] else "AdamW"
    return f"""# GeoMag nano

A small GeoMag that was really trained, so that parity and quantisation can be judged by answers.
It knows the rendered scenes of `geomag_edge.scenes` and nothing of the real world.

## Training

- Data: {pool["count"]} rendered scenes, seeds {pool["first_seed"]} to {last}, sides
  {", ".join(str(s) for s in pool["sizes_px"])} px in turn, {pool["per_level"]} questions a level
  and scene, turned and mirrored eight ways. Evaluation seeds start at 50,000,000.
- {record["step"]} steps, {record["visits"]} visits of scenes, {record["seconds"] / 60:.0f} minutes
  of steps on {hardware}. Weights: {size_bytes / 2**20:.1f} MiB, fp16, a running average.
- Optimiser at the end: {optimiser}.
- Answers: `[SEG]` stands once for the union of all targets; a box is given in the finest view
  that holds it wholly, in three-digit thousandths; "find the box" is answered with both, and the
  box is then the mask's own; an absent target has neither.
- Token budgets were drawn anew for every step, so other budgets than the defaults work too.

| stage | steps | learning rate | losses |
|---|---|---|---|
{stages}

![loss curve](curve.png)

Go on from here: `python -m geomag_edge.model.train RUN --resume model/checkpoints/nano` renders the
scenes into `RUN/pool` (minutes; for fewer, give a copy of `model/train/nano.json` with a smaller
`pool.count` by `--config`) and begins the configuration's last stage, of further steps. After a
stop, `python -m geomag_edge.model.train RUN --resume` goes on. `train_state.json` says what ran.

## Measured

Mean, 95 % bootstrap interval over questions, and their number, on seeds never used in training,
through the PyTorch reference (`python -m geomag_edge.model.train.evaluate`). "small" targets are
under 16 px in the global view; mIoU is of targets that are there (`mIoU present` of
`geomag-edge eval`); "PSC off" spends the same visual tokens on the global view alone
(the encoder then sees that one view instead of five, too).

{tables}
## Cost

Referring masks where PSC chooses the crops, at the default budget and with half its global grid,
against the same checkpoint on the same questions with {TILES} x {TILES} equal tiles over the whole
image beside the global view, every tile through the encoder's full resolution (`evaluate --cost`).
Training never had so many tiles, which costs the uniform run something.

| scenes | run | visual tokens | mIoU | share of the uniform run's mIoU | of its tokens |
|---|---|---|---|---|---|
{costs}

{notes.strip()}
"""


def _rates(stage: dict[str, Any]) -> str:
    return f"{stage['rate']:g}" + (f" to {stage['end_rate']:g}" if stage["decay"] else "")


def _parts(stage: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in stage["losses"].items() if value)


def _table(size: str, rows: dict[str, dict[str, float]]) -> str:
    lines = [f"Scenes of {size} px:\n", "| metric | mean | 95 % interval | questions |"]
    lines.append("|---|---|---|---|")
    lines += [
        f"| {name} | {r['mean']:.3f} | {r['low']:.3f} to {r['high']:.3f} | {r['n']} |"
        for name, r in rows.items()
    ]
    return "\n".join(lines) + "\n"


def _cost_rows(size: str, cost: dict[str, Any]) -> str:
    every = cost["uniform"]
    lines = [
        f"| {size} px, {cost['n']} questions | {every['budget']}, uniform | "
        f"{every['visual_tokens']} | {every['mIoU']:.3f} | | |"
    ]
    lines += [
        f"| | {r['budget']} | {r['visual_tokens']} | {r['mIoU']:.3f} | {r['mIoU_share']:.2f} "
        f"({r['low']:.2f} to {r['high']:.2f}) | {r['token_share']:.2f} |"
        for r in cost["chosen"]
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parses, calls, prints."""
    parser = argparse.ArgumentParser(prog="python -m geomag_edge.model.train.ship")
    parser.add_argument("run", type=Path, help="the training folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the checkpoint folder")
    parser.add_argument("--metrics", type=Path, required=True, help="what `evaluate` printed")
    parser.add_argument("--cost", type=Path, required=True, help="what `evaluate --cost` printed")
    parser.add_argument("--hardware", default="a CPU", help="for the card")
    parser.add_argument("--notes", type=Path, required=True, help="Markdown: limits, for the card")
    args = parser.parse_args(arguments)
    try:
        metrics, cost = (read_json(p, error=InputError) for p in (args.metrics, args.cost))
        try:
            notes = args.notes.read_text()
        except (OSError, ValueError) as e:
            raise InputError(f"cannot read what the card needs: {e}") from e
        ship(args.run, metrics, cost, args.hardware, notes, args.out)
    except GeoMagError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
