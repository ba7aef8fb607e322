"""How much memory an export takes, as a multiple of the checkpoint's weights.

    python -m geomag_edge.benchmarks.speed.export_memory [--preset half-b]

What is measured: the peak resident memory (ru_maxrss, mapped weight files included) of one
`geomag-edge export` process, parity in PyTorch and ONNX Runtime included, over the bytes of the
checkpoint's safetensors. Exporters commonly need 3-4x and are killed without a word.

What bounds it: the weights are in memory once, first as PyTorch's mapped file, then, after each
part has been released, as ONNX Runtime's packed copies; the rest is the interpreter with PyTorch
(about 0.4 GB) and the activations of the largest sample. The last line of stdout is one JSON.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from geomag_edge.benchmarks.arguments import parser_of
from geomag_edge.benchmarks.machine import peak_bytes_of
from geomag_edge.benchmarks.publish import publish


def main() -> None:
    """Makes a seeded checkpoint, exports it in a process of its own, writes the result."""
    args = parser_of(__doc__, preset="half-b").parse_args()
    command = [sys.executable, "-m", "geomag_edge"]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "checkpoint", Path(folder) / "bundle"
        made = [*command, "compose", "--preset", args.preset, "-o", str(checkpoint)]
        subprocess.run(made, check=True, stdout=sys.stderr)
        weights = sum(p.stat().st_size for p in checkpoint.glob("*.safetensors"))
        # Linux starts a child's peak at its parent's, which here is small; compose's is not ours.
        export = [*command, "export", str(checkpoint), "-o", str(bundle)]
        peak = peak_bytes_of(export)
    report = {
        "preset": args.preset,
        "command": f"python -m geomag_edge.benchmarks.speed.export_memory --preset {args.preset}",
        "weights_bytes": weights,
        "peak_bytes": peak,
        "ratio": peak / weights,
        "goal": 1.5,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }
    publish(report, None, args.results, f"export_memory_{args.preset}")


if __name__ == "__main__":
    main()
