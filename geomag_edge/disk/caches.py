"""The user's cache folder, and single files kept in it that are a help and never a need.

What is kept is whole or it is not there: a file carries the digest of its content, so one that a
power cut or a full disk has spoilt is as good as none. A cache that cannot be read or written
costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from geomag_edge.disk.staging import staged_file
from geomag_edge.disk.stored import read_bytes
from geomag_edge.errors import BundleError

_DIGEST_BYTES = 32


def cache_root() -> Path | None:
    """The user's cache folder of this program, by the platform's own convention; None where the
    user has none, as in a container whose user has no name and no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the convention says that others are not to be heeded
        return Path(given) / "geomag-edge"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "geomag-edge"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    parts = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    return home / parts.get(sys.platform, ".cache") / "geomag-edge"


def kept(name: str, most: int) -> bytes | None:
    """The content that `keep` wrote under a name; None where there is none, or none that is whole.

    Args:
        name: a path below the cache folder, such as `kernels/crop-sm_87.cubin`.
        most: bytes that such content may have.
    """
    root = cache_root()
    try:
        stored = root and read_bytes(root / name, most + _DIGEST_BYTES)
    except BundleError:
        return None
    if not stored:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def keep(name: str, content: bytes) -> bool:
    """Writes content for `kept`, whole or not at all; whether it could be written."""
    root = cache_root()
    if root is None:
        return False
    try:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with staged_file(root / name) as part:
            part.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError:
        return False
    return True
