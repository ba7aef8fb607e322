"""A detached signature over `bundle.json`: who vouches for a bundle, beside what it holds.

The manifest holds every file's sha256, so a signature over its bytes is one over the whole bundle.
ed25519, 64 bytes as they are in `bundle.json.sig`; keys are files as OpenSSL (PEM) and OpenSSH
write them, so both are made, kept and checked with the tools that users have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.disk.bounds import MANIFEST_BYTES
from geomag_edge.disk.staging import write_whole
from geomag_edge.disk.stored import read_bytes
from geomag_edge.errors import BundleError, InputError, MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE = "bundle.json.sig"
SIGNATURE_BYTES = 64
KEY_BYTES = 100_000


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Reads a private key: PEM (`openssl genpkey -algorithm ed25519`) or OpenSSH's
    (`ssh-keygen -t ed25519`), without a passphrase.

    Raises:
        InputError: not readable, of another kind, or locked by a passphrase.
        MissingExtraError: no cryptography.
    """
    forms, ed25519 = _library()
    try:
        for key in _keys(path, (forms.load_pem_private_key, forms.load_ssh_private_key), None):
            if isinstance(key, ed25519.Ed25519PrivateKey):
                return key
    except TypeError as e:
        raise InputError(f"the key {path} is locked by a passphrase: give one without") from e
    raise InputError(
        f"{path} holds no private ed25519 key: make one with `openssl genpkey -algorithm ed25519` "
        "or `ssh-keygen -t ed25519`"
    )


def trusted_key(path: Path) -> Ed25519PublicKey:
    """Reads a public key: PEM (`openssl pkey -pubout`) or OpenSSH's line (`id_ed25519.pub`).

    Raises:
        InputError: not readable, or of another kind.
        MissingExtraError: no cryptography.
    """
    forms, ed25519 = _library()
    for key in _keys(path, (forms.load_pem_public_key, forms.load_ssh_public_key)):
        if isinstance(key, ed25519.Ed25519PublicKey):
            return key
    raise InputError(
        f"{path} holds no public ed25519 key: `openssl pkey -in KEY -pubout` and `ssh-keygen -y` "
        "give a private one's"
    )


def write_signature(manifest: Path, key: Ed25519PrivateKey) -> Path:
    """Signs a manifest as it lies there; an earlier signature is replaced.

    Raises:
        OutputError: cannot be written.
    """
    place = manifest.with_name(SIGNATURE)
    write_whole(place, key.sign(read_bytes(manifest, MANIFEST_BYTES)))
    return place


def check_signature(content: bytes, manifest: Path, trust: Path) -> None:
    """Refuses a manifest that the owner of a key has not signed.

    Args:
        content: the manifest's bytes, as they will be read.
        manifest: where they lie; the signature lies beside.
        trust: the public key's file.

    Raises:
        BundleError: no signature, another key's, or one of another manifest.
        InputError, MissingExtraError: see `trusted_key`.
    """
    key = trusted_key(trust)
    from cryptography.exceptions import InvalidSignature

    place = manifest.with_name(SIGNATURE)
    if not place.exists():
        raise BundleError(
            f"{manifest.parent} is not signed, so it is not trusted: whoever made it signs it with "
            "`geomag-edge sign`"
        )
    signature = read_bytes(place, SIGNATURE_BYTES)
    try:
        key.verify(signature, content)
    except InvalidSignature as e:
        raise BundleError(
            f"{manifest} is not what the owner of {trust} signed: another key did, or it was "
            "changed since; after quantize, calibrate, build or plan, `geomag-edge sign` it again"
        ) from e


def _library() -> tuple[Any, Any]:
    """cryptography's key formats and its ed25519."""
    try:
        import cryptography.exceptions  # noqa: F401  part of it may be gone, too
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as e:
        raise MissingExtraError(
            'signatures need the package cryptography: pip install "geomag-edge[sign]"'
        ) from e
    return serialization, ed25519


def _keys(path: Path, loads: Iterable[Callable[..., Any]], *password: None) -> Iterator[Any]:
    """What a file holds, in each of the forms that it can be read as."""
    from cryptography.exceptions import UnsupportedAlgorithm

    content = read_bytes(path, KEY_BYTES, InputError)
    for load in loads:
        with suppress(ValueError, UnsupportedAlgorithm):
            yield load(content, *password)
