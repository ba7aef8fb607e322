"""How much memory and time a calibration takes.

    python -m geomag_edge.benchmarks.speed.calibration_memory [--preset base] [--questions 128]

What is measured: the peak resident memory (ru_maxrss) and the wall time of one `geomag-edge
calibrate` process on rendered scenes. The weights are random and seeded: what a tensor's histogram
holds does not depend on what a model has learnt.

What bounds it: ONNX Runtime's packed weights of the graph that runs, the activations of its largest
call with every observed tensor as an output, and histograms of fixed size; questions come and go
one by one, and only their prompts and answers are kept. The last line of stdout is one JSON.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from geomag_edge.benchmarks.arguments import parser_of
from geomag_edge.benchmarks.machine import machine, peak_bytes_of
from geomag_edge.benchmarks.publish import publish

QUESTIONS_A_SCENE = 12
GOAL_BYTES = 4_000_000_000


def main() -> None:
    """Makes and exports a seeded checkpoint, calibrates it in a process of its own."""
    parser = parser_of(__doc__, preset="base", threads=1)
    parser.add_argument("--questions", type=int, default=128)
    args = parser.parse_args()
    host = machine(args.threads)
    command = [sys.executable, "-m", "geomag_edge"]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "checkpoint", Path(folder) / "bundle"
        made = ["compose", "--preset", args.preset, "-o", str(checkpoint)]
        exported = ["export", str(checkpoint), "-o", str(bundle)]
        for step in (made, exported):
            subprocess.run([*command, *step], check=True, stdout=sys.stderr)
        scenes = -(-args.questions // QUESTIONS_A_SCENE) + 1
        start = time.perf_counter()
        peak = peak_bytes_of(
            [*command, "calibrate", str(bundle), "--data", f"scenes:1:{scenes}",
             "--count", str(args.questions), "--threads", str(args.threads)]
        )  # fmt: skip
        seconds = time.perf_counter() - start
    report = {
        "command": "python -m geomag_edge.benchmarks.speed.calibration_memory "
        f"--preset {args.preset} --questions {args.questions} --threads {args.threads}",
        "machine": host,
        "preset": args.preset,
        "questions": args.questions,
        "peak_bytes": peak,
        "seconds": round(seconds, 1),
        "goal_bytes": GOAL_BYTES,
    }
    publish(report, None, args.results, f"calibration_memory_{args.preset}")


if __name__ == "__main__":
    main()
