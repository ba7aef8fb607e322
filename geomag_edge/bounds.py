"""What a manifest from a stranger may say: plain words where paths are made of them, numbers that
no machine would choke on.

The limits are far above any model that a machine could run; they keep a bundle of a few bytes from
asking for gigabytes or for hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from geomag_edge.errors import BundleError

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

MOST = {
    "view_px": 4096, "grid": 512, "max_crops": 256, "windows": 512, "levels": 16,
    "global_grid": 512, "crops": 256, "crop_grid": 512,
    "context": 10_000_000, "psc_context": 65_536, "psc_pad_to": 65_536,
    "layers": 512, "kv_heads": 1024, "head_dim": 4096, "hidden": 65_536,
}  # fmt: skip
"""The largest value of each number that sizes something."""

MANIFEST_BYTES = 64_000_000
TOKENIZER_BYTES = 256_000_000
FILES = 10_000
TEMPLATE_CHARACTERS = 100_000


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


def check_numbers(**values: int | Iterable[int] | None) -> None:
    """Numbers of a manifest against `MOST`; each at least 0.

    Raises:
        BundleError: one is out of bounds.
    """
    for name, value in values.items():
        several = [value] if value is None or isinstance(value, int) else list(value)
        for number in several:
            if number is not None and not 0 <= number <= MOST[name]:
                raise BundleError(
                    f"the manifest says {name} {str(number)[:40]}, which is not between 0 and "
                    f"{MOST[name]}: this bundle is not opened"
                )
