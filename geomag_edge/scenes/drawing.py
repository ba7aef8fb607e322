"""What is drawn of a scene before it is developed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass
class Drawing:
    """A drawn rectangle of the scene, before colour and texture."""

    x: int  # top left pixel
    y: int
    index: NDArray[np.int32]  # [SUB*h, SUB*w] part numbers; 0 is bare ground
    shadow: Image.Image  # L, same shape
    rgb: list[tuple[int, int, int]]  # by part number
    material: list[int]
    owner: list[int]  # object id by part number
