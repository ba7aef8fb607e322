"""The LLM's key-value cache on the device, for engines whose cache grows by concatenation.

Every step of such an engine reads the past whole and writes past and present whole, so two buffers
are enough: what was written last is read, and the other one is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from geomag_edge.errors import EngineError
from geomag_edge.runtime.cuda.array import DeviceArray
from geomag_edge.runtime.cuda.device import Device


class GrowingCache:
    """Two preallocated halves, each for the keys and values of all layers at full length.

    An array of the cache is good until the step after the next one writes over it.

    Args:
        device: where it lies.
        outputs: the outputs to hold (`present.0.key` ...), in order.
        heads, head_dim: shape of one output, [1, heads, length, head_dim].
        capacity: tokens at most.
        dtype: of the elements.
    """

    def __init__(
        self,
        device: Device,
        outputs: Sequence[str],
        heads: int,
        head_dim: int,
        capacity: int,
        dtype: DTypeLike,
    ) -> None:
        self._row, self.capacity = (heads, head_dim), capacity
        self._dtype = np.dtype(dtype)
        step = -(-math.prod(self._row) * capacity * self._dtype.itemsize // 256) * 256
        self._at = {name: i * step for i, name in enumerate(outputs)}
        self._halves = [device.empty((len(self._at) * step,), np.uint8) for _ in range(2)]
        self._device = device

    @property
    def nbytes(self) -> int:
        """Memory of both halves."""
        return sum(half.nbytes for half in self._halves)

    def outputs_for(self, past: Mapping[str, DeviceArray], length: int) -> dict[str, DeviceArray]:
        """Where a step writes, given what it reads: present arrays [1, heads, length, head_dim].

        Raises:
            EngineError: longer than the cache.
        """
        if length > self.capacity:
            raise EngineError(
                f"the engines' cache holds {self.capacity} tokens, this asks for {length}: give a "
                "smaller budget, a shorter prompt or fewer new tokens"
            )
        first = self._halves[0]
        end = first.pointer + first.nbytes
        reads_first = any(first.pointer <= a.pointer < end for a in past.values())
        half = self._halves[1 if reads_first else 0]
        heads, head_dim = self._row
        return {
            name: DeviceArray(
                self._device, half.pointer + at, (1, heads, length, head_dim), self._dtype, half
            )
            for name, at in self._at.items()
        }
