"""JSON and arrays of a bundle: read within bounds, or refused in one line."""

import contextlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.disk.stored import json_lines, parse_json, read_arrays, read_bytes, read_json
from geomag_edge.errors import BundleError, CheckpointError

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
    "a name twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "a long name twice": b'{"%s": 1, "%s": 1}' % (b"k" * 9999, b"k" * 9999),
    "millions of values": b"[" + b"[]," * 3_100_000 + b"1]",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "two documents": b"{}{}",
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


PLACES = {
    "a folder": lambda p: p.mkdir(),
    "a pipe": os.mkfifo,
    "a link to a device": lambda p: p.symlink_to("/dev/zero"),
    "a link to itself": lambda p: p.symlink_to(p),
}


@pytest.mark.parametrize(
    "read", [read_json, read_arrays, lambda p: list(json_lines(p, BundleError))]
)
@pytest.mark.parametrize("case", PLACES)
def test_only_a_regular_file_is_read_and_nothing_waited_for(case, read, tmp_path):
    PLACES[case](tmp_path / "x")
    with pytest.raises(BundleError, match="cannot read"):
        read(tmp_path / "x")


@pytest.mark.parametrize("name", ["\0", "a" * 300, "a/" * 3000 + "b"])
def test_a_name_that_no_file_can_have_is_a_missing_file(name, tmp_path):
    with pytest.raises(BundleError, match="cannot read"):
        read_json(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    (tmp_path / "x").write_text("{}")
    (tmp_path / "x").chmod(0)
    with pytest.raises(BundleError, match="Permission denied"):
        read_json(tmp_path / "x")


def test_an_error_is_of_the_kind_that_was_asked_for(tmp_path):
    (tmp_path / "x").write_text("{")
    for read in (read_json, read_arrays):
        with pytest.raises(CheckpointError):
            read(tmp_path / "x", error=CheckpointError)


def test_an_endless_length_is_read_where_it_may_be(tmp_path):
    """As tokenizers write it."""
    (tmp_path / "x").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert read_json(tmp_path / "x", bits=128)["model_max_length"] >= 1e30
    with pytest.raises(BundleError, match="more than 64 bits"):
        read_json(tmp_path / "x")


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text('{}[]",:\\ue19dDnN-+.IaftlTE \x00', max_size=60))
def test_any_bytes_are_read_or_refused_in_a_short_line(junk):
    value = refusal = None
    try:
        value = parse_json(junk.encode() if isinstance(junk, str) else junk, "x.json")
    except BundleError as e:
        refusal = str(e)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    assert refusal is None or (len(refusal) < 200 and refusal.isprintable())


def npz(path, compression=zipfile.ZIP_STORED, **files):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array):
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


@settings(max_examples=300)
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


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda x: st.lists(x) | st.dictionaries(st.text(), x)))  # fmt: skip
def test_json_that_is_read_can_be_written_again(value):
    try:
        read = parse_json(json.dumps(value).encode(), "x.json")
    except BundleError:
        return
    json.dumps(read, allow_nan=False, ensure_ascii=False).encode()


def test_lines_are_numbered_and_empty_ones_left_out(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf\r\n1\r\n\n \n[2]")
    assert list(json_lines(tmp_path / "x", BundleError)) == [(2, 1), (5, [2])]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"1\n" + b"9" * 5000, "line 2 is not readable JSON: a number of more than 64 bits"),
        (b"1\n\xff", "line 2 is not readable JSON: not UTF-8"),
        ("1\n2".encode("utf-16"), "line 1 is not readable JSON: not UTF-8"),
        (b"1\n" + b" " * 1_000_001, "line 2 has more than 1000000 bytes"),
        (b"1\r2", "line 1 is not readable JSON: Extra data"),
        (b"1\n\xef\xbb\xbf2\n\0", "line 3 is not readable JSON"),
    ],
)
def test_the_line_that_is_wrong_is_named(raw, message, tmp_path):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(BundleError, match=message):
        list(json_lines(tmp_path / "x", BundleError))


def test_a_file_of_gigabytes_is_not_split_into_lines(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(3_000_000_000)
    with pytest.raises(BundleError, match="3000000000 bytes"):
        list(json_lines(tmp_path / "x", BundleError))
