"""One profile of an engine at work: a context, its shapes, its addresses, its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.refusals import first_line
from geomag_edge.runtime.engines.cuda.replay import Arrays
from geomag_edge.runtime.engines.tensorrt.contexts import Contexts
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour


class Workspace:
    """Activation memory that all contexts share; it grows by being replaced."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: DeviceArray | None = None

    def of(self, n_bytes: int) -> DeviceArray:
        """At least so many bytes. Who got a smaller one before goes on using that."""
        if self._memory is None or self._memory.nbytes < n_bytes:
            self._memory = self._device.empty((max(n_bytes, 1),), np.uint8)
        return self._memory


class Owner(Protocol):
    """What the contexts of an engine share."""

    device: Device
    flavour: Flavour
    workspace: Workspace
    log: Any

    def said(self, otherwise: str) -> str:
        """The first error in TensorRT's log, in one line."""


class ProfileWork:
    """A context set to one profile; see `cuda.replay.Work`.

    Attributes:
        on_host: inputs that TensorRT reads on the host (shapes), for the next call.
        sizes: of the inputs' dynamic axes, for the next call.
        fixed_outputs: outputs whose memory is given, for the next call.
    """

    def __init__(
        self,
        owner: Owner,
        graph: str,
        engine: Any,
        contexts: Contexts,
        profile: int,
        outputs: Mapping[str, np.dtype[Any]],
        axes: Mapping[str, tuple[str | int, ...]],
    ) -> None:
        self._made_from = owner, graph, engine, contexts, profile, outputs, axes
        self._owner, self._graph, self._outputs, self._axes = owner, graph, outputs, axes
        self._device = owner.device
        self.on_host: dict[str, np.ndarray] = {}
        self.sizes: dict[str, int] = {}
        self.fixed_outputs: Arrays = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._known: dict[str, tuple[str | int, ...]] = {}
        owner.log.lines.clear()
        self._context = self._ask("making a context", contexts.make)
        if self._context is None:
            raise EngineError(
                f"TensorRT makes no context for {graph}: {owner.said('no reason given')}; use a "
                "smaller budget, or close what else runs on the GPU"
            )
        stream = self._device.driver.stream
        self._do("setting the profile", self._context.set_optimization_profile_async,
                 profile, stream)  # fmt: skip
        n_bytes = int(engine.get_device_memory_size_for_profile_v2(profile))
        self._memory = owner.workspace.of(n_bytes)
        self._context.set_device_memory(self._memory.pointer, self._memory.nbytes)

    def recordable(self) -> bool:
        """TensorRT for RTX says; full TensorRT's engines are, once run."""
        asked: Callable[[int], bool] | None = getattr(self._context, "is_stream_capturable", None)
        return asked is None or asked(self._device.driver.stream)

    def fresh(self) -> ProfileWork:
        """The same profile with a context of its own: TensorRT wants one for each recording."""
        made = ProfileWork(*self._made_from)
        made.sizes, made.fixed_outputs = self.sizes, self.fixed_outputs
        return made

    def outputs_for(self, feeds: Arrays, keep: frozenset[str]) -> Arrays:
        """Memory for the outputs of these inputs."""
        self._set_shapes(feeds)
        made = {}
        for name, shape in self._shapes_of_outputs().items():
            given = self.fixed_outputs.get(name)
            if given is not None and given.shape != shape:
                raise EngineError(
                    f"{self._graph} would give {name} {list(shape)}, expected {list(given.shape)}"
                )
            made[name] = (
                given if given is not None
                else self._device.empty(shape, self._outputs[name], for_host=name not in keep)
            )  # fmt: skip
        return made

    def _shapes_of_outputs(self) -> dict[str, tuple[int, ...]]:
        """By what the graph's contract says of the inputs' sizes, once TensorRT has said the same:
        it would go through the whole network for them at every step of a growing cache."""
        if self._known:
            return {
                name: tuple(a if isinstance(a, int) else self.sizes[a] for a in axes)
                for name, axes in self._known.items()
            }
        missing = self._ask("telling shapes", self._context.infer_shapes)
        if missing:
            raise EngineError(f"TensorRT cannot tell the shapes of {self._graph}: {missing[0]}")
        told = {
            name: tuple(self._ask("telling a shape", self._context.get_tensor_shape, name))
            for name in self._outputs
        }
        known = {
            name: tuple(
                axis if axis in self.sizes else size
                for axis, size in zip(self._axes[name], shape, strict=True)
            )
            for name, shape in told.items()
            if len(self._axes.get(name, ())) == len(shape)
        }
        self._known = known
        if told != self._shapes_of_outputs():
            self._known = {}  # TensorRT knows better, and is asked each time
        return told

    def enqueue(self, feeds: Arrays, outputs: Arrays, stream: int) -> None:
        """Runs the engine on a stream."""
        self._set_shapes(feeds)
        for name, array in (*feeds.items(), *outputs.items()):
            self._set_address(name, array.pointer)
        self._do("running it", self._context.execute_async_v3, stream)

    def _set_shapes(self, feeds: Arrays) -> None:
        for name, array in feeds.items():
            if self._shapes.get(name) != array.shape:
                doing = f"giving {name} the shape {list(array.shape)}"
                self._do(doing, self._context.set_input_shape, name, array.shape)
                self._shapes[name] = array.shape
        for name, values in self.on_host.items():
            self._set_address(name, values.ctypes.data)

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            self._do(f"binding {name}", self._context.set_tensor_address, name, address)
            self._addresses[name] = address

    def _do(self, doing: str, call: Callable[..., bool], *arguments: Any) -> None:
        """Asks TensorRT for something that it says it did or not."""
        if not self._ask(doing, call, *arguments):
            raise self._failed(doing, "no reason given")

    def _ask(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as e:  # some calls of the bindings raise where others return False
            raise self._failed(doing, first_line(e)) from e

    def _failed(self, doing: str, otherwise: str) -> EngineError:
        said = self._owner.said(otherwise)
        return EngineError(f"TensorRT failed on {self._graph}, {doing}: {said}")
