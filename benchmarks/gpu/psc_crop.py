"""PscCrop on a GPU: is it right, and how much of the device's own copy speed does it reach?

Parts of `gpu_check`. The 16 windows and the image are those of the CPU's benchmark.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.benchmarks.speed.psc_crop import MEAN_STD, SIDE, SIZE, cases
from geomag_edge.cpp_ext import psc_crop
from geomag_edge.cpp_ext.cuda_image import TOOLKIT, find_tool
from geomag_edge.cpp_ext.twin import psc_crop_numpy
from geomag_edge.errors import MissingExtraError
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.driver import CudaDriver

WINDOWS = "16 windows of 200..4000 px"
GOAL = 0.7
"""Of the device's copy bandwidth, over the bytes touched."""

COPIED_BYTES = 1 << 28
TOLERANCE = {"float32": 1e-4, "float16": 4e-3}
"""In units of the standard deviation, from the float64 twin."""

TELLING = np.array(
    [
        [0, 0, 211, 149],  # the whole image
        [-31, -62, 242, 211],  # more than it, square
        [20.25, 30.5, 84.25, 94.5],  # inside, between pixels
        [-20.5, 100.75, 60.5, 181.75],  # across two edges
        [100.125, 50.25, 101.125, 51.25],  # one pixel
        [210.5, 148.5, 215.5, 153.5],  # a last corner
        [300, 300, 400, 400],  # nowhere near
    ],
    np.float32,
)


def scene(height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    """Noise, the hardest picture for a resampler."""
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def exactness(device: Device) -> dict[str, Any]:
    """Largest difference from the numpy twin (small views) and from the CPU kernel (the 16)."""
    small, large = scene(149, 211), scene()
    worst: dict[str, float] = {}
    wrong = None
    for dtype, tolerance in TOLERANCE.items():
        twin = psc_crop_numpy(small, TELLING, MEAN_STD, 50)
        kernel = psc_crop(large, cases()[WINDOWS], MEAN_STD, SIZE)
        for name, image, boxes, expected in (
            ("twin", small, TELLING, twin),
            ("CPU kernel", large, cases()[WINDOWS], kernel),
        ):
            made = _crop(device, image, boxes, expected.shape[-1], dtype)
            error = float(np.abs(made.astype(np.float64) - expected).max())
            worst[f"{dtype}, {name}"] = error
            if not error <= tolerance:  # NaN is wrong too
                wrong = f"{dtype} is {error:.2e} off the {name}, {tolerance:.0e} is allowed"
    return {"ok": wrong is None, "wrong": wrong, "largest_error_std": worst}


def _crop(
    device: Device, image: NDArray[np.uint8], boxes: NDArray[np.float32], size: int, dtype: str
) -> NDArray[Any]:
    views = device.empty((len(boxes), 3, size, size), dtype)
    device.driver.crop(device.upload(image, "image", stays=True), boxes, MEAN_STD, views)
    return views.numpy("views")


def alone() -> None:
    """The small case only, for compute-sanitizer; exits with 1 if it is wrong."""
    device = Device(CudaDriver())
    made = _crop(device, scene(149, 211), TELLING, 50, "float32")
    expected = psc_crop_numpy(scene(149, 211), TELLING, MEAN_STD, 50)
    sys.exit(int(not np.abs(made - expected).max() <= TOLERANCE["float32"]))


def sanitized() -> dict[str, Any]:
    """`alone` in a process of its own, under compute-sanitizer's memcheck.

    Raises:
        MissingExtraError: there is no compute-sanitizer.
    """
    tool = find_tool("compute-sanitizer")
    if tool is None:
        raise MissingExtraError(
            f"compute-sanitizer is not on PATH nor in {TOOLKIT}: it comes with the CUDA toolkit"
        )
    script = f"from {__name__} import alone; alone()"
    done = subprocess.run(
        [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.stdout + done.stderr).strip().splitlines()[-20:] or ["it said nothing"]
    ok = done.returncode == 0
    return {"ok": ok, "wrong": None if ok else said[-1], "said": said}


def touched_bytes(boxes: NDArray[np.float32], item: int) -> tuple[int, int]:
    """Bytes of the image that whole-pixel boxes cover (each once), and of the views."""
    covered = np.zeros((SIDE, SIDE), bool)
    for x0, y0, x1, y1 in boxes.astype(int):
        covered[y0:y1, x0:x1] = True
    return int(np.count_nonzero(covered)) * 3, len(boxes) * 3 * SIZE * SIZE * item


def speed(device: Device, rounds: int) -> dict[str, Any]:
    """Time of the 16 windows, and the bytes they touch a second over those of a copy.

    A copy within the device reads and writes every byte, and both count. Missing the goal is
    reported and is not a wrong result.
    """
    driver, boxes = device.driver, cases()[WINDOWS]
    image = device.upload(scene(), "image", stays=True)
    source, target = (device.empty((COPIED_BYTES,), np.uint8) for _ in range(2))
    times: dict[str, list[float]] = {"copy": [], "float32": [], "float16": []}
    views = {d: device.empty((len(boxes), 3, SIZE, SIZE), d) for d in TOLERANCE}
    for turn in range(rounds + 3):
        for name in times:
            start = driver.event()
            if name == "copy":
                driver.on_device(target.pointer, source.pointer, COPIED_BYTES)
            else:
                driver.crop(image, boxes, MEAN_STD, views[name])
            end = driver.event()
            if turn >= 3:
                times[name].append(driver.elapsed_ms(start, end))
    copy_gb_s = 2 * COPIED_BYTES / median(times["copy"]) / 1e6
    report: dict[str, Any] = {"copy_gb_s": copy_gb_s, "goal_share": GOAL}
    for dtype in TOLERANCE:
        read, written = touched_bytes(boxes, np.dtype(dtype).itemsize)
        ms = median(times[dtype])
        share = (read + written) / ms / 1e6 / copy_gb_s
        report[dtype] = {
            "ms": ms, "bytes_read": read, "bytes_written": written, "share_of_copy": share,
            "goal_met": share >= GOAL,
        }  # fmt: skip
    return report


def torch_speed(rounds: int) -> dict[str, Any]:
    """The same windows by torch's antialiased resize on the same GPU, with normalisation, in ms."""
    import torch
    import torch.nn.functional as functional

    if not torch.cuda.is_available():
        raise ImportError(f"torch {torch.__version__} has no CUDA here")
    image = torch.from_numpy(scene()).cuda()
    scale = torch.from_numpy(1 / (255 * MEAN_STD[1])).cuda()[:, None, None]
    shift = torch.from_numpy(-MEAN_STD[0] / MEAN_STD[1]).cuda()[:, None, None]
    boxes = cases()[WINDOWS].astype(int).tolist()
    times = []
    for turn in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for x0, y0, x1, y1 in boxes:
            window = image[y0:y1, x0:x1].permute(2, 0, 1)[None].float()
            small = functional.interpolate(
                window, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True
            )
            small[0] * scale + shift
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end))
    return {"ms": median(times)}
