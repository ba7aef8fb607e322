"""A signed bundle is opened by who trusts the key, and any bit that changed is found."""

import json
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from geomag_edge import Pipeline
from geomag_edge.cli import main
from geomag_edge.disk.signature import SIGNATURE, signing_key, trusted_key
from geomag_edge.errors import BundleError, InputError, MissingExtraError
from geomag_edge.manifest import Bundle

from .test_manifest import data, golden  # noqa: F401

PEM, SSH = forms.Encoding.PEM, forms.Encoding.OpenSSH


def private(key, kind, secret=None):
    lock = forms.BestAvailableEncryption(secret) if secret else forms.NoEncryption()
    form = forms.PrivateFormat.OpenSSH if kind == "ssh" else forms.PrivateFormat.PKCS8
    return key.private_bytes(PEM, form, lock)


def public(key, kind):
    form = forms.PublicFormat.OpenSSH if kind == "ssh" else forms.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(SSH if kind == "ssh" else PEM, form)


@pytest.fixture(scope="module", params=["pem", "ssh"])
def keys(request, tmp_path_factory):
    """A private and a public key's file, as OpenSSL or OpenSSH writes them."""
    folder, key = tmp_path_factory.mktemp("keys"), ed25519.Ed25519PrivateKey.generate()
    (folder / "key").write_bytes(private(key, request.param))
    (folder / "key.pub").write_bytes(public(key, request.param))
    return folder / "key", folder / "key.pub"


@pytest.fixture
def signed(golden, keys):  # noqa: F811
    assert main(["sign", str(golden), "--key", str(keys[0])]) == 0
    return golden


def test_a_signed_bundle_opens_for_who_trusts_the_key(signed, keys):
    assert Bundle.open(signed, keys[1]).file("tokenizer.json")
    assert Bundle.open(signed, str(keys[1])).manifest == Bundle.open(signed).manifest
    assert main(["inspect", str(signed), "--trust", str(keys[1])]) == 0
    assert (signed / SIGNATURE).stat().st_size == 64


def test_an_unsigned_bundle_is_refused(golden, keys):  # noqa: F811
    with pytest.raises(BundleError, match="is not signed"):
        Bundle.open(golden, keys[1])
    assert main(["inspect", str(golden), "--trust", str(keys[1])]) == 2


def test_another_key_is_refused(signed, tmp_path):
    (tmp_path / "other.pub").write_bytes(public(ed25519.Ed25519PrivateKey.generate(), "ssh"))
    with pytest.raises(BundleError, match="not what the owner of"):
        Bundle.open(signed, tmp_path / "other.pub")


def test_every_flipped_bit_of_the_signature_is_found(signed, keys):
    good = (signed / SIGNATURE).read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (signed / SIGNATURE).write_bytes(bytes(bad))
        with pytest.raises(BundleError, match="not what the owner of"):
            Bundle.open(signed, keys[1])


def test_every_flipped_bit_of_the_manifest_is_found(signed, keys):
    good = (signed / "bundle.json").read_bytes()
    for bit in range(0, 8 * len(good), 37):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (signed / "bundle.json").write_bytes(bytes(bad))
        with pytest.raises(BundleError, match="not what the owner of"):
            Bundle.open(signed, keys[1])


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"x" * 65, b"x" * 10**6])
def test_a_signature_of_another_length_is_refused(signed, keys, content):
    (signed / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(signed, keys[1])


def test_a_changed_bundle_is_to_be_signed_again(signed, keys):
    stored = json.loads((signed / "bundle.json").read_text())
    stored["psc"]["levels"] = 1
    (signed / "bundle.json").write_text(json.dumps(stored))
    with pytest.raises(BundleError, match="`geomag-edge sign`"):
        Bundle.open(signed, keys[1])
    assert main(["sign", str(signed), "--key", str(keys[0])]) == 0
    assert Bundle.open(signed, keys[1]).manifest.psc.levels == 1


def test_nothing_is_signed_that_fails_its_check(golden, keys):  # noqa: F811
    (golden / "tokenizer.json").write_bytes(b"another")
    assert main(["sign", str(golden), "--key", str(keys[0])]) == 2
    assert not (golden / SIGNATURE).exists()


def test_a_key_of_another_kind_is_refused(keys, tmp_path):
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa").write_bytes(private(other, "pem"))
    (tmp_path / "rsa.pub").write_bytes(public(other, "ssh"))
    (tmp_path / "junk").write_bytes(b"\xffjunk")
    for path in (tmp_path / "rsa", tmp_path / "junk", keys[1], tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=r"no private ed25519 key|cannot read"):
            signing_key(path)
    for path in (tmp_path / "rsa.pub", tmp_path / "junk", keys[0], tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"no public ed25519 key|cannot read"):
            trusted_key(path)


@pytest.mark.parametrize("kind", ["pem", "ssh"])
def test_a_key_with_a_passphrase_says_so(tmp_path, kind):
    if kind == "ssh":
        pytest.importorskip("bcrypt")
    locked = private(ed25519.Ed25519PrivateKey.generate(), kind, b"secret")
    (tmp_path / "key").write_bytes(locked)
    with pytest.raises(InputError, match="locked by a passphrase"):
        signing_key(tmp_path / "key")


def test_without_cryptography_the_extra_is_named(signed, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"geomag-edge\[sign\]"):
        Bundle.open(signed, keys[1])
    assert Bundle.open(signed)


def test_a_pipeline_trusts_what_it_opens_itself(signed, keys, tmp_path):
    (tmp_path / "other.pub").write_bytes(public(ed25519.Ed25519PrivateKey.generate(), "ssh"))
    with pytest.raises(BundleError, match="not what the owner of"):
        Pipeline.load(signed, trust=tmp_path / "other.pub")
    with pytest.raises(InputError, match="open already"):
        Pipeline.load(Bundle.open(signed), trust=keys[1])


OPENERS = ["run", "verify", "inspect", "eval", "bench", "plan", "calibrate", "quantize", "build",
           "sign"]  # fmt: skip


@pytest.mark.parametrize("command", OPENERS)
def test_every_command_that_opens_a_bundle_takes_trust(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--trust KEY" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_openssl_makes_keys_and_checks_signatures(golden, tmp_path):  # noqa: F811
    def openssl(*words):
        done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key.pem")
    openssl("pkey", "-in", tmp_path / "key.pem", "-pubout", "-out", tmp_path / "pub.pem")
    assert main(["sign", str(golden), "--key", str(tmp_path / "key.pem")]) == 0
    assert Bundle.open(golden, tmp_path / "pub.pem")
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "pub.pem", "-rawin",
            "-in", golden / "bundle.json", "-sigfile", golden / SIGNATURE)  # fmt: skip
