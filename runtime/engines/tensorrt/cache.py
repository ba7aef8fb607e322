"""The LLM's key-value cache on the device: one that grows by concatenation, or one of fixed length.

Every step of a growing cache reads the past whole and writes past and present whole, so two buffers
are enough: what was written last is read, and the other one is written. A fixed cache is one buffer
that is read and written in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from geomag_edge.errors import EngineError
from geomag_edge.graphs import WRITE_INDICES, past_names, present_names
from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.device import Device

_REMEDY = "give a smaller budget, a shorter prompt or fewer new tokens"


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
                f"the engines' cache holds {self.capacity} tokens, this asks for {length}: "
                + _REMEDY
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


class FixedCache:
    """The keys and values of all layers at full length, which an engine updates in place.

    What it holds is the last call's sequence; a call whose past is the cache's own arrays goes on
    with that, one whose past is other arrays starts from them.

    Args:
        device: where it lies.
        layers, heads, head_dim: one array is [1, heads, capacity, head_dim].
        capacity: tokens at most.
        dtype: of the elements.
    """

    def __init__(
        self,
        device: Device,
        layers: int,
        heads: int,
        head_dim: int,
        capacity: int,
        dtype: DTypeLike,
    ) -> None:
        self.capacity, self._device = capacity, device
        shape, dtype = (1, heads, capacity, head_dim), np.dtype(dtype)
        step = -(-math.prod(shape) * dtype.itemsize // 256) * 256
        self._memory = device.empty((2 * layers * step,), np.uint8)
        arrays = [
            DeviceArray(device, self._memory.pointer + i * step, shape, dtype, self._memory)
            for i in range(2 * layers)
        ]
        self.past = dict(zip(past_names(layers), arrays, strict=True))
        """The engine's inputs; `present`, its outputs, are the same memory."""
        self.present = dict(zip(present_names(layers), arrays, strict=True))

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return self._memory.nbytes

    def feeds(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The feeds of a growing cache's graph, as the fixed one's graph takes them.

        Args:
            given: inputs_embeds [1,T,D], attention_mask [1,N+T], position_ids [1,T], and the past.

        Returns:
            Inputs with the cache's own arrays, and N+T.

        Raises:
            EngineError: longer than the cache, a past of another length than the mask says, or
                an input is missing.
        """
        for name in ("inputs_embeds", "attention_mask", *self.past):
            if name not in given:
                raise EngineError(f"the graph needs the input {name!r}, which was not given")
        length = int(np.shape(given["attention_mask"])[1])
        past = length - int(given["inputs_embeds"].shape[1])
        if length > self.capacity:
            raise EngineError(
                f"the engines' cache holds {self.capacity} tokens, this asks for {length}: "
                + _REMEDY
            )
        others = {
            name: given[name]
            for name, own in self.past.items()
            if getattr(given[name], "pointer", None) != own.pointer
        }
        if others:
            self._start_from(others, past)
        mask = np.zeros((1, self.capacity), np.int64)
        mask[:, :length] = given["attention_mask"]
        fixed = {WRITE_INDICES: np.array([past], np.int64), "attention_mask": mask}
        return {**given, **self.past, **fixed}, length

    def _start_from(self, past: Mapping[str, Any], length: int) -> None:
        """Another sequence: rows beyond it are masked, but a NaN that an earlier one left there
        would come through, so all is cleared."""
        self._device.driver.clear(self._memory.pointer, self._memory.nbytes)
        for name, value in past.items():
            own = self.past[name]
            if tuple(value.shape[2:]) != (length, own.shape[3]):
                raise EngineError(
                    f"{name} has shape {list(value.shape)}, the mask says {length} tokens"
                )
            if not length:
                continue
            rows = self._device.adopt(value)
            if rows is None:
                rows = self._device.upload(np.ascontiguousarray(value, own.dtype), name)
            rows = self._device.cast(rows, own.dtype)
            for head in range(own.shape[1]):
                self._device.copy(own[0, head, :length], rows[0, head])
