"""What threads and processes may share: who is inside a thing that anybody may close at any time.

Engines work with threads of their own. A fork copies none of them, so in a child process a graph
that was opened before it would wait for ever for threads that are not there, or crash where it is
freed. So a child is told to open its own, and never frees its parent's.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from geomag_edge.errors import EngineError

_with_threads: weakref.WeakSet[Any] = weakref.WeakSet()
_forked = False


class Door:
    """The door of a thing that several threads use and any of them may close.

    Who is inside finishes; the last one out frees the thing if it was closed meanwhile.

    Args:
        what: the thing, with its remedy, in words: "this pipeline", "load the bundle".
        free: frees it; called once.
        one_at_a_time: others wait at the door; whoever is inside may come in again.
    """

    def __init__(
        self, what: tuple[str, str], free: Callable[[], None], one_at_a_time: bool = False
    ) -> None:
        self._what, self._free = what, free
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._turn: Any = threading.RLock() if one_at_a_time else nullcontext()
        self._inside, self._closed = 0, False

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
            self._inside += 1
        try:
            with self._turn:
                yield
        finally:
            with self._lock:
                self._inside -= 1
                last = self._closed and not self._inside
            if last:
                self._free()

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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)
