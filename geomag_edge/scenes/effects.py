"""From a drawing to what the sensor records: texture, shadow, haze, colour cast, blur, noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from . import texture
from .drawing import Drawing
from .spec import SceneSpec

HAZE_RGB = (196.0, 204.0, 214.0)
SKY_TINT = (0.94, 1.0, 1.12)
"""Shadows are lit by the sky alone, so they turn blue."""


def _mix(seed: int, x: int, y: int) -> int:
    """A 64-bit hash of seed and position (splitmix finaliser)."""
    z = (seed * 0x9E3779B97F4A7C15 + x * 0xBF58476D1CE4E5B9 + y * 0x94D049BB133111EB) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def develop(spec: SceneSpec, drawing: Drawing, halo: int, sub: int) -> NDArray[np.uint8]:
    """Image u8[h,w,3] of a drawing, its halo cut off."""
    look = spec.look
    height, width = (n // sub for n in drawing.index.shape)
    lut = np.zeros((len(drawing.rgb), 4), np.uint8)
    lut[:, :3] = drawing.rgb
    fine = lut.view(np.uint32)[:, 0].take(drawing.index)
    colours = Image.frombuffer("RGBX", (sub * width, sub * height), fine, "raw", "RGBX", 0, 1)
    base = np.asarray(colours.reduce(sub))
    lit = 1.0 - np.asarray(drawing.shadow.reduce(sub)) * np.float32(look.shadow_strength / 255)

    light, hue = _texture(spec, drawing, width, height, sub)
    light *= lit
    haze = np.float32(look.haze)
    out = np.empty((height, width, 3), np.uint8)
    for band in range(3):
        plane = base[..., band] * light
        if band != 1:
            plane *= 1.0 + hue if band == 0 else 1.0 - hue
        # In shadow the sky's tint counts, in the sun it does not.
        tint = np.float32(SKY_TINT[band])
        if tint != 1.0:
            plane *= tint + (1 - tint) * lit
        gain = look.cast[band] * look.contrast * (1 - haze)
        plane *= np.float32(gain)
        plane += np.float32(haze * HAZE_RGB[band] + 110 * (1 - look.contrast))
        np.clip(plane, 0, 255, out=plane)
        out[..., band] = plane
    blurred = np.asarray(Image.fromarray(out).filter(_blur(look.blur_px)))
    inner = blurred[halo : height - halo, halo : width - halo]
    return _noise(inner, spec, drawing.x, drawing.y)


def _blur(sigma_px: float) -> ImageFilter.Kernel:
    """A Gaussian of 3 x 3 taps, enough below 0.9 px; several times faster than Pillow's own."""
    side = np.exp(-0.5 / max(sigma_px, 0.05) ** 2)
    taps = np.outer((side, 1.0, side), (side, 1.0, side))
    return ImageFilter.Kernel((3, 3), taps.ravel().tolist(), float(taps.sum()))


def _texture(
    spec: SceneSpec, drawing: Drawing, width: int, height: int, sub: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Brightness (about 1) and hue shift (about 0) f32[h,w] by material and position."""
    where = _mix(spec.seed, 7, 7)
    x, y = drawing.x + where % 4096, drawing.y + (where >> 16) % 4096
    material = np.asarray(drawing.material, np.int32).take(drawing.index[::sub, ::sub])
    patches = texture.window(texture.patches(), x, y, width, height)
    wide = texture.broad(texture.patches(), x, y, width, height, 6)
    gains = texture.AMPLITUDES
    light = gains[:, 0].take(material) * texture.window(texture.grain(), x, y, width, height)
    light += gains[:, 1].take(material) * patches
    light += gains[:, 2].take(material) * wide
    rough = gains[:, 3].take(material)
    if rough.any():
        height_bank, slope_x, slope_y = texture.relief(max(5, round(spec.gsd_m * 100)))
        sun = spec.look.sun_azimuth
        # Slopes that face the sun are bright, and so are tops; gaps between crowns are dark.
        bumps = np.float32(0.75 * np.cos(sun)) * texture.window(slope_x, x, y, width, height)
        bumps += np.float32(0.75 * np.sin(sun)) * texture.window(slope_y, x, y, width, height)
        bumps += np.float32(0.6) * texture.window(height_bank, x, y, width, height)
        bumps *= rough
        light += bumps
    light += 1.0
    np.clip(light, 0.3, 1.8, out=light)
    return light, texture.HUE.take(material) * wide


def _noise(image: NDArray[np.uint8], spec: SceneSpec, x: int, y: int) -> NDArray[np.uint8]:
    """Adds sensor noise that depends only on the scene's seed and the tile's position."""
    height, width = image.shape[:2]
    luma = np.float32(0.8 * spec.look.noise)
    chroma = np.float32(0.5 * spec.look.noise)
    out = np.empty_like(image)
    spots = [_mix(spec.seed + 1 + band, x, y) for band in range(4)]
    common = luma * texture.window(
        texture.grain(), spots[3] % 1024, (spots[3] >> 20) % 1024, width, height
    )
    common += 0.5
    for band in range(3):
        spot = spots[band]
        plane = texture.window(texture.grain(), spot % 1024, (spot >> 20) % 1024, width, height)
        plane = plane * chroma
        plane += common
        plane += image[..., band]
        np.clip(plane, 0, 255, out=plane)
        out[..., band] = plane
    return out
