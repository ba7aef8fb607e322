"""What a process does to a folder, event by event, and how to end it right before one of them.

A process is forked, watches what Python does under a folder (every open for writing, rename,
exchange, mkdir, unlink, rmdir, link, chmod and fsync), and when it is about to do the nth thing it
kills itself, or has something raised there. Linux only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

AUDITED = {
    "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod",
    "os.truncate",
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

ENDED, CUT, FAILED = "ended", "cut", "failed"


def kill() -> NoReturn:
    """As a power cut or the out-of-memory killer: nothing runs after it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def watch(root: Path, on_event: Callable[[str], None]) -> None:
    """Calls back before everything that changes something under `root`, for good."""
    inside = os.path.realpath(root)

    def see(event: str, place: Any) -> None:
        if isinstance(place, (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(os.fspath(place)))
            if path == inside or path.startswith(inside + os.sep):
                on_event(event)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in AUDITED:
            if args[-1] not in (-1, None) and event in ("os.remove", "os.rmdir"):
                on_event(event)  # as rmtree does it: a name in an open folder
            else:
                see(event, args[0])
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITES:
            see(event, args[0])

    from geomag_edge.disk import staging

    fsync, exchange = os.fsync, staging.exchange

    def watched_fsync(handle: int) -> None:
        see("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def watched_exchange(one: Path, other: Path) -> bool:
        see("exchange", one)
        return exchange(one, other)

    os.fsync, staging.exchange = watched_fsync, watched_exchange  # type: ignore[assignment]
    sys.addaudithook(audit)


def forked(work: Callable[[], object]) -> int:
    """Starts a process that does the work; returns its id. It ends with 0, or 3 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended_at(
    event: int, root: Path, work: Callable[[], object], end: Callable[[], object] = kill
) -> str:
    """Does the work in a process of its own, and ends it right before its nth event.

    Args:
        event: which, from 1; beyond the last one the work is done.
        root: the folder whose changes count.
        work: what to do.
        end: kills or raises; what it raises may leave the work.

    Returns:
        `ended` (there was no such event), `cut`, or `failed`, before the event.
    """

    def child() -> None:
        seen = 0

        def count(name: str) -> None:
            nonlocal seen
            seen += 1
            if seen == event:
                end()

        watch(root, count)
        try:
            work()
        except BaseException:
            if seen < event:
                raise
        if seen < event:
            os._exit(7)

    pid = forked(child)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return CUT
    return {0: CUT, 7: ENDED}.get(os.waitstatus_to_exitcode(status), FAILED)


def count_of(root: Path, work: Callable[[], object]) -> int:
    """How many events the work has, done in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    reader, writer = os.pipe()

    def child() -> None:
        seen: list[str] = []
        watch(root, seen.append)
        work()
        os.write(writer, str(len(seen)).encode())

    pid = forked(child)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise RuntimeError("the work failed before anything was ended")
    return int(text)


def killed_after(seconds: float, work: Callable[[], object]) -> str:
    """Kills the work after a time: `cut`, or `ended` or `failed` if it was faster."""
    pid = forked(work)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return ENDED if status == 0 else FAILED
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return CUT
    return ENDED if status == 0 else FAILED
