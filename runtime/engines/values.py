"""What the chain does to values between two graphs: numpy's way, unless the engine has its own.

An engine whose arrays live on a device has an attribute `values` of this form. Its sessions then
leave the outputs in `kept` there, and the chain joins, slices and reads them through it, so that
nothing but token ids, PSC's choice and the final masks comes to the host.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import BundleError
from geomag_edge.graphs import EMBED, ENCODER, PROJECTOR

HANDED_ON = frozenset(
    [
        *ENCODER.output_names,
        *PROJECTOR.output_names,
        *EMBED.output_names,
        "logits",
        "hidden_states",
    ]
)
"""Outputs that only a further stage reads (the cache's come on top)."""


class Image(Protocol):
    """An image that views are cut from; `geomag_edge.runtime.images.scene.Scene` is one."""

    def crop(
        self,
        boxes: NDArray[np.float32],
        mean_std: NDArray[np.float32],
        size: int,
        dtype: str = "float32",
    ) -> NDArray[Any]:
        """Views [K,3,S,S]."""

    def resident(self, mean_std: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """All of its pixels, where they are in memory."""


class Values(Protocol):
    """Operations on an engine's arrays, which have `shape`, `len`, `reshape` and leading-axis
    indexing as numpy's do."""

    kept: frozenset[str]

    def crop(
        self, scene: Image, boxes: NDArray[np.float32], mean_std: NDArray[np.float32], size: int
    ) -> Any:
        """Views [K,3,S,S]; see `Scene.crop`."""

    def stack(self, rows: Sequence[Any]) -> Any:
        """Arrays of one shape as the rows of a new one."""

    def concat(self, parts: Sequence[Any]) -> Any:
        """Arrays joined along their first axis."""

    def choose(self, logits: Any) -> tuple[int, Any]:
        """The likeliest token of logits [1,1,V] (the first one where several are), and the same
        as input ids [1,1] for the next step."""

    def now(self) -> Any:
        """A moment, when all that was asked of the engine so far is done."""

    def ms_between(self, start: Any, end: Any) -> float:
        """Milliseconds between two moments; waits for the later one."""


class HostValues:
    """Numpy arrays; nothing is kept, so every output of a session is one."""

    kept: frozenset[str] = frozenset()

    def crop(
        self, scene: Image, boxes: NDArray[np.float32], mean_std: NDArray[np.float32], size: int
    ) -> Any:
        """On the CPU."""
        return scene.crop(boxes, mean_std, size)

    def stack(self, rows: Sequence[Any]) -> Any:
        """`numpy.stack`."""
        return np.stack(rows)

    def concat(self, parts: Sequence[Any]) -> Any:
        """`numpy.concatenate`."""
        return np.concatenate(parts)

    def choose(self, logits: Any) -> tuple[int, Any]:
        """`argmax`."""
        token = int(logits[0, -1].argmax())
        return token, np.array([[token]], np.int64)

    def now(self) -> float:
        """The process's clock in seconds: an engine on the host is done when it returns."""
        return time.perf_counter()

    def ms_between(self, start: float, end: float) -> float:
        """The difference."""
        return (end - start) * 1e3


HOST = HostValues()


def values_of(engine: Any) -> Values:
    """An engine's own operations, or numpy's."""
    return getattr(engine, "values", HOST)


def expect(value: Any, shape: tuple[int | None, ...]) -> None:
    """A graph may declare one shape and give another: no runtime minds.

    Args:
        value: what it gave.
        shape: what it should give; None is any size but 0.

    Raises:
        BundleError: it gave another one.
    """
    sides = tuple(value.shape)
    if len(sides) != len(shape) or any(
        side == 0 if wanted is None else side != wanted
        for side, wanted in zip(sides, shape, strict=True)
    ):
        wanted = ["any" if side is None else side for side in shape]
        raise BundleError(
            f"a graph gives {list(sides)[:8]} where it should give {wanted}: export the bundle "
            "again"
        )
