"""Looks at images whose bytes were changed, a hundred a second: what a decoder dies or hangs of.

    python -m tests.fuzz.looks --minutes 10 --output benchmarks/results/looks.md

Each look opens, reads and crops as a question does, and places a mask where the file says it lies.
A child process does the looking, so that a case which ends it, or takes longer than `HANG_S`, is
known by its number; `--only N` runs one again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

HANG_S = 20
LEAST_S = 2.0
"""Cases that take longer are told with their seconds."""
NUMBERS = (0, 1, 2, 3, 10, 11, 12, 127, 255, 256, 1023, 65535, 2**31 - 1, 2**31, 2**32 - 1)
MOST_MB = 1000
ENDINGS = ("tif", "png", "vrt", "nc")


def main() -> int:
    """Runs cases in children until the time is over; 1 where any broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, in this process")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first is not None or args.only is not None:
        look(args.seed, args.only if args.first is None else args.first, args.until)
        return 0
    until, first, read, broken, peak = time.time() + 60 * args.minutes, 0, 0, [], 0.0
    while time.time() < until:
        words = ["--seed", str(args.seed), "--first", str(first), "--until", str(until)]
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.looks", *words], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            said = json.loads(line)
            first, read, peak = said["case"] + 1, read + said["read"], max(peak, said["mb"])
        how = child.wait()
        if how:
            broken.append((first, signal.Signals(-how).name if how < 0 else f"exit code {how}"))
            print(f"case {first}: {broken[-1][1]}", flush=True)
            first += 1
    report = {"seed": args.seed, "minutes": args.minutes, "cases": first, "read": read,
              "broken": broken, "most_mb": round(peak)}  # fmt: skip
    print(json.dumps(report))
    if args.output:
        args.output.write_text(as_markdown(report))
    return 1 if broken or peak > MOST_MB else 0


def look(seed: int, first: int, until: float | None) -> None:
    """Looks at one case after another, and says its number when it is over; a case that takes
    too long ends the process."""
    from tests.runtime.images.test_any_image import BASES, look_at, placed_in

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="look-") as folder:
        Path(folder, "a.tif").write_bytes(BASES["tif"])
        case = first
        while until is None or time.time() < until:
            rng = random.Random(f"{seed} {case}")
            kind = rng.choice(sorted(BASES))
            path = Path(folder, f"b{case}.{rng.choice(ENDINGS)}")
            path.write_bytes(harmed(rng, BASES[kind]))
            signal.alarm(HANG_S)
            start = time.perf_counter()
            views = look_at(path)
            if views is not None:
                placed_in(georef(path))
            signal.alarm(0)
            path.unlink()
            if (seconds := time.perf_counter() - start) > LEAST_S:
                print(f"case {case} ({kind}): {seconds:.0f} s", file=sys.stderr)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"case": case, "read": views is not None, "mb": peak}), flush=True)
            if until is None:
                return
            case += 1


def georef(path: Path) -> Any:
    """What an image says of its place."""
    from geomag_edge.runtime.images.scene import Scene

    with Scene.open(str(path)) as scene:
        return scene.georef


def harmed(rng: random.Random, whole: bytes) -> bytes:
    """A file with some of its bytes changed, more often those at its beginning."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 5)):
        at = rng.randint(0, min(len(data) - 1, rng.choice((64, 256, 1024, 10**6))))
        how = rng.choice(("number", "number", "byte", "byte", "bytes", "copy", "cut"))
        if how == "number":
            size = rng.choice((1, 2, 4, 4, 8))
            number = rng.choice(NUMBERS) % 2 ** (8 * size)
            data[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif how == "byte":
            data[at] = rng.randrange(256)
        elif how == "bytes":
            data[at : at + rng.randint(0, 4)] = rng.randbytes(rng.randint(1, 4))
        elif how == "copy":
            other, size = rng.randrange(len(data)), rng.randint(1, 64)
            data[at : at + size] = data[other : other + size]
        elif rng.random() < 0.3:
            del data[at + 1 :]
    return bytes(data)


def as_markdown(report: dict[str, Any]) -> str:
    """A page for benchmarks/results."""
    from geomag_edge.benchmarks.machine import described, machine

    broken = "; ".join(f"case {case}: {how}" for case, how in report["broken"]) or "none"
    return (
        "# Looks at harmed images\n\n"
        f"`python -m tests.fuzz.looks --minutes {report['minutes']:g} --seed {report['seed']}`\n\n"
        f"{described(machine(1))}.\n\n"
        f"{report['cases']:,} images, {report['read']:,} of them read, the others refused in one "
        f"line. Ended the process or took longer than {HANG_S} s: {broken}. Most memory "
        f"{report['most_mb']:,} MB (the goal is {MOST_MB:,}).\n"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
