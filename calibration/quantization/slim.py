"""A bundle with one precision alone: what goes onto a device."""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path

from geomag_edge.disk.amend import copy_files
from geomag_edge.disk.staging import staged_folder
from geomag_edge.manifest import MANIFEST, Bundle

ALWAYS = ("tokenizer.json", "psc_tokenizer.json", "reference/")


def check_slim(bundle: Bundle, out: Path, force: bool) -> None:
    """Refuses a place that `write_slim` would refuse, before any work is done.

    Raises:
        OutputError: `out` may not be written.
    """
    with contextlib.suppress(_Checked), staged_folder(out, force, MANIFEST, [bundle.root]):
        raise _Checked


class _Checked(Exception):
    """Leaves `staged_folder` without an output."""


def write_slim(bundle: Bundle, precision: str, out: Path, force: bool = False) -> Bundle:
    """Copies a bundle with one of its precisions, checked file by file on the way.

    Calibration, other precisions and engines stay behind; parity and accuracy reports of the
    precision come along.

    Args:
        bundle: has the precision.
        precision: what to keep.
        out: the new bundle's folder.
        force: replace an earlier bundle there.

    Returns:
        The new bundle.

    Raises:
        BundleError: no such precision, or a damaged file.
        OutputError: `out` may not be written.
    """
    bundle.record("encoder", precision)  # refuses what is not there
    manifest = copy.deepcopy(bundle.manifest)
    manifest.graphs = {precision: manifest.graphs[precision]}
    manifest.calibration = None
    manifest.parity = {k: v for k, v in manifest.parity.items() if k == precision}
    manifest.accuracy = {k: v for k, v in manifest.accuracy.items() if k == precision}
    kept = bundle.graph_files(precision)
    kept |= {name for name in manifest.files if name.startswith(ALWAYS)}
    manifest.files = {name: sha for name, sha in manifest.files.items() if name in kept}
    place = manifest.checkpoint.get("path")
    if place is not None:
        checkpoint = os.path.normpath(bundle.root.resolve() / place)  # no link is followed
        manifest.checkpoint["path"] = os.path.relpath(checkpoint, out.resolve())
    with staged_folder(out, force, MANIFEST, [bundle.root]) as stage:
        copy_files(bundle, kept, stage)
        (stage / MANIFEST).write_text(manifest.to_text())
    return Bundle.open(out)
