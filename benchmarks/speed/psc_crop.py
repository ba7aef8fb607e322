"""How fast PscCrop cuts views out of a large image on a CPU, and how close that is to memory.

    python -m geomag_edge.benchmarks.speed.psc_crop

What is measured: windows of a 10000 x 10000 uint8 image (300 MB) to normalised float32 views of
336 px, against what people use for it: torch's uint8 antialiased resize, OpenCV INTER_AREA and
Pillow, each followed by the same normalisation. All run in one process, interleaved, and the
median counts: other work on the machine then hits all of them alike.

What bounds it: every byte of a window is needed, and needed once. A 4000 px window is 48 MB, so
reading it takes what the machine's memory takes; the arithmetic is two multiply-adds a byte, which
wide registers do faster than memory delivers. The roofline is measured, not quoted: the same bytes
read by the same number of threads with nothing done to them. Small windows fit the caches and are
bound by arithmetic and by writing the view (1.35 MB in float32).

What did not help: prefetch hints other than the default (equal), 8 or 32 input rows a block instead
of 16 (equal or slower), non-temporal prefetch (2x slower), strips narrow enough to keep the sums in
the first cache (5 to 10 % slower: shorter runs of memory), whole vectors of pixels for the sum
across instead of one pixel a vector (equal or slower, four times the weights), threads for a single
small view (starting one costs about what the view does).

What memory leaves no room for: 20x Pillow on the 16 windows, measured 18.4x on the committed
machine. Their 145 MB take 8.2 ms to read there with nothing done to them, which is 20.6x; PscCrop,
which also writes 22 MB of views, takes 9.1 ms.

Outputs are checked against Pillow in float before anything is timed.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.benchmarks.publish import publish, table_of
from geomag_edge.cpp_ext import psc_crop
from geomag_edge.cpp_ext.native import cpu_instruction_set, cpu_library, read_window
from geomag_edge.machine import machine as hardware

SIZE = 336
SIDE = 10_000
MEAN_STD = np.array(
    [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]], np.float32
)
SCALE = 1 / (255 * MEAN_STD[1])  # normalisation as one multiply-add, the peers' best form
SHIFT = -MEAN_STD[0] / MEAN_STD[1]

GOALS = {
    ("16 windows of 200..4000 px", "torch"): 5.0,
    ("16 windows of 200..4000 px", "opencv"): 6.0,
    ("16 windows of 200..4000 px", "pillow"): 20.0,
    ("one 336 px window", "torch"): 1.5,
}
READ_GOAL = ("one 4000 px window", 0.6)
# Rows side by side and bytes prefetched: row by row as the processor likes it, and as crops read.
READERS = {"read by rows": (1, 0), "read by 16 rows": (16, 1024)}

Views = NDArray[np.float32]
Peer = Callable[[NDArray[np.float32]], Views]


def cases() -> dict[str, NDArray[np.float32]]:
    """Whole-pixel boxes by case: the peers cannot cut between pixels."""
    rng = np.random.default_rng(16)
    sides = np.geomspace(200, 4000, 16).round()
    corners = np.floor(rng.uniform(0, SIDE - sides, (2, 16)))
    many = np.stack([*corners, *(corners + sides)], axis=1)
    return {
        "16 windows of 200..4000 px": many.astype(np.float32),
        "one 336 px window": np.array([[4100, 5200, 4436, 5536]], np.float32),
        "one 4000 px window": np.array([[2100, 3200, 6100, 7200]], np.float32),
    }


def peers(image: NDArray[np.uint8], threads: int) -> dict[str, Peer]:
    """The contenders by name; those that are not installed are left out."""
    found: dict[str, Peer] = {"psc_crop": lambda boxes: ours(image, boxes, threads)}
    try:
        import torch

        torch.set_num_threads(threads)
        tensor = torch.from_numpy(image)
        scale = torch.from_numpy(SCALE)[None, :, None, None]
        shift = torch.from_numpy(SHIFT)[None, :, None, None]

        def with_torch(boxes: NDArray[np.float32]) -> Views:
            views = torch.empty(len(boxes), 3, SIZE, SIZE)
            for k, (x0, y0, x1, y1) in enumerate(boxes.astype(int).tolist()):
                window = tensor[y0:y1, x0:x1].permute(2, 0, 1)[None]  # uint8, channels last
                small = torch.nn.functional.interpolate(
                    window, size=(SIZE, SIZE), mode="bilinear", antialias=True
                )
                torch.addcmul(shift, small.float(), scale, out=views[k : k + 1])
            return views.numpy()

        found["torch"] = with_torch
    except ImportError:
        pass
    try:
        import cv2

        cv2.setNumThreads(threads)

        def with_opencv(boxes: NDArray[np.float32]) -> Views:
            views = np.empty((len(boxes), 3, SIZE, SIZE), np.float32)
            for view, (x0, y0, x1, y1) in zip(views, boxes.astype(int).tolist(), strict=True):
                small = cv2.resize(image[y0:y1, x0:x1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
                normalise(small, view)
            return views

        found["opencv"] = with_opencv
    except ImportError:
        pass
    from PIL import Image

    picture = Image.fromarray(image)

    def with_pillow(boxes: NDArray[np.float32]) -> Views:
        views = np.empty((len(boxes), 3, SIZE, SIZE), np.float32)
        for view, (x0, y0, x1, y1) in zip(views, boxes.tolist(), strict=True):
            small = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
            normalise(np.asarray(small), view)
        return views

    found["pillow"] = with_pillow
    return found


def ours(image: NDArray[np.uint8], boxes: NDArray[np.float32], threads: int) -> Views:
    """PscCrop through its public function."""
    return psc_crop(image, boxes, MEAN_STD, SIZE, threads=threads)


def normalise(small: NDArray[Any], view: Views) -> None:
    """uint8 [S, S, 3] -> float32 [3, S, S], normalised, in place."""
    values = small.astype(np.float32)
    values *= SCALE
    values += SHIFT
    view[...] = values.transpose(2, 0, 1)


def error_against_pillow(image: NDArray[np.uint8], threads: int) -> dict[str, float]:
    """Largest error from Pillow in float, in units of std; boxes between pixels included."""
    from PIL import Image

    rng = np.random.default_rng(4)
    shifted = {
        f"{name}, between pixels": boxes + rng.uniform(0, 1, boxes.shape).astype(np.float32)
        for name, boxes in cases().items()
    }
    tiny = np.array([[77.25, 88.5, 78.5, 89.125], [9.9, 9.9, 9.95, 9.97]], np.float32)
    whole = np.array([[0, 0, SIDE, SIDE]], np.float32)
    errors = {}
    for name, boxes in {**cases(), **shifted, "below a pixel": tiny, "whole image": whole}.items():
        views = psc_crop(image, boxes, MEAN_STD, SIZE, threads=threads)
        worst = 0.0
        for view, box in zip(views, boxes, strict=True):
            # Only the window and its filter's reach go through Pillow's float mode, which holds
            # a channel of it at 4 bytes a pixel.
            x0, y0, x1, y1 = (float(side) for side in box)
            left, top = max(int(x0) - 64, 0), max(int(y0) - 64, 0)
            part = image[top : int(y1) + 65, left : int(x1) + 65]
            local = (x0 - left, y0 - top, x1 - left, y1 - top)
            for channel in range(3):
                plane = Image.fromarray(part[..., channel].astype(np.float32))
                made = plane.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=local)
                exact = np.asarray(made, np.float64) / 255 - float(MEAN_STD[0, channel])
                exact /= float(MEAN_STD[1, channel])
                worst = max(worst, float(np.abs(view[channel] - exact).max()))
        errors[name] = worst
    return errors


def time_case(
    contenders: dict[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """Median and quartile times in ms of each contender, interleaved, in changing order."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # Another library's threads may still be spinning; then its own need waking.
            time.sleep(0.003)
            contenders[name]()
            start = time.perf_counter()
            contenders[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "median_ms": float(np.median(values)),
            "quarter_ms": float(np.percentile(values, 25)),
            "best_ms": min(values),
        }
        for name, values in times.items()
    }


SCRATCH_PROBE = """
import numpy as np
from pathlib import Path
from geomag_edge.cpp_ext import psc_crop

row = np.random.default_rng(2).integers(0, 256, (1, {side}, 3), dtype=np.uint8)
image = np.broadcast_to(row, ({side}, {side}, 3))
boxes = {boxes}
mean_std = [[0.5] * 3, [0.2] * 3]

def peak_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

psc_crop(image, [[5, 5, 50, 50]], mean_std, 8, threads=1)
peaks = []
for _ in range(3):
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    psc_crop(image, boxes, mean_std, 8, threads=1)
    peaks.append(peak_kib() - before)
print(max(peaks))
"""


def read_windows(
    image: NDArray[np.uint8], boxes: list[Any], threads: int, how: tuple[int, int]
) -> None:
    """Read the windows' bytes and nothing else."""
    library = cpu_library()
    assert library is not None  # the caller looked
    for box in boxes:
        read_window(library, image, box, threads, *how)


def scratch_kib() -> float | None:
    """Peak memory of one thread beyond input and output, in KiB; None off Linux.

    A fresh process whose malloc maps every block apart shows each crop's whole peak.
    """
    if not Path("/proc/self/clear_refs").exists() or cpu_library() is None:
        return None
    boxes = [*cases()["16 windows of 200..4000 px"].tolist(), [0, 0, SIDE, SIDE]]
    settings = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRATCH_PROBE.format(side=SIDE, boxes=boxes)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def machine(threads: int) -> dict[str, Any]:
    """What ran this: processor, cores, and the versions of everything compared."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for name, module in (("torch", "torch"), ("opencv", "cv2"), ("pillow", "PIL")):
        if module in sys.modules:
            versions[name] = sys.modules[module].__version__
    return {
        "cpu": hardware()["cpu"],
        "cores": os.cpu_count(),
        "instruction_set": cpu_instruction_set(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Check, then time every case."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    errors = error_against_pillow(image, threads)
    worst = max(errors.values())
    if worst > 1e-4:
        sys.exit(f"views differ from Pillow by {worst:.1e} std; nothing was timed")
    library = cpu_library()
    contenders = peers(image, threads)
    report: dict[str, Any] = {
        "what": f"windows of a {SIDE} x {SIDE} uint8 image to normalised float32 {SIZE} px views",
        "command": "python -m geomag_edge.benchmarks.speed.psc_crop",
        "machine": machine(threads),
        "rounds": rounds,
        "load_before": round(os.getloadavg()[0], 2),
        "error_std": errors,
        "scratch_kib_a_thread": scratch_kib(),
        "cases": {},
    }
    for name, boxes in cases().items():
        runs: dict[str, Callable[[], object]] = {
            peer: partial(run, boxes) for peer, run in contenders.items()
        }
        n_bytes = int(3 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum())
        if library is not None:
            whole = [tuple(box) for box in boxes.astype(int).tolist()]
            for reader, how in READERS.items():
                runs[reader] = partial(read_windows, image, whole, threads, how)
        times = time_case(runs, rounds)
        base = times["psc_crop"]["median_ms"]
        report["cases"][name] = {
            "window_bytes": n_bytes,
            "times": times,
            "psc_crop_gb_per_s": n_bytes / base / 1e6,
            "speedup": {peer: row["median_ms"] / base for peer, row in times.items()},
        }
        print(f"{name}: {base:.3f} ms", file=sys.stderr)
    report["load_after"] = round(os.getloadavg()[0], 2)
    report["goals"] = goals(report)
    return report


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with what was measured."""
    rows = []
    for (case, peer), wanted in GOALS.items():
        measured = report["cases"][case]["speedup"].get(peer)
        rows.append({"case": case, "against": peer, "goal": wanted, "measured": measured})
    case, wanted = READ_GOAL
    speedups = report["cases"][case]["speedup"]
    # The faster reader is the machine's bandwidth.
    share = min((speedups[reader] for reader in READERS if reader in speedups), default=None)
    rows.append({"case": case, "against": "read bandwidth", "goal": wanted, "measured": share})
    rows.append(
        {"case": "exactness (std)", "goal": 1e-4, "measured": max(report["error_std"].values())}
    )
    rows.append(
        {"case": "scratch (KiB a thread)", "goal": 1024, "measured": report["scratch_kib_a_thread"]}
    )
    return rows


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    where = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    said = (
        f"{report['what'].capitalize()}, {where['threads']} threads, {where['cpu']} "
        f"({where['cores']} cores, {where['instruction_set']}), {where['system']}; {versions}. "
        f"Medians of {report['rounds']} interleaved rounds; load average "
        f"{report['load_before']} before, {report['load_after']} after."
    )
    cases = (
        (case, peer, f"{row['median_ms']:.3f}", f"{row['best_ms']:.3f}",
         f"{entry['speedup'][peer]:.2f}x")
        for case, entry in report["cases"].items()
        for peer, row in entry["times"].items()
    )  # fmt: skip
    goals = (
        (row["case"], row.get("against", ""), f"{row['goal']:g}",
         "-" if row["measured"] is None else f"{row['measured']:.3g}")
        for row in report["goals"]
    )  # fmt: skip
    parts = (
        "# PscCrop on the CPU",
        said,
        f"    {report['command']}",
        table_of("case | contender | median ms | best ms | PscCrop is faster by", cases),
        table_of("goal | against | at least (errors, memory: at most) | measured", goals),
        "The `read` rows read the same bytes with the same threads and do nothing with them: the "
        "roofline, of which the faster one counts. At 0.6x, PscCrop runs at 60 % of it.",
    )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Parse, measure, write `psc_crop.json` and `psc_crop.md`, print one JSON line."""
    parser = argparse.ArgumentParser(description="Benchmark PscCrop on this CPU.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("benchmarks/results"), help="folder of the report"
    )
    arguments = parser.parse_args()
    report = measure(arguments.threads, arguments.rounds)
    publish(report, as_markdown(report), arguments.output, "psc_crop")


if __name__ == "__main__":
    main()
