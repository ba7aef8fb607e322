"""What threads and processes may share: who is inside a thing that anybody may close at any time.

Engines work with threads of their own. A fork copies none of them, so in a child process a graph
that was opened before it would wait for ever for threads that are not there, or crash where it is
freed. So a child is told to open its own, and never frees its parent's.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from geomag_edge.errors import EngineError

LAST_WORDS_S = 60.0
"""How long an interpreter that ends waits for queries of daemon threads."""

_with_threads: weakref.WeakSet[Any] = weakref.WeakSet()
_doors: weakref.WeakSet[Door] = weakref.WeakSet()
_forked = _ending = False


class Door:
    """The door of a thing that several threads use and any of them may close.

    Who is inside finishes; the last one out frees the thing if it was closed meanwhile.

    Args:
        what: the thing, with its remedy, in words: "this pipeline", "load the bundle".
        free: a method of the thing that frees it; called once.
        one_at_a_time: others wait at the door; whoever is inside may come in again.
    """

    def __init__(
        self, what: tuple[str, str], free: Callable[[], None], one_at_a_time: bool = False
    ) -> None:
        self._what = what
        self._method = weakref.WeakMethod(free)  # the thing owns its door, and not the reverse
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._turn: Any = threading.RLock() if one_at_a_time else nullcontext()
        self._inside, self._closed = 0, False
        _doors.add(self)

    def check(self) -> None:
        """Whether one may come in.

        Raises:
            EngineError: closed, or made in the process that this one was forked from.
        """
        what, remedy = self._what
        if self._process != os.getpid():  # before any lock, which a lost thread may hold for ever
            raise EngineError(
                f"{what} belongs to another process, of which this one is a fork, and engines' "
                f"threads are not copied by a fork: {remedy} in this process"
            )
        if self._closed:
            raise EngineError(f"{what} is closed: {remedy} again")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Nothing is freed before the body ends.

        Raises:
            EngineError: as `check`.
        """
        self.check()
        with self._lock:
            self.check()
            ending = _ending and threading.current_thread() is not threading.main_thread()
            self._inside += not ending
        if ending:  # a daemon's thread, which the interpreter would end inside of an engine
            threading.Event().wait()
        try:
            with self._turn:
                yield
        finally:
            with self._lock:
                self._inside -= 1
                last = self._closed and not self._inside
            if last:
                self._free()

    def wait(self, until: float) -> None:
        """Waits for whoever is inside, but no longer than to a moment of `time.monotonic`."""
        if self._process != os.getpid():
            return
        with self._lock:  # whoever comes now sees that the end has begun
            pass
        while self._inside and time.monotonic() < until:
            time.sleep(0.005)

    def _free(self) -> None:
        if method := self._method():
            method()

    def close(self) -> None:
        """Lets nobody in any more, and frees the thing once nobody is inside. Closing again does
        nothing, and neither does closing in a fork, where it would wait for lost threads."""
        if self._process != os.getpid():
            return
        with self._lock:
            last = not self._closed and not self._inside
            self._closed = True
        if last:
            self._free()


def has_threads(*natives: Any) -> None:
    """Says that a library's objects end threads when they are freed, so that no fork frees them."""
    _with_threads.update(natives)


def is_fork() -> bool:
    """Whether this process was forked from one that used this package."""
    return _forked


def _keep_for_ever() -> None:
    """In a child, right after the fork: one reference too many outlives even the interpreter."""
    global _forked
    _forked = True
    for native in list(_with_threads):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


@atexit.register
def _finish() -> None:
    """Python ends a daemon's thread wherever it is; inside of an engine that aborts the process."""
    global _ending
    _ending = True
    until = time.monotonic() + LAST_WORDS_S
    for door in list(_doors):
        door.wait(until)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)
