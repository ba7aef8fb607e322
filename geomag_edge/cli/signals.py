"""Signals that end a command: as an exception, so that it leaves nothing half-written.

Imports almost nothing: what comes before this counts as the time in which a signal is not heard.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

KINDS = ("SIGINT", "SIGTERM", "SIGHUP")
GRACE_S = 10.0
"""How long after a signal a call into a library may go on that never comes back to Python."""
LOST_S = 0.05


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""


class Signals:
    """Raises `Stopped` in the main thread for the first signal, and ignores those that follow while
    things are tidied up.

    Args:
        last: nothing follows but the process's end, in which a signal is to end it without a word.

    Attributes:
        heard: the first signal's number, or None. An exception that follows may be that signal's:
            libraries turn what is raised inside of them into something else.
    """

    def __init__(self, last: bool = False) -> None:
        self.heard: int | None = None
        self._last = last
        self._before: dict[int, object] = {}
        self._raise_again = False
        self._bell: int | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in KINDS:
            kind = getattr(signal, name, None)  # Windows has no SIGHUP
            # Ignored ones stay so: a shell's background jobs, `nohup`.
            if kind is not None and signal.getsignal(kind) is not signal.SIG_IGN:
                self._before[kind] = signal.signal(kind, self._take)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        self._ended.set()
        if self._bell is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._bell)
        sys.unraisablehook = self._hook
        for kind, before in self._before.items():
            signal.signal(kind, signal.SIG_DFL if self._last else before)  # type: ignore[arg-type]

    def _take(self, number: int, frame: object) -> None:
        if self.heard is not None and not self._raise_again:
            return
        self.heard, self._raise_again = self.heard or number, False
        raise Stopped

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Sends a signal anew whose exception came up in a library's callback, where it is lost."""
        if not issubclass(lost.exc_type, Stopped):
            self._hook(lost)
            return
        self._raise_again = True
        again = threading.Timer(LOST_S, os.kill, (os.getpid(), self.heard))
        again.daemon = True
        again.start()

    def _watch(self) -> None:
        """Starts the thread that ends the process, where the system has files and threads left."""
        ends: tuple[int, ...] = ()
        try:
            ends = hears, bell = os.pipe()
            os.set_blocking(bell, False)
            threading.Thread(target=self._end_at_last, args=(hears,), daemon=True).start()
        except (OSError, RuntimeError):
            for end in ends:
                os.close(end)
            return
        self._bell = bell
        self._wakeup_before = signal.set_wakeup_fd(bell, warn_on_full_buffer=False)

    def _end_at_last(self, hears: int) -> None:
        """Ends the process where a signal is not heard: Python takes one between two of its own
        instructions only, and a library may wait for ever on a pipe that nobody writes to."""
        number = None
        while number is None:
            told = os.read(hears, 64)
            if not told:  # the command has ended
                break
            number = next((n for n in told if n in self._before), None)
        os.close(hears)
        if number is None or self._ended.wait(GRACE_S):
            return
        from geomag_edge.cli.console import tell

        tell(f"geomag-edge: stopped in a call that did not return within {GRACE_S:.0f} s")
        os._exit(128 + number)
