"""Runs one command in a process of its own and sees what it did: how it ended, what it opened."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

HANG_CPU_S, HANG_WALL_S, DIES_S = 20.0, 60.0, 5.0
"""Processor seconds, or seconds that pass on a crowded machine, before a command hangs; seconds
that it then has to end on SIGTERM."""
MEMORY = 4 << 30
"""Bytes of address space that a command may take on top, so that the machine survives it."""
IN_OPEN, IN_ACCESS, NON_BLOCKING = 0x20, 0x1, 0o4000


@dataclass
class Case:
    """One command to try.

    Attributes:
        argv: arguments of `geomag-edge`, as the shell would give them.
        note: how the input was made, for the report.
        folder: everything that the case owns; its inputs lie in `folder/in`.
        out: where the command may write, in `folder/out`, or None.
        amends: a folder among the inputs that the command is to change, or None.
        must_fail: whether an exit code of 0 is itself a fault: a changed file was not noticed.
        long: whether the command is honest work that may take longer than a hang.
    """

    argv: list[str]
    note: str
    folder: Path
    out: Path | None = None
    amends: Path | None = None
    must_fail: bool = False
    long: bool = False


@dataclass
class Outcome:
    """What a command did. `code` is negative for a signal; `grown_mb`: its peak over the start."""

    code: int
    stdout: bytes
    stderr: bytes
    wall_s: float
    cpu_s: float
    grown_mb: float
    hung: bool = False
    stubborn: bool = False
    outside: list[str] = field(default_factory=list)


class Outside:
    """A folder and a port that no input has a right to: whatever touches them is seen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = self._libc.inotify_init1(NON_BLOCKING)
        if self._watch < 0:
            raise OSError(ctypes.get_errno(), "inotify is needed to see what is opened")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def arm(self) -> None:
        """From here on every opening counts; the folder's content is final."""
        if self._libc.inotify_add_watch(self._watch, os.fsencode(self.root), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot watch")
        self._before = self._state()

    def seen(self) -> list[str]:
        """What was touched since the last call."""
        found = []
        try:
            while data := os.read(self._watch, 65536):
                found += _names(data)
        except BlockingIOError:
            pass
        try:
            while True:
                self._socket.accept()[0].close()
                found.append(self.url)
        except BlockingIOError:
            pass
        if (now := self._state()) != self._before:
            found.append(f"changed {self.root.name}")
            self._before = now
        return sorted(set(found))

    def _state(self) -> list[tuple[str, int, int]]:
        found = [self.root, *self.root.rglob("*")]
        return sorted((str(p), s.st_size, s.st_mtime_ns) for p in found for s in [p.lstat()])


def _names(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 12 : at + 16], sys.byteorder)
        if name := data[at + 16 : at + 16 + size].rstrip(b"\0").decode(errors="replace"):
            yield name
        at += 16 + size


def run(
    case: Case, outside: Outside, prepare: Callable[[], None] | None = None
) -> Outcome:  # fmt: skip
    """Runs a case in a fork of this process, which has imported all but opened nothing.

    `prepare` is called there before the command.
    """
    for name in ("home", "cache", "cwd"):
        (case.folder / name).mkdir(exist_ok=True)
    streams = [case.folder / "stdout", case.folder / "stderr"]
    outside.seen()
    start, base_mb = time.monotonic(), _resident_mb()
    child = os.fork()
    if child == 0:
        _in_child(case, streams, prepare)
    hung, stubborn = _wait(child, start, 10 if case.long else 1)
    _, status, used = os.wait4(child, 0)
    with _group(child):
        return Outcome(
            os.waitstatus_to_exitcode(status), *(p.read_bytes() for p in streams),
            time.monotonic() - start, used.ru_utime + used.ru_stime,
            used.ru_maxrss / 1024 - base_mb, hung, stubborn, outside.seen(),
        )  # fmt: skip


def _in_child(
    case: Case, streams: list[Path], prepare: Callable[[], None] | None
) -> None:  # fmt: skip
    code = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(case.folder / "cwd")
        os.environ |= {
            "HOME": str(case.folder / "home"), "XDG_CACHE_HOME": str(case.folder / "cache")
        }  # fmt: skip
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if prepare is not None:
            prepare()
        from geomag_edge.cli import main

        code = main(case.argv)
    except SystemExit as e:  # argparse
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _wait(child: int, start: float, times: int) -> tuple[bool, bool]:
    """Waits for a child; returns whether it hung, and whether SIGTERM did not end it then."""
    ended = select.poll()
    handle = os.pidfd_open(child)
    ended.register(handle, select.POLLIN)
    try:
        while not ended.poll(500):
            if _cpu_s(child) > HANG_CPU_S * times or time.monotonic() - start > HANG_WALL_S * times:
                os.kill(child, signal.SIGTERM)
                stubborn = not ended.poll(DIES_S * 1e3)
                os.killpg(child, signal.SIGKILL)
                return True, stubborn
        return False, False
    finally:
        os.close(handle)


@contextmanager
def _group(child: int) -> Iterator[None]:
    """Leaves nothing of a case running."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
