"""Arrays in device memory: contiguous, typed, and shared with others without a copy."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from geomag_edge.errors import EngineError


class DeviceArray:
    """A contiguous array (C order) in a device's memory.

    Leading axes can be indexed and sliced, and the shape changed, without a copy; the parts keep
    the memory alive. Other libraries read it through the CUDA Array Interface and DLPack.

    Args:
        device: where it is, a `Device`; that file stands above this one.
        pointer: address of the first element.
        shape, dtype: as numpy's.
        owner: what keeps the memory alive.
    """

    def __init__(
        self, device: Any, pointer: int, shape: tuple[int, ...], dtype: DTypeLike, owner: Any
    ) -> None:
        self.device, self.pointer, self.shape = device, pointer, tuple(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.owner = owner

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | tuple[int | slice, ...]) -> DeviceArray:
        """Integers along leading axes, then at most one slice of step 1."""
        keys = key if isinstance(key, tuple) else (key,)
        part: DeviceArray = self
        for i, at in enumerate(keys):
            last = i + 1 == len(keys)
            if not part.ndim or (isinstance(at, slice) and not last):
                raise IndexError(f"a device array {list(self.shape)} cannot be indexed by {key}")
            length, row = part.shape[0], math.prod(part.shape[1:]) * part.dtype.itemsize
            if isinstance(at, slice):
                start, stop, step = at.indices(length)
                if step != 1:
                    raise IndexError("a device array can only be sliced with step 1")
                shape: tuple[int, ...] = (max(0, stop - start), *part.shape[1:])
            else:
                start = int(at) + length if at < 0 else int(at)
                if not 0 <= start < length:
                    raise IndexError(f"index {at} is out of range for an axis of {length}")
                shape = part.shape[1:]
            part = DeviceArray(
                part.device, part.pointer + start * row, shape, part.dtype, part.owner
            )
        return part

    def reshape(self, *shape: int) -> DeviceArray:
        """The same elements under another shape; one length may be -1."""
        known = math.prod(n for n in shape if n != -1)
        if shape.count(-1) == 1 and known:
            shape = tuple(self.size // known if n == -1 else n for n in shape)
        if math.prod(shape) != self.size or -1 in shape:
            raise ValueError(f"cannot reshape {list(self.shape)} to {list(shape)}")
        return DeviceArray(self.device, self.pointer, shape, self.dtype, self.owner)

    def numpy(self, name: str = "array") -> NDArray[Any]:
        """A copy on the host, counted under a name; waits for it."""
        return self.device.download({name: self})[name]

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise EngineError("an array in device memory is not copied unasked: call its numpy()")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.size else 0, False),
            "strides": None,
            "version": 3,
            "stream": self.device.driver.stream,
        }

    def __dlpack__(self, **how: Any) -> Any:
        from cuda.core.utils import StridedMemoryView

        return StridedMemoryView.from_cuda_array_interface(self, stream_ptr=-1).__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device.driver.device_id)  # 2: memory of a CUDA device

    def __repr__(self) -> str:
        return f"DeviceArray({list(self.shape)}, {self.dtype})"
