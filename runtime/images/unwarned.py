"""What rasterio warns of with every file, kept off while this package reads or writes one.

Python has one list of filters for all threads. `warnings.catch_warnings` puts a whole list back,
and a hook with it: where two threads do that in turns, or a program that listens to warnings itself
is one of them, the wrong one stays for ever. So what is added here is taken out alone.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, TransformWarning

_IGNORED = [
    ("ignore", None, kind, None, 0)
    for kind in (NotGeoreferencedWarning, NodataShadowWarning, TransformWarning)
]


@contextmanager
def unwarned() -> Iterator[None]:
    """Nothing is said of images without a place, masks beside nodata, and points without a place;
    in any number of threads at once."""
    filters = cast(list[Any], warnings.filters)
    filters[:0] = _IGNORED
    try:
        yield
    finally:
        for ignored in _IGNORED:  # in that list, though a program may have another by now
            with contextlib.suppress(ValueError):
                filters.remove(ignored)
