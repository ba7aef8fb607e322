"""A stand-in for CUDA that is late on purpose, and strict.

Device memory is host memory, and whatever is put on the stream is done only when somebody waits.
Memory that is freed is overwritten at its turn in the stream. So an array that is read too early,
freed too early, or a page-locked buffer that is used again too early gives wrong answers here; and
what CUDA forbids, or leaves undefined, is a `Misuse`, which nothing in the runtime catches.
"""

import bisect
import ctypes
import threading
from dataclasses import dataclass, field

import numpy as np

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.cuda.refusals import no_memory, refused

GARBAGE = 0xA5  # in float32 -2.9e-16, in float16 -0.022, in int64 huge and negative

CAPTURE = ("begin", "during", "end", "instantiate", "replay")
"""Where a CUDA graph can be refused."""


class Misuse(AssertionError):
    """What a real device would punish with an error, a wrong answer or a crash."""


def array_at(pointer, shape, dtype):
    """Host memory at an address, as an array; one length is a number of bytes."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else shape
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    if not n_bytes:
        return np.zeros(shape, dtype)
    return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(pointer), dtype).reshape(shape)


class PageLocked(np.ndarray):
    """Page-locked memory as the host sees it: it minds being read before the stream has written it,
    and being written before the stream has read it."""

    cuda = None

    def __array_finalize__(self, source):
        self.cuda = getattr(source, "cuda", None)

    def _mind(self, written):
        if self.cuda is not None:
            self.cuda.host_touches(self.ctypes.data, self.nbytes, written)

    def copy(self, order="C"):
        self._mind(False)
        return np.array(self.view(np.ndarray), order=order)

    def __setitem__(self, key, value):
        self[key]._mind(True)
        self.view(np.ndarray)[key] = value

    def __array_ufunc__(self, ufunc, method, *inputs, **how):
        for value in inputs:
            if isinstance(value, PageLocked):
                value._mind(False)
        plain = [v.view(np.ndarray) if isinstance(v, PageLocked) else v for v in inputs]
        return getattr(ufunc, method)(*plain, **how)


class Memory:
    """Bytes at an address that is a multiple of 256."""

    def __init__(self, cuda, n_bytes, on_host):
        block = np.full(n_bytes + 256, GARBAGE, np.uint8)
        start = -block.ctypes.data % 256
        self._plain = block[start : start + n_bytes]
        self.bytes = self._plain
        if on_host:
            self.bytes = self._plain.view(PageLocked)
            self.bytes.cuda = cuda
        self.pointer = block.ctypes.data + start
        self._cuda, self._on_host = cuda, on_host

    def __del__(self):
        (self._cuda.host_freed if self._on_host else self._cuda.freed)(self._plain, self.pointer)


@dataclass
class Action:
    """Something on the stream: what it is, and the spans (address, bytes) that it touches."""

    do: object
    what: str = "work"
    reads: tuple = ()
    writes: tuple = ()
    of: object = None
    """What must not be destroyed before: a graph."""


@dataclass
class Graph:
    """What was recorded."""

    cuda: object
    actions: list = field(default_factory=list)

    def __del__(self):
        if any(action.of is self.actions for action in self.cuda.queue):
            self.cuda.wrong("a CUDA graph is destroyed while it is still to be launched")


def overlap(spans, pointer, n_bytes):
    return any(at < pointer + n_bytes and pointer < at + n for at, n in spans)


class LateCuda:
    """`geomag_edge.runtime.engines.cuda.driver.Driver` on the CPU.

    Args:
        late: wait for `sync`; False does everything at once, and knows nobody's addresses (ONNX
            Runtime's memory is no device's).
        integrated: pretend that host and device share their memory.
        refuses: where CUDA graphs are refused, one of `CAPTURE`, or None.
        memory_bytes: of the device and of page-locked memory together.
    """

    name, version, device_id, capability = "stand-in", "13.0", 0, (8, 7)
    stream, recording_stream = 77, 78

    def __init__(self, late=True, integrated=False, refuses=None, memory_bytes=1 << 30):
        self.late, self.integrated, self.refuses = late, integrated, refuses
        self.memory_bytes, self.used_bytes, self.pooled_bytes = memory_bytes, 0, 0
        self.queue, self.recording, self.rehearsing = [], None, False
        self.launched, self.allocations, self.replays, self.syncs = [], 0, 0, 0
        self.page_locked_bytes = 0
        self.dies = self.dead = None
        self._wrong, self._starts, self._sizes = [], [], {}
        self._threads = threading.local()
        self.make_current()

    # what it watches

    def wrong(self, what):
        """For what happens where nothing can be raised: it is, at the next call."""
        self._wrong.append(what)

    def check(self):
        if self._wrong:
            raise Misuse(self._wrong.pop(0))

    def make_current(self):
        self._threads.current = True
        self.check()
        if self.dead:
            raise refused("making the GPU current", self.dead)

    def needs_context(self, what):
        if not getattr(self._threads, "current", False):
            raise Misuse(f"{what}: no context is current in this thread")

    def not_recording(self, what):
        if self.recording is not None:
            raise Misuse(f"{what} while a CUDA graph is recorded")

    def _register(self, memory, n_bytes):
        bisect.insort(self._starts, memory.pointer)
        self._sizes[memory.pointer] = n_bytes
        return memory

    def _forget(self, pointer):
        del self._sizes[pointer]
        self._starts.pop(bisect.bisect_left(self._starts, pointer))

    def _expect(self, spans, what):
        """All of it lies in memory that is the device's, and not freed."""
        for pointer, n_bytes in spans if self.late else ():
            i = bisect.bisect_right(self._starts, pointer) - 1
            start = self._starts[i] if i >= 0 else None
            if n_bytes and (start is None or pointer + n_bytes > start + self._sizes[start]):
                raise Misuse(f"{what} touches memory that is not the device's, or was freed")

    def host_touches(self, pointer, n_bytes, written):
        for action in self.queue:
            if overlap(action.writes, pointer, n_bytes):
                raise Misuse(f"the host uses memory that {action.what} has yet to write")
            if written and overlap(action.reads, pointer, n_bytes):
                raise Misuse(f"the host writes memory that {action.what} has yet to read")

    # memory

    def _take(self, n_bytes, kind, what):
        self.make_current()
        self.not_recording(f"{what} is allocated")
        if self.used_bytes + self.pooled_bytes + n_bytes > self.memory_bytes:
            raise no_memory(n_bytes, "CUDA_ERROR_OUT_OF_MEMORY", kind)
        self.used_bytes += n_bytes
        return self._register(Memory(self, n_bytes, kind != "memory"), n_bytes)

    def allocate(self, n_bytes):
        self.allocations += 1
        return self._take(n_bytes, "memory", "memory")

    def allocate_host(self, n_bytes):
        self.page_locked_bytes += n_bytes
        return self._take(n_bytes, "page-locked memory", "page-locked memory")

    def freed(self, block, pointer):
        def free():
            block.fill(GARBAGE)
            self.used_bytes -= block.size
            self.pooled_bytes += block.size
            self._forget(pointer)

        self.queue.append(Action(free, "a free"))
        if not self.late:
            self.drain()

    def host_freed(self, block, pointer):
        if self.recording is not None:
            self.wrong("page-locked memory is freed while a CUDA graph is recorded")
        for action in self.queue:
            if overlap((*action.reads, *action.writes), pointer, block.size):
                self.wrong(f"page-locked memory is freed that {action.what} has yet to use")
        block.fill(GARBAGE)
        self.used_bytes -= block.size
        self.page_locked_bytes -= block.size
        self._forget(pointer)

    def trim(self):
        self.make_current()
        self.not_recording("memory is given back")
        self.pooled_bytes = 0

    def free_bytes(self):
        return self.memory_bytes - self.used_bytes - self.pooled_bytes

    # the stream

    def put(self, do, stream=stream, reads=(), writes=(), what="work", of=None):
        self.needs_context(what)
        self.check()
        action = Action(do, what, tuple(reads), tuple(writes), of)
        if stream == self.recording_stream and self.recording is not None:
            self.recording.append(action)
            return
        if stream == 0:
            raise Misuse(f"{what} is put on the legacy stream")
        if stream != self.stream and not (stream == self.recording_stream and self.rehearsing):
            raise Misuse(f"{what} is put on stream {stream}, where nothing orders it")
        if self.recording is not None:
            raise Misuse(f"{what} is put beside the recording")
        self.queue.append(action)
        if not self.late:
            self.drain()

    def drain(self):
        if self.dies:
            self.dead, self.dies = self.dies, None
            self.queue.clear()
        if self.dead:
            raise EngineError(f"the GPU failed: {self.dead}; start the process again")
        while self.queue:
            action = self.queue[0]
            self._expect((*action.reads, *action.writes), action.what)
            action.do()
            self.queue.pop(0)
        self.check()

    def to_device(self, pointer, source):
        n_bytes = source.nbytes
        known = isinstance(source, PageLocked)
        self.make_current()
        self.put(
            lambda: ctypes.memmove(pointer, source.ctypes.data, n_bytes), what="a copy over",
            reads=[(source.ctypes.data, n_bytes)] if known else [], writes=[(pointer, n_bytes)],
        )  # fmt: skip

    def to_host(self, target, pointer):
        if not isinstance(target, PageLocked):
            raise Misuse("a copy back goes to memory that is not page-locked")
        self.make_current()
        self.put(
            lambda: ctypes.memmove(target.ctypes.data, pointer, target.nbytes), what="a copy back",
            reads=[(pointer, target.nbytes)], writes=[(target.ctypes.data, target.nbytes)],
        )  # fmt: skip

    def on_device(self, target, source, n_bytes):
        self.make_current()
        self.put(
            lambda: ctypes.memmove(target, source, n_bytes), what="a copy on the device",
            reads=[(source, n_bytes)], writes=[(target, n_bytes)],
        )  # fmt: skip

    def clear(self, pointer, n_bytes):
        self.make_current()
        self.put(
            lambda: array_at(pointer, n_bytes, np.uint8).fill(0), what="clearing",
            writes=[(pointer, n_bytes)],
        )  # fmt: skip

    def launch(self, kernel, blocks, threads, *arguments):
        self.make_current()
        self.launched.append(kernel)
        arguments = [getattr(a, "value", a) for a in arguments]
        run, spans = KERNELS[kernel]
        reads, writes = spans(*arguments)
        self.put(lambda: run(*arguments), what=kernel, reads=reads, writes=writes)

    def crop(self, image, boxes, mean_std, views):
        boxes = boxes.copy()

        def cut():
            pixels = array_at(image.pointer, image.shape, np.uint8)
            made = psc_crop(pixels, boxes, mean_std, views.shape[-1], views.dtype.name)
            array_at(views.pointer, views.shape, views.dtype)[:] = made

        self.make_current()
        self.launched.append("psc_crop")
        self.put(
            cut, what="PscCrop", reads=[(image.pointer, image.nbytes)],
            writes=[(views.pointer, views.nbytes)],
        )  # fmt: skip

    def sync(self):
        self.make_current()
        self.not_recording("the stream is waited for")
        self.syncs += 1
        self.drain()

    def event(self):
        self.make_current()
        self.not_recording("a time is marked")
        mark = {}
        self.put(lambda: mark.setdefault("at", len(mark)), what="a mark")
        return mark

    def elapsed_ms(self, start, end):
        self.make_current()
        self.drain()
        assert "at" in start
        assert "at" in end
        return 1.0

    # CUDA graphs

    def rehearse(self, work):
        self.sync()
        self.rehearsing = True
        try:
            work(self.recording_stream)
        finally:
            self.rehearsing = False
        self.sync()

    def _refuse(self, where, doing):
        if self.refuses == where:
            raise refused(doing, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    def capture(self, work):
        self.make_current()
        self.not_recording("another recording is begun")
        if self.queue:
            raise Misuse("a recording is begun while its rehearsal is not done")
        self._refuse("begin", "starting a CUDA graph")
        self.recording = []
        try:
            work(self.recording_stream)
            graph = Graph(self, self.recording)
        finally:
            self.recording = None
        self._refuse("end", "recording a CUDA graph")
        self._refuse("instantiate", "instantiating a CUDA graph")
        return graph

    def replay(self, graph):
        self.make_current()
        self._refuse("replay", "launching a CUDA graph")
        self.replays += 1
        for action in graph.actions:
            self.put(
                action.do, what=action.what, reads=action.reads, writes=action.writes,
                of=graph.actions,
            )  # fmt: skip

    def interface(self, value):
        found = getattr(value, "__cuda_array_interface__", None)
        if found is None:
            return None
        pointer, shape, dtype = found["data"][0], found["shape"], np.dtype(found["typestr"])
        if pointer not in self._sizes:  # another library's
            bisect.insort(self._starts, pointer)
        self._sizes[pointer] = int(np.prod(shape)) * dtype.itemsize
        return pointer, shape, dtype, not found["strides"]


def _cast(from_type, to_type):
    from_size, to_size = np.dtype(from_type).itemsize, np.dtype(to_type).itemsize

    def cast(source, target, count):
        array_at(target, (count,), to_type)[:] = array_at(source, (count,), from_type)

    return cast, lambda source, target, n: ([(source, n * from_size)], [(target, n * to_size)])


def _argmax(dtype):
    size = np.dtype(dtype).itemsize

    def argmax(source, count, token):
        array_at(token, (1,), np.int64)[0] = array_at(source, (count,), dtype).argmax()

    return argmax, lambda source, count, token: ([(source, count * size)], [(token, 8)])


KERNELS = {
    "geomag_cast_f32_f16": _cast(np.float32, np.float16),
    "geomag_cast_f16_f32": _cast(np.float16, np.float32),
    "geomag_argmax_f32": _argmax(np.float32),
    "geomag_argmax_f16": _argmax(np.float16),
}
"""Kernel -> what it does, and the spans that it reads and writes."""
