"""`python -m geomag_edge.model.train`: renders a pool of scenes and trains on it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from geomag_edge.errors import GeoMagError, InputError


def main(arguments: list[str] | None = None) -> int:
    """Parses, calls, prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m geomag_edge.model.train",
        description="Train GeoMag on rendered scenes. A stopped run goes on with --resume.",
    )
    parser.add_argument("folder", type=Path, help="the run's folder (log, state, checkpoint)")
    parser.add_argument("--config", type=Path, help="JSON; default: the one of the nano checkpoint")
    parser.add_argument("--pool", type=Path, help="folder of rendered scenes; default FOLDER/pool")
    parser.add_argument("--render-only", action="store_true", help="fill the pool and stop")
    parser.add_argument("--no-render", action="store_true", help="train on what the pool holds")
    parser.add_argument("--workers", type=int, default=1, help="processes that render (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads that train (1)")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to train; auto takes a GPU if there is one (auto)",
    )
    parser.add_argument("--until", type=int, help="stop after this many steps in all")
    parser.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=Path("."),
        metavar="CHECKPOINT",
        help="go on from FOLDER's last save; with CHECKPOINT, begin there in a new FOLDER",
    )
    args = parser.parse_args(arguments)
    try:
        _train(args)
    except GeoMagError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on with --resume", file=sys.stderr)
        return 130
    return 0


def _train(args: argparse.Namespace) -> None:
    import torch

    from geomag_edge.model.train.config import TrainConfig
    from geomag_edge.model.train.loop import Place, Trainer
    from geomag_edge.model.train.samples.pool import fill_pool

    if args.threads < 1:
        raise InputError(f"--threads {args.threads}: give at least 1")
    kept = args.folder / "state"
    if args.resume != Path(".") and kept.exists() and not args.render_only:
        raise InputError(
            f"{args.folder} holds a run: go on with it by --resume alone, or name another folder"
        )
    config_path = args.config or Path(__file__).parent / "nano.json"
    config = TrainConfig.load(config_path)
    pool = args.pool or args.folder / "pool"
    if not args.no_render:
        fill_pool(pool, config.pool, args.workers)
    if args.render_only:
        return
    torch.set_num_threads(args.threads)
    place = Place.choose(args.device)
    if args.resume is None:
        run = Trainer.fresh(config, args.folder, pool, place)
    elif args.resume == Path("."):
        run = Trainer.fresh(config, args.folder, pool, place)
        run.restore()
    else:
        run = Trainer.from_checkpoint(config, args.folder, pool, args.resume, place)
    run.run(args.until)
    print(run.folder / "checkpoint")


if __name__ == "__main__":
    sys.exit(main())
