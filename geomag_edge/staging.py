"""Writing a folder, or a file, so that it is there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from geomag_edge.errors import OutputError


@contextmanager
def staged_folder(
    out: Path, force: bool = False, marker: str | None = None, inputs: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yields a folder beside `out` that becomes `out` when the body ends without an error.

    Whatever ends the body (an error, a full disk, Ctrl-C), the half-written folder is removed
    and an existing `out` is left as it was.

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
    if out.exists() and not force:
        raise OutputError(f"{out} exists: choose another place or give --force to replace it")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: choose another place")
    if marker and out.is_dir() and any(out.iterdir()) and not (out / marker).is_file():
        raise OutputError(
            f"{out} is not an earlier output of this command (it has no {marker}), so it is not "
            "replaced: choose another place"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as e:
        raise OutputError(f"cannot write to {out.parent}: {e.strerror}") from e
    try:
        yield stage
        os.chmod(stage, 0o755)  # mkdtemp keeps others out
        swap(stage, out)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"the disk is full: nothing was written to {out}") from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"cannot write to {out}: {e.strerror}") from e
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def swap(stage: Path, out: Path) -> None:
    """Puts `stage` in the place of `out`; an old `out` goes only when the new one is in place."""
    if not out.exists():
        stage.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    try:
        out.rename(old / "was")
        stage.rename(out)
    finally:  # Ctrl-C between the two must not cost the old folder
        if not out.exists():
            (old / "was").rename(out)
        shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file under its name only once it is whole; an older one is replaced.

    Raises:
        OutputError: cannot be written.
    """
    part: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        part.chmod(0o644)
        part.replace(path)
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
