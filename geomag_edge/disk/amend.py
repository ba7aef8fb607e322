"""Changing a part of a bundle: new files are staged inside it, and `bundle.json` is the commit."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geomag_edge.disk.bounds import check_inside
from geomag_edge.disk.owners import folder_in, lock, name_for
from geomag_edge.disk.pending import KIND, digest_of, discard, finish, folder_name
from geomag_edge.disk.staging import settle, sync, write_whole
from geomag_edge.errors import BundleError, OutputError
from geomag_edge.manifest import MANIFEST, Bundle, Manifest, sha256_of


class Amendment:
    """A change in the making.

    Attributes:
        stage: an empty folder to fill; it becomes `inside`.
        inside: the folder's place in the bundle, such as `onnx/int8`.
        bundle: the bundle as it will be: edit `bundle.manifest`, and open staged files through it.
    """

    def __init__(self, bundle: Bundle, inside: str, stage: Path):
        self.inside, self.stage = inside, stage
        manifest = copy.deepcopy(bundle.manifest)
        self.bundle = Bundle(bundle.root, manifest, {**bundle.staged, inside: stage})
        self._forget()

    def empty(self) -> None:
        """Forgets what is staged, to start again."""
        shutil.rmtree(self.stage)
        self.stage.mkdir()
        self.bundle = Bundle(self.bundle.root, self.bundle.manifest, self.bundle.staged)
        self._forget()

    def _forget(self) -> None:
        files = self.bundle.manifest.files
        self.bundle.manifest.files = {
            name: sha for name, sha in files.items() if not name.startswith(f"{self.inside}/")
        }

    def list_files(self) -> None:
        """Puts what is staged into the manifest's `files`."""
        for path in sorted(self.stage.rglob("*")):
            if path.is_file():
                name = f"{self.inside}/{path.relative_to(self.stage).as_posix()}"
                self.bundle.manifest.files[name] = sha256_of(path)


def copy_files(bundle: Bundle, names: Iterable[str], out: Path) -> None:
    """Copies some of a bundle's files into a folder, each checked; nothing that lies beside them.

    Raises:
        BundleError: a file fails its check.
        OSError: it cannot be written.
    """
    for name in sorted(names):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(name), out / name)


def copy_bundle(bundle: Bundle, out: Path) -> None:
    """Copies a bundle as its manifest lists it, but for engines that were removed by hand.

    Raises:
        BundleError, OSError: see `copy_files`.
    """
    gone = {n for n in bundle.manifest.files
            if n.startswith("engines/") and not bundle.place(n).exists()}  # fmt: skip
    copy_files(bundle, bundle.manifest.files.keys() - gone, out)
    (out / MANIFEST).write_bytes(bundle.text)


@contextmanager
def amended(bundle: Bundle, inside: str) -> Iterator[Amendment]:
    """Replaces the folder `inside` of a bundle when the body ends without an error.

    Whatever ends the body otherwise (an error, Ctrl-C, a kill), the bundle is as it was: the change
    is committed by the one rename of `bundle.json` (`geomag_edge.disk.pending`). A reader that
    opened the bundle before may find a checksum wrong and is told so, but never reads one file for
    another.

    Raises:
        BundleError: `inside` is no place inside the bundle, or a link leads out of it.
        OutputError: the bundle cannot be written, or somebody else changed it meanwhile.
    """
    before, root = bundle.manifest.to_json(), bundle.root
    out = root / check_inside(inside)
    try:
        if not out.resolve().is_relative_to(root.resolve()):
            raise BundleError(
                f"{out} is a link that leaves the bundle, so nothing is written there: copy the "
                "bundle with files in place of links (cp -rL)"
            )
        with folder_in(root, "amend") as stage:
            try:
                folder = stage / folder_name(inside)
                os.mkdir(folder)
                change = Amendment(bundle, inside, folder)
                yield change
                change.list_files()
                settle(stage)
                _commit(root, stage, change.bundle.manifest, before)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    except OSError as e:
        raise OutputError(f"cannot write to {root}: {e.strerror or e}") from e


def _commit(root: Path, stage: Path, manifest: Manifest, before: dict[str, Any]) -> None:
    """Makes the stage a part of the bundle, unless that is another bundle than before."""
    text = manifest.to_text().encode()
    go = root / name_for(digest_of(text), KIND)
    write_whole(stage / MANIFEST, text)
    with lock(root, wait=True):  # two at once: one sees what the other has written
        if Bundle.open(root).manifest.to_json() != before:
            raise OutputError(f"{root} was changed by another command meanwhile: try again")
        try:
            os.rename(stage, go)
            os.replace(go / MANIFEST, root / MANIFEST)
            sync(root)
            finish(root, go)
        except OSError:
            if Bundle.open(root).text != text:
                raise
            # committed: what is left to move is moved when the bundle is opened next
        finally:
            if (go / MANIFEST).exists():
                discard(go)
