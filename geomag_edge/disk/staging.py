"""Writing a folder, or a file, so that it is there whole or not at all, also when killed.

What is in the making lies beside its place as `.NAME.new-OWNER`; what makes way for it, where the
file system cannot exchange two folders in one step, as `.NAME.old-OWNER`. The next command that
writes there clears away what a killed one left (`sweep`); whoever looks for a NAME that was just
moved aside gets it back (`found_again`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from geomag_edge.disk.owners import Left, folder_in, is_cut, left_in, lock, name_for, short
from geomag_edge.errors import OutputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)
_LOST = (*NO_ROOM, errno.EIO, errno.EFBIG)
"""What `fsync` says of data that did not reach the disk; all else it says is that it cannot."""


@contextmanager
def staged_folder(
    out: Path, force: bool = False, marker: str | None = None, inputs: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yields a folder beside `out` that becomes `out` when the body ends without an error.

    Whatever ends the body (an error, a full disk, Ctrl-C), the half-written folder is removed
    and an existing `out` is left as it was. What a killed process leaves, the next one clears away.

    Args:
        out: the folder to be.
        force: replace `out` if it exists.
        marker: the file that every earlier output of this kind holds; `force` replaces no folder
            without it, since that is somebody's else.
        inputs: what the body reads; `out` must not hold it.

    Raises:
        OutputError: `out` exists and may not be replaced, or cannot be written.
    """
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{out} holds the input {path}: choose another place for the output")
    try:
        place = out.resolve()  # a link to a folder stays, and so does the meaning of "."
        found_again(place)
        there = place.exists()
    except (OSError, ValueError) as e:
        raise OutputError(f"cannot write to {str(out)[:200]}: {e}") from e
    if there and not force:
        raise OutputError(f"{out} exists: choose another place or give --force to replace it")
    if there and not place.is_dir():
        raise OutputError(f"{out} is a file: choose another place")
    if os.path.ismount(place):
        raise OutputError(f"{out} is a mount point, which cannot be replaced: name a folder in it")
    if marker and place.is_dir() and any(place.iterdir()) and not (place / marker).is_file():
        raise OutputError(
            f"{out} is not an earlier output of this command (it has no {marker}), so it is not "
            "replaced: choose another place"
        )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folders_above(place))
            sweep(place.parent)
            stage = stack.enter_context(folder_in(place.parent, place.name))
        except OSError as e:
            raise OutputError(f"cannot write to {out.parent}: {e.strerror}") from e
        try:
            yield stage
            settle(stage)
            swap(stage, place)
        except OSError as e:
            if e.errno in NO_ROOM:
                raise OutputError(f"the disk is full: nothing was written to {out}") from e
            if e.errno in _FORBIDDEN:
                raise OutputError(f"cannot write to {out}: {e.strerror}") from e
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST) and place.exists():
                raise OutputError(f"{out} was written by another command meanwhile") from e
            raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def folders_above(place: Path) -> Iterator[None]:
    """Makes the folders above a place; those of them that are empty in the end go again.

    Raises:
        OSError: they cannot be made.
    """
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def swap(stage: Path, out: Path) -> None:
    """Puts `stage` in the place of `out`: in one step where the file system can.

    The old `out` then lies in the place of `stage`, for the caller to remove, or is removed.
    Where it takes two steps, it lies beside as `.NAME.old-OWNER` between them.
    """
    if not os.path.lexists(out):
        os.rename(stage, out)
    elif not exchange(stage, out):
        old = out.parent / name_for(out.name, "old")
        try:
            os.rename(out, old)
            os.rename(stage, out)
        finally:  # Ctrl-C between the two must not cost the old folder
            if os.path.lexists(old) and not os.path.lexists(out):
                os.rename(old, out)
            else:
                shutil.rmtree(old, ignore_errors=True)
    sync(out.parent)


def exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step; False where the system or file system cannot do it."""
    rename = _renameat2()
    if rename is None:
        return False
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return not rename(here, os.fsencode(one), here, os.fsencode(other), both)


@cache
def _renameat2() -> Any:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # no Linux, or a C library that is too old
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p,
                         ctypes.c_uint)  # fmt: skip
    return function


def found_again(path: Path) -> Path:
    """`path`, put back if a killed command had moved it aside; where it lies if that is forbidden.

    Moments between two renames of a command that still runs are waited for.
    """
    for _ in range(20):
        if os.path.lexists(path):
            break
        aside = [x for x in left_in(path.parent, "old") if x.name == short(path.name)]
        if not aside:
            break
        if aside[-1].abandoned():
            with contextlib.suppress(OSError):
                os.rename(aside[-1].path, path)
                break
            return path if os.path.lexists(path) else aside[-1].path
        time.sleep(0.05)
    return path


def sweep(folder: Path) -> None:
    """Clears away what killed commands left in a folder; what has no successor is put back."""
    for left in left_in(folder, "new", "old"):
        if not left.may_go():
            continue
        with contextlib.suppress(OSError):
            if left.kind == "old" and not _has_successor(left):
                if not is_cut(left.name):  # else `found_again` puts it back, which knows the name
                    os.rename(left.path, folder / left.name)
                continue
            if left.path.is_dir():
                shutil.rmtree(left.path, ignore_errors=True)
            else:
                os.unlink(left.path)


def _has_successor(left: Left) -> bool:
    if not is_cut(left.name):
        return os.path.lexists(left.path.parent / left.name)
    return any(short(name) == left.name for name in os.listdir(left.path.parent))


def settle(folder: Path) -> None:
    """Waits until a folder's files are on the disk, so that no power cut can outrun their rename.

    Raises:
        OSError: they did not get there.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


def sync(path: Path) -> None:
    """Waits until a file or a folder's names are on the disk, where a file system can say so.

    Raises:
        OSError: a file's data did not get there.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno in _LOST:
            raise
    finally:
        os.close(handle)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yields a new, empty file beside `path` that takes its place when the body ends well.

    Raises:
        OSError: it cannot be written; an older file stays as it was.
    """
    sweep(path.parent)
    part = path.parent / name_for(path.name, "new")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        with lock(part):
            yield part
            sync(part)
            os.replace(part, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under its name only once it is whole; an older one is replaced.

    Raises:
        OutputError: cannot be written.
    """
    try:
        with staged_file(path) as part:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from e
