"""The chain's values on a device: views are cut, joined and read there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.values import HANDED_ON, Image


class DeviceValues:
    """See `geomag_edge.runtime.engines.values.Values`.

    Args:
        device: where they are.
        view_dtype: the encoder's input type, in which views are cut.
    """

    kept = HANDED_ON

    def __init__(self, device: Device, view_dtype: DTypeLike) -> None:
        self.device = device
        self.view_dtype: np.dtype[Any] = np.dtype(view_dtype)
        self._images: WeakKeyDictionary[Image, DeviceArray] = WeakKeyDictionary()

    def crop(
        self, scene: Image, boxes: NDArray[np.float32], mean_std: NDArray[np.float32], size: int
    ) -> DeviceArray:
        """On the device, where the image stays for as long as its scene is open; a scene that is
        read by windows is cut on the host, since reading bounds it."""
        pixels = scene.resident(mean_std)
        if pixels is None:
            return self.device.upload(
                scene.crop(boxes, mean_std, size, self.view_dtype.name), "views"
            )
        if scene not in self._images:
            self._images[scene] = self.device.upload(pixels, "image", stays=True)
        views = self.device.empty((len(boxes), 3, size, size), self.view_dtype)
        self.device.driver.crop(self._images[scene], boxes, mean_std, views)
        return views

    def stack(self, rows: Sequence[DeviceArray]) -> DeviceArray:
        """On the device."""
        return self.device.stack(rows)

    def concat(self, parts: Sequence[DeviceArray]) -> DeviceArray:
        """On the device."""
        return self.device.concat(parts)

    def choose(self, logits: DeviceArray) -> tuple[int, DeviceArray]:
        """On the device; the token's 8 bytes come to the host."""
        token = self.device.argmax(logits)
        return int(self.device.download({"token": token})["token"][0, 0]), token

    def now(self) -> Any:
        """A CUDA event."""
        return self.device.driver.event()

    def ms_between(self, start: Any, end: Any) -> float:
        """By the events."""
        return self.device.driver.elapsed_ms(start, end)
