"""JSON and arrays of a bundle: read within bounds, or refused in one line."""

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.errors import BundleError
from geomag_edge.stored import parse_json, read_arrays, read_bytes, read_json

HOSTILE = {
    "a number of many digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a number of 65 bits": b'{"a": 36893488147419103232}',
    "infinite": b'{"a": 1e999}',
    "no number": b'{"a": NaN}',
    "half a pair": b'{"a": "\\ud800"}',
    "half a pair as a name": b'{"\\ud800": 1}',
    "no UTF-8": b'{"a": "\xff"}',
    "lists in lists": b"[" * 1_000_000,
    "records in records": b'{"a":' * 70 + b"1" + b"}" * 70,
    "nothing": b"",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_json_that_could_not_be_kept_or_shown_is_refused(what):
    with pytest.raises(BundleError, match=r"x\.json") as refusal:
        parse_json(HOSTILE[what], "x.json")
    assert len(str(refusal.value)) < 300


def test_a_file_that_is_larger_than_such_a_file_is_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(3 << 30)  # sparse: it has no pages
    with pytest.raises(BundleError, match="it is not read"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_cannot_be_read_is_one_line(tmp_path, name):
    with pytest.raises(BundleError, match="cannot read"):
        read_bytes(tmp_path / name, 1_000_000)


def npz(path, compression=zipfile.ZIP_STORED, **files):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array, **header):
    text = io.BytesIO()
    np.save(text, array)
    return text.getvalue()


def headed(said, body=b""):
    """An array's bytes with a header of one's own."""
    line = repr(said).encode() if isinstance(said, dict) else said
    line += b" " * (-(len(line) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + body


SAYS = {"descr": "<f4", "fortran_order": False, "shape": (2,)}


def test_what_numpy_wrote_is_read_whole(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.zeros((0, 3), bool),
              "c": np.asfortranarray(np.eye(3)), "d": np.array(3)}  # fmt: skip
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    found = read_arrays(tmp_path / "x.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "content",
    [
        headed(SAYS | {"shape": (2**40,)}, bytes(8)),
        headed(SAYS | {"shape": (2**62, 2**62)}, bytes(8)),
        headed(SAYS | {"shape": (-2,)}, bytes(8)),
        headed(SAYS | {"descr": "|S0", "shape": (2**50,)}),
        headed(SAYS | {"descr": "|O"}, b"\x80\x04N."),
        headed(SAYS | {"descr": "<U2"}, bytes(16)),
        headed(SAYS | {"descr": [("x", "<f4")]}, bytes(8)),
        headed(SAYS | {"shape": 7}, bytes(8)),
        headed(b"(" * 9000),
        headed(b"import os"),
        headed(SAYS, bytes(9)),
        b"",
        b"\x93NUMPY\x09\x00",
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path, content):
    with pytest.raises(BundleError, match=r"x\.npz is damaged"):
        read_arrays(npz(tmp_path / "x.npz", a=content))


def test_nothing_is_unpacked(tmp_path):
    """A few kilobytes may stand for gigabytes."""
    packed = npz(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, a=npy(np.zeros(1_000_000)))
    with pytest.raises(BundleError, match="compressed"):
        read_arrays(packed)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    path = npz(tmp_path / "x.npz", a=npy(np.zeros(1000)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist *= 50
        archive._didModify = True
    with pytest.raises(BundleError, match="overlap"):
        read_arrays(path)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_whatever_is_changed_in_a_file_of_arrays_it_is_read_or_refused(tmp_path_factory, data):
    text = io.BytesIO()
    np.savez(text, allow_pickle=False, a=np.arange(3), b=np.ones((2, 2), np.float32))
    content = bytearray(text.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))]))
    found = {}
    with contextlib.suppress(BundleError):
        found = read_arrays(path)
    assert all(array.dtype.kind in "biuf" for array in found.values())


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda x: st.lists(x) | st.dictionaries(st.text(), x)))  # fmt: skip
def test_json_that_is_read_can_be_written_again(value):
    try:
        read = parse_json(json.dumps(value).encode(), "x.json")
    except BundleError:
        return
    json.dumps(read, allow_nan=False, ensure_ascii=False).encode()
