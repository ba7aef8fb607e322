"""Half-written work on disk: whose it is, and whether its writer still lives.

A folder or file in the making is called `.NAME.KIND-OWNER`. The owner is in the name, so that it is
known from the first instant: machine, boot and process space, process id, the process' start, and
something random. Where the file system has locks, the writer holds one on it as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(
    r"\.(?P<name>.+)\.(?P<kind>[a-z]+)-(?P<machine>\w{6})(?P<kernel>\w{6})(?P<space>\w{6})"
    r"-(?P<pid>\d{1,10})-(?P<start>\d{1,20})-[0-9a-f]{8}",
    re.ASCII | re.DOTALL,
)

_TAIL = 80
"""Bytes that a name may take beside NAME; file systems allow 255 in all."""

FORGOTTEN_S = 7 * 24 * 3600
"""What another machine left, where its writer cannot be asked after, is litter after this long."""


UNKNOWN = "unknow"

_held = threading.local()
"""`locks`: device and inode of what this thread holds; a second open file would wait for the
first."""


@dataclass(frozen=True)
class Left:
    """One thing in the making, or left so.

    Attributes:
        path: where it is.
        name: what it is to become, or was; shortened where it is long (`short`).
        kind: `new`, `old` and others, see `geomag_edge.disk.staging`.
        machine, kernel, space, pid, start: of the writer.
        user: whose it is.
    """

    path: Path
    name: str
    kind: str
    machine: str
    kernel: str
    space: str
    pid: int
    start: int
    user: int

    def may_go(self) -> bool:
        """Whether it may be removed: it is this user's, and its writer is gone."""
        ours = not hasattr(os, "geteuid") or self.user == os.geteuid()
        return ours and self.abandoned()

    def abandoned(self) -> bool:
        """Whether its writer is gone; False wherever that is not known."""
        machine, kernel, space = _here()
        known = kernel != UNKNOWN or self.machine == machine
        if known and (self.kernel, self.space) == (kernel, space):
            return not _runs(self.pid, self.start)
        free = _lockable(self.path)
        if free is False:
            return False
        if free and self.kernel == kernel != UNKNOWN:  # another container: locks are the kernel's
            return True
        if self.machine == machine and self.kernel != kernel:  # this one, before it started anew
            return True
        return time.time() - _touched(self.path) > FORGOTTEN_S


def left_in(folder: Path, *kinds: str) -> list[Left]:
    """What is in the making in a folder, or was left there; of these kinds alone."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] != "." or not (match := _NAME.fullmatch(entry.name)):
                    continue
                if kinds and match["kind"] not in kinds:
                    continue
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode):
                        found.append(_left(Path(entry.path), match, info.st_uid))
    except (OSError, ValueError):  # not there, not to be listed, or no name at all
        return []
    return sorted(found, key=lambda left: left.path.name)


def name_for(name: str, kind: str) -> str:
    """A new name for what this process makes of, or beside, `name`."""
    machine, kernel, space = _here()
    pid = os.getpid()
    owner = f"{machine}{kernel}{space}-{pid}-{_started(pid) or 0}"
    return f".{short(name)}.{kind}-{owner}-{secrets.token_hex(4)}"


def short(name: str) -> str:
    """A name that has room for its owner: long ones are cut and end in a digest."""
    if len(os.fsencode(name)) <= 255 - _TAIL:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    while len(os.fsencode(name)) > 255 - _TAIL - 9:
        name = name[:-1]
    return f"{name}~{digest}"


def is_cut(name: str) -> bool:
    """Whether `short` cut it."""
    long = len(os.fsencode(name)) > 255 - _TAIL - 13
    return long and re.search(r"~[0-9a-f]{8}$", name) is not None


@contextmanager
def folder_in(parent: Path, name: str, kind: str = "new") -> Iterator[Path]:
    """A new, empty folder that is known to be this process' own, even in other containers.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = parent / name_for(name, kind)
        os.mkdir(path)
        with lock(path):
            if path.exists():  # else it was taken for litter before its lock was there
                yield path
                return


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock on a file or folder, where the file system has locks and nobody else does.

    A thread that holds it already goes on: what is in the making is amended before it is done.
    """
    handle: int | None = None
    mine: set[tuple[int, int]] = _held.__dict__.setdefault("locks", set())
    key: tuple[int, int] | None = None
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                state = os.fstat(handle)
                if (state.st_dev, state.st_ino) not in mine:
                    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    key = state.st_dev, state.st_ino
                    mine.add(key)
        yield
    finally:
        if key is not None:
            mine.discard(key)
        if handle is not None:
            os.close(handle)


def _left(path: Path, match: re.Match[str], user: int) -> Left:
    return Left(
        path,
        match["name"],
        match["kind"],
        match["machine"],
        match["kernel"],
        match["space"],
        int(match["pid"]),
        int(match["start"]),
        user,
    )


@cache
def _here() -> tuple[str, str, str]:
    """Machine, kernel (from boot to boot) and process space, six characters each."""
    machine = f"{platform.node()} {_read('/etc/machine-id')}"
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return _digest(machine), _digest(_read("/proc/sys/kernel/random/boot_id")), _digest(space)


def _digest(text: str) -> str:
    return (
        hashlib.sha256(text.encode(errors="replace")).hexdigest()[:6] if text.strip() else UNKNOWN
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _runs(pid: int, start: int) -> bool:
    """Whether a process of this process space runs, and is the one that started then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's: it runs
        pass
    now = _started(pid)
    return now is not None and (now == start or 0 in (now, start))


def _started(pid: int) -> int | None:
    """When a process started, in the kernel's own unit: 0 if not known, None if it has ended.

    A process that has ended and waits to be asked after has no start any more.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return 0  # another process space's /proc
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _lockable(path: Path) -> bool | None:
    """Whether nobody holds a lock on it; None where there are no locks."""
    if fcntl is None:
        return None
    handle = -1
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    finally:
        if handle >= 0:
            os.close(handle)
    return True


def _touched(path: Path) -> float:
    """When it or something right inside it was changed last, seconds since 1970."""
    times = [time.time()]
    with contextlib.suppress(OSError):
        times = [path.lstat().st_mtime]
        with os.scandir(path) as entries:
            times += [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
    return max(times)
