"""One image as the encoder sees it: views are encoded once, whatever is asked of them."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from geomag_edge.runtime.chain.chain import F32, Chain, Stopwatch, Views
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.views import global_box, useful_levels
from geomag_edge.views_on_data import data_view


class Viewer:
    """An image and the views of it that are encoded already.

    Args:
        chain: the open graphs.
        scene: the image.
    """

    def __init__(self, chain: Chain, scene: Scene) -> None:
        self.chain, self.scene = chain, scene
        self._known: dict[bytes, tuple[Any, Any, Any]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """H, W of the image, px."""
        return self.scene.height, self.scene.width

    @cached_property
    def global_view(self) -> F32:
        """f32[4] px, the square around all of the image that holds data."""
        whole = global_box(*self.size)
        validity = self.scene.validity
        data = None if validity is None else validity.box_of_data(whole)
        return whole if data is None else data_view(data, *self.size)

    @property
    def levels(self) -> int:
        """PSC's looks at an image of this size."""
        view, psc = self.chain.manifest.view, self.chain.manifest.psc
        side = math.ceil(self.global_view[2] - self.global_view[0])
        return useful_levels(side, side, view.view_px, view.grid, psc)

    def views(self, boxes: F32, watch: Stopwatch) -> Views:
        """Encoded views of the boxes, in order; only unseen boxes are encoded."""
        boxes = np.ascontiguousarray(boxes, np.float32).reshape(-1, 4)
        new = [boxes[i] for i in self.unseen(boxes)]
        if new:
            fresh = self.chain.encode(self.scene, np.stack(new), watch)
            for i, box in enumerate(new):
                self._known[box.tobytes()] = (fresh.tokens[i], fresh.embeds[i], fresh.features[i])
        parts = [self._known[box.tobytes()] for box in boxes]
        stack = self.chain.values.stack
        return Views(boxes, *(stack(column) for column in zip(*parts, strict=True)))

    def unseen(self, boxes: F32) -> list[int]:
        """Which of the boxes are not encoded yet."""
        return [i for i, box in enumerate(boxes) if box.tobytes() not in self._known]

    def forget(self) -> None:
        """Frees the encoded views and closes the image."""
        self._known.clear()
        self.scene.close()
