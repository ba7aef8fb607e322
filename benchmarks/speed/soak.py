"""Thousands of queries from several threads at once: the serial answers, and nothing that grows.

    python -m geomag_edge.benchmarks.speed.soak --bundle BUNDLE [--queries 10000] [--threads 4]

One pipeline answers all. Questions are drawn at random from a pool: rendered scenes of many sizes,
given as GeoTIFF or as an array, with prompts of each level, small budgets and forced starts of the
answer, and images that no answer can come of, which must be refused each time. Every answer (words,
budget, boxes, crops and each pixel of each mask) is compared with the one that the same question
got in one thread before. Resident memory, open files and threads are taken every few queries;
growth is the median of the last tenth over that of the tenth that follows the warm-up, the first
fifth.

The last line of stdout is one JSON; the exit code is 1 where an answer differs or memory grows.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import described, machine, resident_mb
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.errors import GeoMagError
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.scenes import make_questions, render_scene, write_scene

GOAL = 0.01
SEED, SIZES_PX, BUDGETS, PREFIXES = 70_000_000, (64, 512), ("1", "2", "4", "2+1x2"), ("", "[SEG]")
UNUSABLE = 0.05
"""Share of the pool that has no usable image."""
SAMPLES = 200
"""How often memory is looked at, at most."""


@dataclass(frozen=True)
class Asked:
    """One question of the pool."""

    image: Any
    prompt: str
    budget: str
    words: int
    prefix: str


def main() -> None:
    """Parses, asks, writes the result, prints the table and one JSON line."""
    parser = parser_of(
        __doc__, bundle=REQUIRED, engine="ort-cpu", precision=None, queries=10_000, name="nano"
    )
    parser.add_argument("--threads", type=int, default=4, help="that ask at once")
    parser.add_argument("--pool", type=int, default=400, help="different questions")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", action="store_true", help="only the JSON; no files")
    args = parser.parse_args()
    host = machine(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        Pipeline.load(args.bundle, args.engine, args.precision, 1) as pipe,
    ):
        pool = questions(Path(folder), args.pool, args.seed)
        report = {
            "command": f"python -m geomag_edge.benchmarks.speed.soak --bundle {args.name} "
            f"--queries {args.queries} --threads {args.threads} --pool {args.pool}",
            "machine": host,
            "engine": args.engine,
            "precision": pipe.chain.engine.precision,
            "pool": len(pool),
            "asking_threads": args.threads,
            **measure(pipe, pool, args.queries, args.threads, args.seed),
        }
    if args.json:
        print(json.dumps(report))
    else:
        publish(report, as_markdown(report), args.results, f"soak_{args.name}")
    sys.exit(0 if report["good"] else 1)


def questions(folder: Path, count: int, seed: int) -> list[Asked]:
    """The pool: scenes of random sizes, in files and in memory, and what is no image at all."""
    rng = random.Random(f"soak:{seed}")
    asked: list[Asked] = []
    while len(asked) < count * (1 - UNUSABLE):
        scene = render_scene(seed + len(asked), rng.randint(*SIZES_PX))
        path = write_scene(scene, folder / f"{len(asked)}.tif")
        image: Any = path if rng.random() < 0.7 else np.array(scene.image)
        for question in make_questions(scene, 1, 1):
            settings = rng.choice(BUDGETS), rng.randint(1, 8), rng.choice(PREFIXES)
            asked.append(Asked(image, question.prompt, *settings))
    cut = folder / "cut.tif"
    cut.write_bytes((folder / "0.tif").read_bytes()[:300])
    (folder / "text.png").write_text("no picture")
    empty = np.full((64, 64), np.nan, np.float32)
    unusable = [cut, folder / "text.png", folder / "missing.tif", folder, empty, empty[:0], None]
    while len(asked) < count:
        asked.append(Asked(rng.choice(unusable), "how many ships are there?", "1", 1, ""))
    return asked


def measure(
    pipe: Pipeline, pool: Sequence[Asked], queries: int, threads: int, seed: int
) -> dict[str, Any]:
    """Each question in one thread, then `queries` of them at random in several."""
    serial = tqdm(pool, "serial", unit="query", disable=None)
    expected = [answer(pipe, asked) for asked in serial]
    rng = random.Random(f"order:{seed}")
    order = [rng.randrange(len(pool)) for _ in range(queries)]
    every, done, lock = max(1, queries // SAMPLES), 0, threading.Lock()
    samples: list[dict[str, float]] = []
    differ: Counter[int] = Counter()
    started = time.perf_counter()
    with (
        tqdm(total=queries, desc="soak", unit="query", disable=None) as bar,
        ThreadPoolExecutor(threads) as workers,
    ):

        def ask(i: int) -> None:
            nonlocal done
            same = answer(pipe, pool[i]) == expected[i]
            with lock:
                bar.update()
                done += 1
                if not same:
                    differ[i] += 1
                if done % every == 0:
                    samples.append(state())

        list(workers.map(ask, order))
    seconds = time.perf_counter() - started
    usage = {name: growth([s[name] for s in samples]) for name in samples[0]}
    return {
        "queries": queries,
        "seconds": round(seconds, 1),
        "refused": sum(expected[i].startswith("refused") for i in order),
        "different": sum(differ.values()),
        "differ": [pool[i].prompt for i in differ][:10],
        "usage": usage,
        "samples": samples,
        "good": not differ and all(use["growth"] <= GOAL for use in usage.values()),
    }


def answer(pipe: Pipeline, asked: Asked) -> str:
    """All that an answer holds, or why there is none, as one text to compare."""
    try:
        found = pipe(asked.image, asked.prompt, asked.budget, asked.words, asked.prefix)
    except GeoMagError as e:
        return f"refused {type(e).__name__}: {e}"
    arrays = found.crop_boxes, found.relevance, *(np.asarray(mask) for mask in found.masks)
    pixels = sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
    words = found.text, found.granularity, str(found.budget), found.boxes, found.notes
    return f"{words} {pixels}"


def state() -> dict[str, float]:
    """What could grow: memory in 10^6 bytes, open files, threads of the system's."""
    found = {"resident_mb": resident_mb() or 0.0, "python_threads": float(threading.active_count())}
    for name, folder in (("files", "/proc/self/fd"), ("threads", "/proc/self/task")):
        if os.path.isdir(folder):
            found[name] = float(len(os.listdir(folder)))
    return found


def growth(taken: Sequence[float]) -> dict[str, float]:
    """The last tenth of the samples over the tenth after the first fifth."""
    tenth = max(1, len(taken) // 10)
    first, last = median(taken[2 * tenth : 3 * tenth] or taken[:1]), median(taken[-tenth:])
    return {"first": first, "last": last, "growth": round(last / first - 1, 5) if first else 0.0}


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table."""
    said = (
        f"{described(report['machine'])}. {report['queries']} queries out of a pool of "
        f"{report['pool']}, from {report['asking_threads']} threads at once on one pipeline, "
        f"{report['engine']} {report['precision']}, {report['seconds']:.0f} s. "
        f"{report['refused']} had no usable image and were refused. Answers that differ from the "
        f"serial ones: {report['different']} (goal 0)."
    )
    rows = (
        (name.replace("_", " "), f"{use['first']:g}", f"{use['last']:g}", f"{use['growth']:.2%}",
         f"{GOAL:.0%}")
        for name, use in report["usage"].items()
    )  # fmt: skip
    table = table_of("| after the warm-up | at the end | growth | goal", rows)
    return page_of("Many queries, several threads", report, said, table)


if __name__ == "__main__":
    main()
