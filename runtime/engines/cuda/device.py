"""What the engines ask of a device: arrays up and down, joins, casts, the likeliest token."""

from __future__ import annotations

import ctypes
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.driver import Driver, HostMemory
from geomag_edge.runtime.engines.cuda.kernels import THREADS

STAGED_BYTES = 4 << 20
"""Larger uploads (an image) go straight from pageable memory and are waited for; staging them here
would take as much page-locked memory once more."""

EXACT_BYTES = 1 << 20
"""Page-locked memory up to here is lent in powers of two, beyond it in exact sizes."""

HOST_KEPT_BYTES = 32 << 20
"""Page-locked memory that may lie unused, for the next loan. It is taken from everything else."""

_CASTS = {("float32", "float16"): "f32_f16", ("float16", "float32"): "f16_f32"}


class Device:
    """A device with its stream, page-locked staging memory and a count of host copies.

    Nothing waits for the stream but `download`, `sync` and an upload of more than `STAGED_BYTES`.

    Attributes:
        to_device_bytes, to_host_bytes: bytes copied so far, by the name of what was copied.
            Where host and device share their memory only what stays there is copied and counted.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.to_device_bytes: Counter[str] = Counter()
        self.to_host_bytes: Counter[str] = Counter()
        self._host = _HostPool(driver)
        self._adopted: list[Any] = []

    def empty(self, shape: Sequence[int], dtype: DTypeLike, for_host: bool = False) -> DeviceArray:
        """An array with undefined content.

        Args:
            shape, dtype: as numpy's.
            for_host: it will be read on the host next; where host and device share their memory,
                it is then made so that this takes no copy.
        """
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        owner: Any
        if for_host and self.driver.integrated:
            owner = self._lease(n_bytes)
        else:
            owner = self._taken(lambda: self.driver.allocate(n_bytes))
        return DeviceArray(self, owner.pointer, tuple(shape), dtype, owner)

    def _lease(self, n_bytes: int) -> _Lease:
        return self._taken(lambda: self._host.lease(n_bytes))

    def _taken(self, take: Callable[[], Any]) -> Any:
        """Memory of one kind; where there is none, what else lies unused here is given back."""
        try:
            return take()
        except EngineError:
            self.sync()
            self.trim()
            return take()

    def trim(self) -> None:
        """Gives the system back what lies unused in the pools."""
        self._host.trim()
        self.driver.trim()

    def upload(self, array: NDArray[Any], name: str, stays: bool = False) -> DeviceArray:
        """A copy of a host array, which may change at once.

        Args:
            array: any.
            name: what its bytes are counted under.
            stays: it is read many times. Where host and device share their memory an array is
                mapped, which the device reads past its caches; one that stays is copied.
        """
        array = np.ascontiguousarray(array)
        if self.driver.integrated and not stays:
            lease = self._lease(array.nbytes)
            lease.bytes[: array.nbytes] = array.reshape(-1).view(np.uint8)
            return DeviceArray(self, lease.pointer, array.shape, array.dtype, lease)
        made = self.empty(array.shape, array.dtype)
        self.fill(made, array, name)
        return made

    def fill(self, target: DeviceArray, array: NDArray[Any], name: str) -> None:
        """Copies a host array of the same size and type over a device array."""
        flat = np.ascontiguousarray(array, target.dtype).reshape(-1).view(np.uint8)
        if not flat.size:
            return
        self.to_device_bytes[name] += flat.size
        if flat.size > STAGED_BYTES:
            self.driver.to_device(target.pointer, flat)
            self.sync()
            return
        lease = self._lease(flat.size)
        lease.bytes[: flat.size] = flat
        self.driver.to_device(target.pointer, lease.bytes[: flat.size])

    def download(self, arrays: Mapping[str, DeviceArray]) -> dict[str, NDArray[Any]]:
        """Copies on the host, waited for once for all of them."""
        staged: dict[str, NDArray[np.uint8]] = {}
        leases = []
        for name, array in arrays.items():
            if isinstance(array.owner, _Lease):
                staged[name] = array.owner.bytes_at(array.pointer, array.nbytes)
                continue
            leases.append(self._lease(array.nbytes))
            staged[name] = leases[-1].bytes[: array.nbytes]
            if array.nbytes:
                self.to_host_bytes[name] += array.nbytes
                self.driver.to_host(staged[name], array.pointer)
        self.sync()
        return {
            name: staged[name].copy().view(array.dtype).reshape(array.shape)
            for name, array in arrays.items()
        }

    def sync(self) -> None:
        """Waits for the stream; staging memory can be used again."""
        done = self._host.take_returned()  # what other threads return from here on is waited for
        adopted = len(self._adopted)
        self.driver.sync()  # the next time
        self._host.keep(done)
        del self._adopted[:adopted]

    def adopt(self, value: Any) -> DeviceArray | None:
        """Another library's array in device memory (pycuda, CuPy, torch), without a copy.

        None for anything else.

        Raises:
            EngineError: it is not contiguous.
        """
        if isinstance(value, DeviceArray):
            return value
        if isinstance(value, np.ndarray | np.generic):
            return None
        found = self.driver.interface(value)
        if found is None:
            return None
        pointer, shape, dtype, contiguous = found
        if not contiguous:
            raise EngineError(
                f"a device array {list(shape)} is not contiguous: make it so first, for example "
                "by its contiguous() or ascontiguousarray"
            )
        # Its own library would use the memory anew once it is let go, on a stream of its own.
        self._adopted.append(value)
        return DeviceArray(self, pointer, shape, dtype, value)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copies between device arrays of one size and type."""
        if source.nbytes and target.pointer != source.pointer:
            self.driver.on_device(target.pointer, source.pointer, source.nbytes)

    def concat(self, parts: Sequence[DeviceArray]) -> DeviceArray:
        """Joins along the first axis; parts that already lie one after another are not copied."""
        tails = {(part.shape[1:], part.dtype) for part in parts}
        if len(tails) != 1:
            wide = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
            parts = [self.cast(part, wide) for part in parts]
            if len({part.shape[1:] for part in parts}) != 1:
                raise ValueError(f"cannot join {[list(part.shape) for part in parts]}")
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        if _adjacent(parts):
            return DeviceArray(self, parts[0].pointer, shape, parts[0].dtype, parts[0].owner)
        joined = self.empty(shape, parts[0].dtype)
        at = 0
        for part in parts:
            self.copy(joined[at : at + len(part)], part)
            at += len(part)
        return joined

    def stack(self, rows: Sequence[DeviceArray]) -> DeviceArray:
        """Arrays of one shape as rows of a new one."""
        return self.concat([row.reshape(1, *row.shape) for row in rows])

    def cast(self, array: DeviceArray, dtype: DTypeLike) -> DeviceArray:
        """The same values in another float type; the array itself if it has it already."""
        wanted = np.dtype(dtype)
        if array.dtype == wanted:
            return array
        kind = _CASTS.get((array.dtype.name, wanted.name))
        if kind is None:
            raise EngineError(f"a device array of {array.dtype} cannot be used as {wanted}")
        made = self.empty(array.shape, wanted)
        if array.size:
            self.driver.launch(
                f"geomag_cast_{kind}", min(-(-array.size // THREADS), 4096), THREADS,
                array.pointer, made.pointer, ctypes.c_int64(array.size),
            )  # fmt: skip
        return made

    def aligned(self, array: DeviceArray) -> DeviceArray:
        """The array, or a copy that begins at a multiple of 256 bytes."""
        if array.pointer % 256 == 0:
            return array
        made = self.empty(array.shape, array.dtype)
        self.copy(made, array)
        return made

    def argmax(self, logits: DeviceArray) -> DeviceArray:
        """Index of the largest of logits [1,1,V], the first where several are: int64[1,1]."""
        if logits.dtype not in (np.float32, np.float16):
            raise EngineError(f"logits are {logits.dtype}: expected float32 or float16")
        token = self.empty((1, 1), np.int64, for_host=True)
        kernel = f"geomag_argmax_f{logits.dtype.itemsize * 8}"
        last = ctypes.c_int64(logits.shape[-1])
        self.driver.launch(kernel, 1, THREADS, logits.pointer, last, token.pointer)
        return token


def _adjacent(parts: Iterable[DeviceArray]) -> bool:
    """Whether the parts lie one after another in one allocation."""
    first, *others = parts
    end = first.pointer + first.nbytes
    for part in others:
        if part.owner is not first.owner or part.pointer != end:
            return False
        end += part.nbytes
    return True


class _Lease:
    """Page-locked memory on loan: it returns to its pool when nothing refers to it, and is lent
    again once the stream has been waited for."""

    def __init__(self, pool: _HostPool, memory: HostMemory) -> None:
        self._pool, self._memory = pool, memory
        self.bytes, self.pointer = memory.bytes, memory.pointer

    def bytes_at(self, pointer: int, n_bytes: int) -> NDArray[np.uint8]:
        """The part that a device array at an address covers."""
        start = pointer - self.pointer
        return self.bytes[start : start + n_bytes]

    def __del__(self) -> None:
        self._pool.returned.append(self._memory)


class _HostPool:
    """Page-locked memory: up to `EXACT_BYTES` in powers of two, beyond that in exact sizes."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: list[HostMemory] = []
        self.returned: deque[HostMemory] = deque()  # by any thread

    def lease(self, n_bytes: int) -> _Lease:
        size = max(512, n_bytes)
        if size <= EXACT_BYTES:
            size = 1 << (size - 1).bit_length()
        for i, memory in enumerate(self._free):
            if memory.bytes.size == size:
                return _Lease(self, self._free.pop(i))
        return _Lease(self, self._driver.allocate_host(size))

    def take_returned(self) -> list[HostMemory]:
        """What was given back so far; work on the stream may still use it."""
        return [self.returned.popleft() for _ in range(len(self.returned))]

    def keep(self, done: list[HostMemory]) -> None:
        """For the next loans; of too much, what has lain longest goes back to the system."""
        self._free += done
        kept = sum(memory.bytes.size for memory in self._free)
        while kept > HOST_KEPT_BYTES:
            kept -= self._free.pop(0).bytes.size

    def trim(self) -> None:
        """All of it goes back to the system."""
        self._free.clear()
