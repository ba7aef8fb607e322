"""One digest for a checkpoint's weights and config, so that a bundle knows where it came from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from geomag_edge.errors import CheckpointError
from geomag_edge.manifest import sha256_of
from geomag_edge.model.loading.weights import reason


def checkpoint_digest(path: Path) -> str:
    """sha256 over the names and sha256 of config.json and every safetensors file.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("*.safetensors")]):
        try:
            digest.update(f"{file.name} {sha256_of(file)}\n".encode())
        except (OSError, UnicodeEncodeError) as e:
            raise CheckpointError(f"cannot read {file}: {reason(e)}; copy it again") from e
    return digest.hexdigest()
