"""Changing a part of a bundle: new files are staged inside it, and `bundle.json` goes last."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geomag_edge.bounds import check_inside
from geomag_edge.errors import BundleError, OutputError
from geomag_edge.manifest import MANIFEST, Bundle, sha256_of
from geomag_edge.staging import swap


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
        self.bundle = Bundle(bundle.root, manifest, {inside: stage})
        self._forget()

    def empty(self) -> None:
        """Forgets what is staged, to start again."""
        shutil.rmtree(self.stage)
        self.stage.mkdir()
        self.bundle = Bundle(self.bundle.root, self.bundle.manifest, {self.inside: self.stage})
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


@contextmanager
def amended(bundle: Bundle, inside: str) -> Iterator[Amendment]:
    """Replaces the folder `inside` of a bundle when the body ends without an error.

    Whatever ends the body otherwise (an error, Ctrl-C), the bundle is as it was. Files are moved
    before `bundle.json` is: a reader in between may find a checksum wrong and is told so, but never
    reads one file for another.

    Raises:
        BundleError: `inside` is no place inside the bundle, or a link leads out of it.
        OutputError: the bundle cannot be written, or somebody else changed it meanwhile.
    """
    before = bundle.manifest.to_json()
    out = bundle.root / check_inside(inside)
    try:
        if not out.resolve().is_relative_to(bundle.root.resolve()):
            raise BundleError(
                f"{out} is a link that leaves the bundle, so nothing is written there: copy the "
                "bundle with files in place of links (cp -rL)"
            )
        stage = Path(tempfile.mkdtemp(prefix=".amend.", dir=bundle.root))
    except OSError as e:
        raise OutputError(f"cannot write to {bundle.root}: {e.strerror}") from e
    try:
        change = Amendment(bundle, inside, stage)
        yield change
        change.list_files()
        os.chmod(stage, 0o755)  # mkdtemp keeps others out
        if Bundle.open(bundle.root).manifest.to_json() != before:
            raise OutputError(f"{bundle.root} was changed by another command meanwhile: try again")
        text = json.dumps(change.bundle.manifest.to_json(), indent=1) + "\n"
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=bundle.root, prefix=".amend.", delete=False
        ) as file:
            file.write(text)
        try:
            os.chmod(file.name, 0o644)
            out.parent.mkdir(parents=True, exist_ok=True)
            swap(stage, out)
            os.replace(file.name, bundle.root / MANIFEST)
        finally:
            Path(file.name).unlink(missing_ok=True)
    except OSError as e:
        raise OutputError(f"cannot write to {bundle.root}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)
