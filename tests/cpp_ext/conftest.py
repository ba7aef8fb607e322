"""A scene, CLIP's normalisation, and Pillow as the oracle of every PscCrop test."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import geomag_edge.cpp_ext

MEAN_STD = np.array([[0.481, 0.458, 0.408], [0.269, 0.261, 0.276]], np.float32)

# Coordinates on a grid of 1/64 px survive a shift by whole pixels exactly in float32.
GRID = 64


def pillow_resize(plane, box, size):
    """One float plane [H, W] through Pillow's own resampler: float64 [S, S]."""
    x0, y0, x1, y1 = (float(side) for side in box)
    picture = Image.fromarray(plane.astype(np.float32))
    resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    return np.asarray(resized, np.float64)


def pillow_view(image, box, size):
    """The view that PscCrop must give, from Pillow alone: float64 [3, S, S].

    A box that sticks out is cut from a zero-padded image and divided by the same cut of a padded
    plane of ones, which is what taps clipped to the image and renormalised mean.
    """
    height, width, _ = image.shape
    box = np.asarray(box, np.float32)
    reach = np.ceil(max((box[2] - box[0]) / size, (box[3] - box[1]) / size, 1)) + 1
    outside = max(-box[0], -box[1], box[2] - width, box[3] - height, 0)
    margin = int(np.ceil(outside + reach)) if outside > 0 else 0
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    ones = np.pad(np.ones((height, width)), margin)
    share = pillow_resize(ones, box + margin, size)
    centres = (np.arange(size) + 0.5) / size
    x = box[0] + centres * float(box[2] - box[0])
    y = box[1] + centres * float(box[3] - box[1])
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    view = np.zeros((3, size, size))
    for channel in range(3):
        mixed = pillow_resize(padded[..., channel], box + margin, size)
        unit = np.divide(mixed, share, out=np.zeros_like(mixed), where=inside) / 255
        normal = (unit - MEAN_STD[0, channel]) / MEAN_STD[1, channel]
        view[channel] = np.where(inside, normal, 0.0)
    return view


@pytest.fixture(scope="session")
def mean_std():
    return MEAN_STD


@pytest.fixture(scope="session")
def scene():
    """Noise, the hardest picture for a resampler: uint8 [149, 211, 3]."""
    return np.random.default_rng(7).integers(0, 256, (149, 211, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def from_pillow():
    """Views of many boxes from Pillow: (image, boxes, size) -> float64 [K, 3, S, S]."""

    def views(image, boxes, size):
        made = [pillow_view(image, box, size) for box in boxes]
        return np.stack(made) if made else np.zeros((0, 3, size, size))

    return views


@pytest.fixture(scope="session")
def telling_boxes():
    """Boxes in every position that matters on the 149 x 211 scene: float32 [K, 4]."""
    return np.array(
        [
            [0, 0, 211, 149],  # the whole image
            [-31, -62, 242, 211],  # more than it, square: the padded global view
            [20.25, 30.5, 84.25, 94.5],  # inside, one to one, between pixels
            [-20.5, 100.75, 60.5, 181.75],  # across two edges
            [100.125, 50.25, 101.125, 51.25],  # one pixel
            [100.375, 50.5, 100.40625, 50.5625],  # far below one pixel
            [210.5, 148.5, 215.5, 153.5],  # a last corner
            [-1e6, -1e6, 1e6, 1e6],  # huge
            [300, 300, 400, 400],  # nowhere near
        ],
        np.float32,
    )


@pytest.fixture(scope="session")
def emulation(tmp_path_factory):
    """The CUDA kernel's body as a C function: its arguments, the number of boxes after `boxes`,
    and at the end whether to write float16.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    target = tmp_path_factory.mktemp("emulation") / "emulate.so"
    source = Path(__file__).with_name("emulate_block.cpp")
    headers = Path(geomag_edge.cpp_ext.__file__).parent / "csrc"
    flags = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", f"-I{headers}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
    emulate = ctypes.CDLL(str(target)).emulate
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    emulate.argtypes = [
        *(pointer, i64, i64, i64, i64, i64),
        *(pointer, i64, pointer, i64, i64, pointer, ctypes.c_int),
    ]
    return emulate
