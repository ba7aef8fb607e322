"""CUDA graphs of one session: what is asked again with the same shapes is replayed.

The rule. A call is told by the shapes of its inputs. The first call of a kind runs plainly. The
second one gets inputs and outputs of its own, at addresses that stay, runs plainly on them (an
engine may set itself up at the first run with new shapes or addresses) and is then recorded. From
the third on its inputs are copied in, the recording is replayed, and what the caller keeps is
copied out. So a graph pays where shapes recur (the encoder for each number of views, the mask head
for each number of queries, the embedding of one token, a decode step over a cache of fixed
capacity). It cannot where they never do: a cache that grows has another shape at every step.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.device import Device

SHAPES_REMEMBERED = 4096
Arrays = dict[str, DeviceArray]
GRAPHS_KEPT = 16
"""Recordings of one session; the one used longest ago goes first."""


class Work(Protocol):
    """What a session puts on a stream."""

    def outputs_for(self, feeds: Arrays, keep: frozenset[str]) -> Arrays:
        """Memory for the outputs of a call with these inputs."""

    def enqueue(self, feeds: Arrays, outputs: Arrays, stream: int) -> None:
        """Runs the graph on a stream; no memory is allocated or freed."""

    def recordable(self) -> bool:
        """Whether the engine lets its work be recorded as it stands."""

    def fresh(self) -> Work:
        """The same work with a state of its own, which a recording keeps: one that is shared and
        changed afterwards would make the recording undefined."""


@dataclass
class _Recorded:
    work: Work
    feeds: Arrays
    outputs: Arrays
    graph: Any


class Replays:
    """Runs one session's calls, recorded where that pays.

    Args:
        device: where it runs.
        work: the session's work.
        in_place: inputs and outputs whose memory is the session's own and never moves (a cache
            that is updated in place); they are neither copied in nor out.

    Attributes:
        replayed: calls that were.
        refused: why calls of this session are not replayed, or None.
    """

    def __init__(self, device: Device, work: Work, in_place: frozenset[str] = frozenset()) -> None:
        self._device, self._work, self._in_place = device, work, in_place
        self._seen: set[Any] = set()
        self._recorded: OrderedDict[Any, _Recorded] = OrderedDict()
        self.replayed = 0
        self.refused: str | None = None

    def run(self, feeds: Arrays, keep: frozenset[str]) -> Arrays:
        """Runs a call; outputs that are not in `keep` are good until the next call."""
        key = tuple(
            (name, a.shape, a.pointer if name in self._in_place else 0)
            for name, a in sorted(feeds.items())
        )
        recurs = key in self._recorded or (key in self._seen and self._work.recordable())
        refusal = None
        if recurs and self.refused is None:
            try:
                return self._copy_out(self._replay(key, feeds, keep), keep)
            except EngineError as e:
                refusal = str(e)
                self._free()
        # What was done before a refusal is done again: a cache's new rows, too, which are the same.
        outputs = self._work.outputs_for(feeds, keep)
        self._work.enqueue(feeds, outputs, self._device.driver.stream)
        if refusal is not None:  # a call that fails plainly, too, says nothing of recordings
            self.refused = refusal
        if key not in self._seen:  # only now: what fails plainly, too, says nothing of recordings
            if len(self._seen) >= SHAPES_REMEMBERED:
                self._seen.clear()
            self._seen.add(key)
        return outputs

    def refuse(self, reason: str) -> None:
        """Runs plainly from now on; what the recordings held is free."""
        self.refused = reason
        self._free()

    def _free(self) -> None:
        with contextlib.suppress(EngineError):  # of a dead device the next call will tell
            self._device.sync()
        self._recorded.clear()

    def _replay(self, key: Any, feeds: Arrays, keep: frozenset[str]) -> Arrays:
        call = self._recorded.get(key)
        if call is None:
            return self._record(key, feeds, keep)
        self._recorded.move_to_end(key)
        self._copy_in(call.feeds, feeds)
        self._device.driver.replay(call.graph)
        self.replayed += 1
        return call.outputs

    def _record(self, key: Any, feeds: Arrays, keep: frozenset[str]) -> Arrays:
        device, driver, work = self._device, self._device.driver, self._work.fresh()
        own = {
            name: a if name in self._in_place else device.empty(a.shape, a.dtype)
            for name, a in feeds.items()
        }
        self._copy_in(own, feeds)
        outputs = work.outputs_for(own, keep)
        driver.rehearse(lambda stream: work.enqueue(own, outputs, stream))
        if not work.recordable():
            raise EngineError("the engine cannot be recorded as it stands")
        graph = driver.capture(lambda stream: work.enqueue(own, outputs, stream))
        self._recorded[key] = _Recorded(work, own, outputs, graph)
        if len(self._recorded) > GRAPHS_KEPT:
            device.sync()  # the oldest may be what the stream is busy with
            self._recorded.popitem(last=False)
        return outputs

    def _copy_in(self, own: Arrays, feeds: Arrays) -> None:
        for name, target in own.items():
            if name not in self._in_place:
                self._device.copy(target, feeds[name])

    def _copy_out(self, outputs: Arrays, keep: frozenset[str]) -> Arrays:
        kept = dict(outputs)
        for name in (keep & outputs.keys()) - self._in_place:
            kept[name] = self._device.empty(outputs[name].shape, outputs[name].dtype)
            self._device.copy(kept[name], outputs[name])
        return kept
