"""A bundle whose change is committed, though its folder has not been moved into its place yet.

A change's commit is the one rename of `bundle.json`. Its new files lie then in the bundle's
`.DIGEST.go-OWNER`, where DIGEST is the new manifest's: whoever reads that manifest takes them from
there, and whoever reads an older one does not. What is left to do is moving the folder, which the
writer does at once, and if it is killed, whoever opens the bundle next and may write to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from geomag_edge.disk.bounds import check_inside
from geomag_edge.disk.owners import left_in, name_for
from geomag_edge.disk.staging import sweep, sync
from geomag_edge.errors import BundleError

KIND = "go"
_WAS = "was"
_SLASH = "%"
"""Stands for / in the name of a folder in the making: no name of a manifest may hold it."""


def digest_of(manifest: bytes) -> str:
    """Of the text of `bundle.json`, as it stands in names."""
    return hashlib.sha256(manifest).hexdigest()[:32]


def folder_name(inside: str) -> str:
    """The name of what is to become the folder `inside` of a bundle."""
    return inside.replace("/", _SLASH)


def pending(root: Path, manifest: bytes) -> dict[str, Path]:
    """Folders of the bundle whose files lie elsewhere: inside -> where.

    What a killed command committed is moved into its place first, and what it left else is cleared
    away, where this process may do that.

    Args:
        root: the bundle.
        manifest: the text of its `bundle.json`.
    """
    digest = digest_of(manifest)
    found: dict[str, Path] = {}
    for left in left_in(root, KIND):
        go = left.path
        if left.name != digest:
            if left.may_go():
                discard(go)
            continue
        if left.abandoned():
            own = root / name_for(digest, KIND)
            with contextlib.suppress(OSError):  # no right to write, or another one was first
                os.rename(go, own)
                go = own
                finish(root, go)
        found |= {inside: go / folder_name(inside) for inside in _insides(go)}
    sweep(root)
    return found


def finish(root: Path, go: Path) -> None:
    """Moves a committed change's folder into its place and removes what was there before.

    At every point between, the new folder is in one of the two places.

    Raises:
        OSError: it cannot be moved; it stays where it is, for the next one to try.
    """
    for inside in _insides(go):
        place = root / inside
        if not place.parent.resolve().is_relative_to(root.resolve()):
            continue  # through a link out of the bundle
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            shutil.rmtree(go / _WAS, ignore_errors=True)
            os.rename(place, go / _WAS)
        os.rename(go / folder_name(inside), place)
        sync(place.parent)
    discard(go)


def discard(go: Path) -> None:
    """Removes what was committed or never will be; a half-removed one is no change any more."""
    trash = go.parent / name_for("amend", "new")
    with contextlib.suppress(OSError):
        os.rename(go, trash)
        shutil.rmtree(trash, ignore_errors=True)


def _insides(go: Path) -> list[str]:
    """What a change replaces: names that were checked, since a bundle may be a stranger's."""
    found = []
    with contextlib.suppress(OSError):
        for entry in sorted(go.iterdir()):
            if entry.name == _WAS or entry.is_symlink() or not entry.is_dir():
                continue
            with contextlib.suppress(BundleError):
                found.append(check_inside(entry.name.replace(_SLASH, "/")))
    return found
