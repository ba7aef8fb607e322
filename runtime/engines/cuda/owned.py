"""What is allocated or made of CUDA, each freed in its own way when nothing refers to it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geomag_edge.runtime.engines.cuda.refusals import no_memory, value_of


class Owner(Protocol):
    """The driver that made it."""

    def make_current(self) -> None:
        """Makes the device the calling thread's."""


class Freed:
    """What CUDA must free, in whichever thread Python lets it go: a call without a current context
    would fail there, and the memory be lost."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def free(self) -> None:
        """Frees it."""

    def __del__(self) -> None:
        # The interpreter may be ending, or the device dead: then all is freed with the process.
        with contextlib.suppress(Exception):
            self._owner.make_current()
            self.free()


class Allocated(Freed):
    """A cuda.core buffer, freed in its stream's order."""

    def __init__(self, owner: Owner, buffer: Any) -> None:
        super().__init__(owner)
        self._buffer = buffer
        self.pointer = int(buffer.handle)

    def free(self) -> None:
        """In the order of the stream that it was allocated on."""
        self._buffer.close()


class PastThePool(Freed):
    """Memory of cuMemAlloc; its free waits for the device, so nothing uses it any more."""

    def __init__(self, owner: Owner, free: Callable[[int], Any], pointer: int) -> None:
        super().__init__(owner)
        self._free, self.pointer = free, pointer

    def free(self) -> None:
        """Waits, and frees."""
        self._free(self.pointer)


class PageLocked(Freed):
    """Memory of cuMemHostAlloc."""

    def __init__(self, owner: Owner, driver: Any, n_bytes: int) -> None:
        super().__init__(owner)
        status, address = driver.cuMemHostAlloc(n_bytes, driver.CU_MEMHOSTALLOC_DEVICEMAP)
        if int(status):
            raise no_memory(n_bytes, getattr(status, "name", str(status)), "page-locked memory")
        self._free, self._address = driver.cuMemFreeHost, int(address)
        self.pointer = int(
            value_of(driver.cuMemHostGetDevicePointer(self._address, 0), "mapping host memory")
        )
        view = (ctypes.c_uint8 * n_bytes).from_address(self._address)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(view)

    def free(self) -> None:
        """At once."""
        if hasattr(self, "_address"):
            self._free(self._address)


class Graph(Freed):
    """An instantiated CUDA graph."""

    def __init__(self, owner: Owner, driver: Any, handle: Any) -> None:
        super().__init__(owner)
        self._destroy, self.handle = driver.cuGraphExecDestroy, handle

    def free(self) -> None:
        """At once."""
        self._destroy(self.handle)
