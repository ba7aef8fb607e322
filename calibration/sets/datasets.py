"""Opening a set by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from geomag_edge.errors import DatasetError

from .folder import FolderSet
from .items import Dataset
from .rendered import PREFIX, RenderedSet


def open_dataset(
    source: str | Path,
    limit: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Dataset:
    """Opens a set, checked from end to end: what is wrong shows before hours are spent on it.

    Args:
        source: `scenes:SEED:COUNT[:SIZE]`, or a folder as docs/DATA.md describes it.
        limit: only the first so many questions.
        progress: called with each picture's name while a folder is checked.

    Raises:
        DatasetError: malformed, empty, missing files, masks of the wrong size.
        ImageError: a file of it cannot be read.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"a limit of {limit} questions leaves nothing: give 1 or more")
    if str(source).startswith(PREFIX):
        return RenderedSet.parse(str(source), limit)
    return FolderSet.open(Path(source), limit, progress)
