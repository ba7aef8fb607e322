"""What a manifest from a stranger may say: plain words where paths are made of them, numbers that
no machine would choke on.

The limits are far above any model that a machine could run; they keep a bundle of a few bytes from
asking for gigabytes or for hours.
"""

from __future__ import annotations

import re

from geomag_edge.errors import BundleError

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

MOST = {
    "view_px": 4096, "grid": 512, "max_crops": 256, "windows": 512, "levels": 16,
    "global_grid": 512, "crops": 256, "crop_grid": 512,
    "context": 10_000_000, "psc_context": 65_536, "psc_pad_to": 65_536,
    "layers": 512, "kv_heads": 1024, "head_dim": 4096, "hidden": 65_536,
}  # fmt: skip
"""The largest value of each number that sizes something."""

VIEW_PIXELS = 2**26
"""Pixels of all crops of a query together: 0.8 GB as float32."""

WINDOWS = 2_000_000
"""Windows of all sizes that PSC scores on a view."""

MANIFEST_BYTES = 16_000_000
JSON_BYTES = 64_000_000
JSON_VALUES = 3_000_000
"""Values of one JSON text: short ones take thirty times their bytes in memory."""
LINE_BYTES = 1_000_000
LINES_BYTES = 256_000_000
LINES = 500_000
"""Of one line, and of all, of a set's questions; and how many lines are read."""
TOKENIZER_BYTES = 128_000_000
DEEPEST_JSON = 64
FILES = 10_000
PRECISIONS = 16
TEMPLATE_CHARACTERS = 20_000
TOKEN_ID = 100_000_000


def check_word(name: object, what: str) -> str:
    """A name that becomes part of a path: letters, digits and `. _ + -`, no more than 64.

    Raises:
        BundleError: anything else.
    """
    if not isinstance(name, str) or not _WORD.fullmatch(name):
        raise BundleError(
            f"the manifest calls {what} {str(name)[:80]!r}: a name here is letters, digits, '.', "
            "'_', '+' and '-', so this bundle is not opened"
        )
    return name


def check_inside(name: str) -> str:
    """A manifest's path: plain words between slashes, so it is inside the bundle on any system.

    Raises:
        BundleError: anything else.
    """
    if not isinstance(name, str) or not all(map(_WORD.fullmatch, name.split("/"))):
        raise BundleError(
            f"the manifest names {str(name)[:80]!r}, which is not a path inside the bundle"
        )
    return name
