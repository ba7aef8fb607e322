"""Surface texture: periodic noise banks, made once per process, read at the pixel's position.

A bank read at (x mod period, y mod period) gives every window the same texture without storing
anything for a scene. Slow variation reads the same bank at a coarser step, so that the sum does
not visibly repeat.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

PERIOD = 1024
LARGEST = 640
"""The banks that every tile reads repeat this far beyond their period: a window is a view."""

# Rows follow the material ids of `catalog.py`; columns: grain, patches, broad patches, relief.
AMPLITUDES = np.array(
    [
        (0.015, 0.010, 0.00, 0.00),  # paint
        (0.030, 0.045, 0.04, 0.00),  # asphalt
        (0.030, 0.050, 0.05, 0.00),  # concrete
        (0.060, 0.090, 0.10, 0.02),  # grass
        (0.040, 0.060, 0.08, 0.02),  # soil
        (0.100, 0.080, 0.08, 0.36),  # forest
        (0.018, 0.015, 0.06, 0.02),  # water
        (0.030, 0.030, 0.02, 0.00),  # roof
        (0.080, 0.080, 0.00, 0.12),  # canopy
        (0.070, 0.080, 0.08, 0.00),  # gravel
    ],
    dtype=np.float32,
)
HUE = np.array([0, 0.01, 0.01, 0.035, 0.03, 0.04, 0.015, 0.01, 0.04, 0.02], dtype=np.float32)
"""How far the patches pull red up and blue down, by material."""


def _shaped(seed: int, gain: NDArray) -> Floats:
    """White noise f32[P,P] filtered by `gain` over the FFT's frequencies; mean 0, sigma 1."""
    white = np.random.Generator(np.random.PCG64(seed)).standard_normal((PERIOD, PERIOD))
    out = np.fft.ifft2(np.fft.fft2(white) * gain).real
    return ((out - out.mean()) / out.std()).astype(np.float32)


def _repeated(bank: Floats) -> Floats:
    return np.pad(bank, (0, LARGEST), mode="wrap")


def _frequency() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    fy, fx = np.meshgrid(np.fft.fftfreq(PERIOD), np.fft.fftfreq(PERIOD), indexing="ij")
    return fx, fy, np.hypot(fx, fy)


@lru_cache(maxsize=1)
def grain() -> Floats:
    """White noise f32[P+L,P+L]; also the sensor's noise."""
    return _repeated(_shaped(1, np.ones((PERIOD, PERIOD))))


@lru_cache(maxsize=1)
def patches() -> Floats:
    """Fractal noise f32[P+L,P+L], the look of worn or grown surfaces."""
    _, _, f = _frequency()
    gain = 1.0 / np.maximum(f, 4.0 / PERIOD) ** 1.3
    gain[0, 0] = 0.0
    return _repeated(np.clip(_shaped(2, gain), -3, 3))


@lru_cache(maxsize=8)
def relief(gsd_cm: int) -> tuple[Floats, Floats, Floats]:
    """Height f32[P,P] of bumps the size of tree crowns, about 7 m, and its slopes in x and y."""
    fx, fy, f = _frequency()
    centre = min(0.3, gsd_cm / 700.0)
    # Crowns, and the leaves on them: a steep rise to the crown's size, a slow fall beyond it.
    band = np.exp(-((centre / np.maximum(f, 1e-4)) ** 2)) / np.maximum(f / centre, 1e-4) ** 2.2
    return _shaped(3, band), _shaped(3, band * 2j * np.pi * fx), _shaped(3, band * 2j * np.pi * fy)


def window(bank: Floats, x: int, y: int, width: int, height: int) -> Floats:
    """The bank at pixels [y, y+height) x [x, x+width), periodic; a view if the bank reaches."""
    x, y = x % PERIOD, y % PERIOD
    if max(x + width, y + height) <= bank.shape[0]:
        return bank[y : y + height, x : x + width]
    rows, cols = np.arange(y, y + height) % PERIOD, np.arange(x, x + width) % PERIOD
    return bank[rows[:, None], cols]


def broad(bank: Floats, x: int, y: int, width: int, height: int, step: int) -> Floats:
    """The bank stretched `step` times, at the same pixels."""
    x0, y0 = x // step - 1, y // step - 1
    x1, y1 = (x + width) // step + 3, (y + height) // step + 3
    coarse = Image.fromarray(np.ascontiguousarray(window(bank, x0, y0, x1 - x0, y1 - y0)))
    left, top = x / step - x0, y / step - y0
    box = (left, top, left + width / step, top + height / step)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR, box=box))
