"""An answer's files appear in a folder together, and take what belonged to an earlier answer along.

A folder that is new is renamed into its place. One that is there already is exchanged, in one
step, for one that holds the new answer and links to whatever else was in it. Where that cannot be
(no exchange or no links here, folders inside, a mount point, somebody at work in it), file after
file is moved: answer.json goes out first and comes in last, so while it is there its answer is
whole; a killed move is undone by the next answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from geomag_edge.disk import staging
from geomag_edge.disk.owners import folder_in, left_in, lock, name_for
from geomag_edge.disk.staging import folders_above, found_again, settle, sweep, sync
from geomag_edge.errors import OutputError

ANSWER = "answer.json"
FILES = (ANSWER, "masks.tif", "masks.geojson", "overlay.png")

_SIDECAR = re.compile(
    r"(masks\.tif|overlay\.png)(\.(ovr|msk))*(\.(aux\.xml|vat\.dbf|vat\.cpg|xml))?"
    r"|masks\.(tfw|tifw|tiffw|wld|prj|aux|rrd|rpb|tab)|masks_rpc\.txt"
    r"|overlay\.(pgw|pngw|wld|prj|aux|rrd)",
    re.IGNORECASE,
)
"""What GDAL and others keep beside a raster of these names and read again as a part of it."""

_PLAN = "moving.json"
_WAS = "was"
_KIND = "move"


def is_ours(name: str) -> bool:
    """Whether a file of this name belongs to an answer, or to a program's view of it."""
    return name in FILES or _SIDECAR.fullmatch(name) is not None


def _parted(folder: Path) -> tuple[list[str], list[str]]:
    """Names in a folder: an earlier answer's, and others; a .prj beside a .shp is that one's, and
    folders are nobody's answer."""
    with os.scandir(folder) as entries:
        names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    shapes = {name.lower()[:-4] for name in names if name.lower().endswith(".shp")}
    ours = [n for n in names if is_ours(n) and not (n[-4:] == ".prj" and n[:-4].lower() in shapes)]
    ours = [name for name in ours if not names[name]]
    return ours, [name for name in names if name not in ours]


def check_inputs(out: Path, files: Iterable[str]) -> None:
    """Sees that no answer takes the place of the image that it is about.

    Args:
        out: where the answer is to be.
        files: what the image is read from.

    Raises:
        OutputError: one of them lies there under a name of an answer's.
    """
    for path in map(Path, files):
        real = path.resolve()
        for name, folder in ((path.name, path.parent.resolve()), (real.name, real.parent)):
            if is_ours(name) and folder == out.resolve():
                raise OutputError(
                    f"the answer's {name} would replace the image's own file {path}: choose "
                    "another folder"
                )


@contextmanager
def placed(out: Path) -> Iterator[Path]:
    """Yields a folder to write an answer into, which `out` shows when the body ends well.

    Args:
        out: is made if it is not there; of what it holds, an earlier answer alone is replaced.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    place = out.resolve()
    found_again(place)
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    if place.is_dir():
        _undo_killed(place)
        sweep(place)
    with contextlib.ExitStack() as stack:
        stack.enter_context(folders_above(place))
        whole = not place.exists() or _is_plain(place)
        parent, name = (place.parent, place.name) if whole else (place, "answer")
        sweep(place.parent)
        stage = stack.enter_context(folder_in(parent, name))
        try:
            yield stage
            settle(stage)
            if not (whole and _swapped(stage, place)):
                with lock(place, wait=True):  # answers to one folder come one after the other
                    _move(stage, place)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _is_plain(place: Path) -> bool:
    """Whether a folder may be exchanged for another, and nobody notices more than an answer."""
    if os.path.ismount(place) or not os.access(place.parent, os.W_OK):
        return False
    if hasattr(os, "geteuid") and place.stat().st_uid != os.geteuid():
        return False
    with os.scandir(place) as entries:
        if any(entry.is_dir(follow_symlinks=False) for entry in entries):
            return False
    return not _is_worked_in(place)


def _is_worked_in(place: Path) -> bool:
    """Whether a process, such as a shell, has it for its working folder: it would lose sight."""
    with contextlib.suppress(OSError):  # this process's own may be gone
        if Path.cwd() == place:
            return True
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd") == str(place):
                return True
    return False


def _swapped(stage: Path, place: Path) -> bool:
    """Puts the stage in the folder's place at once; False where that cannot be, nothing changed."""
    if not os.path.lexists(place):
        try:
            os.rename(stage, place)
            sync(place.parent)
            return True
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another answer was first
                raise
    others = _linked(stage, place)
    if others is None or not staging.exchange(stage, place):
        for name in others or ():
            os.unlink(stage / name)
        return False
    _keep_late(stage, place, others)
    sync(place.parent)
    return True


def _linked(stage: Path, place: Path) -> list[str] | None:
    """Links what is not an answer's into the stage: its names, or None where links are refused."""
    others: list[str] = []
    try:
        for name in _parted(place)[1]:
            os.link(place / name, stage / name, follow_symlinks=False)
            others.append(name)
    except (OSError, NotImplementedError):
        for name in others:
            os.unlink(stage / name)
        return None
    with contextlib.suppress(OSError):  # group, rights and labels, as far as they can be set
        os.chown(stage, -1, place.stat().st_gid)
        shutil.copystat(place, stage)
        os.utime(stage)
    return others


def _keep_late(old: Path, place: Path, linked: list[str]) -> None:
    """Carries over what others wrote into the old folder in the moments before it went."""
    for name in _parted(old)[1]:
        if name not in linked or not _same(old / name, place / name):
            os.replace(old / name, place / name)


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return True  # gone from the new folder meanwhile


def _move(stage: Path, place: Path) -> None:
    """Moves file after file, the answer out first and in last; undone if anything fails."""
    new = sorted(os.listdir(stage), key=lambda name: name == ANSWER)
    old = sorted(_parted(place)[0], key=lambda name: name != ANSWER)
    move = place / name_for("answer", _KIND)
    os.rename(stage, move)
    try:
        (move / _WAS).mkdir()
        (move / _PLAN).write_text(json.dumps({"new": new, "old": old}), encoding="utf-8")
        sync(move / _PLAN)
        sync(move)
        for name in old:
            os.rename(place / name, move / _WAS / name)
        for name in new:
            os.rename(move / name, place / name)
        sync(place)
    finally:
        _undo(move, place)


def _undo_killed(place: Path) -> None:
    for left in left_in(place, _KIND):
        if left.may_go():
            _undo(left.path, place)


def _undo(move: Path, place: Path) -> None:
    """Ends a move: brings the earlier answer back unless the new one is there whole."""
    new, old = _planned(move)
    if (move / ANSWER).exists():
        for name in new:
            if name not in old and not (move / name).exists():
                (place / name).unlink(missing_ok=True)
        for name in reversed(old):  # the answer last
            if (move / _WAS / name).exists():
                os.replace(move / _WAS / name, place / name)
    shutil.rmtree(move, ignore_errors=True)


def _planned(move: Path) -> tuple[list[str], list[str]]:
    """Names of the new and the earlier answer; none where no file was moved yet."""
    try:
        plan = json.loads((move / _PLAN).read_text(encoding="utf-8"))
        new, old = ([str(n) for n in plan[kind] if is_ours(str(n))] for kind in ("new", "old"))
    except (OSError, ValueError, LookupError, TypeError):
        return [], []
    return new, old
