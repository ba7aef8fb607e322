"""Text from outside becomes one harmless line, whatever it holds."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.errors import BundleError, GeoMagError, explained
from geomag_edge.printing import LINE_CHARS, one_line, plain, printable, shortened

ANY = st.text(st.characters(), max_size=400)
"""Surrogates, controls and unassigned characters included."""


@given(ANY)
def test_nothing_acts_or_hides_in_a_line(text):
    line = one_line(text)
    assert len(line) <= LINE_CHARS
    assert len(line.splitlines()) <= 1
    line.encode()  # no half of a character
    for character in line:
        kind = unicodedata.category(character)
        assert kind not in {"Cc", "Cs", "Zl", "Zp"}
        assert kind != "Cf" or character in "\u200c\u200d"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Cádiz Häfen 港口 порт", "Cádiz Häfen 港口 порт"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("gnp.\u202etif", "gnp.\\u202etif"),
        ("sc\udce9ne.tif", "sc\\xe9ne.tif"),
        ("\ud800", "\\ud800"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("\U000e0041tag", "\\U000e0041tag"),
    ],
)
def test_letters_of_any_script_stay_and_marks_are_spelt_out(text, shown):
    assert printable(text) == shown


def test_what_may_stay_stays():
    assert printable("a\n\tb\rc", keep="\n\t") == "a\n\tb\\rc".replace("\\r", "\\x0d")


@pytest.mark.parametrize("value", ["x" * 100_000, "a b " * 25_000, "/".join(["part"] * 20_000)])
def test_cause_and_remedy_remain_around_a_value_of_any_length(value):
    line = one_line(f"unknown budget {value!r}: give a level, or G+KxC such as 12+4x8")
    assert len(line) <= LINE_CHARS
    assert line.startswith("unknown budget '")
    assert line.endswith("give a level, or G+KxC such as 12+4x8")


def test_a_long_path_is_shown_whole_where_there_is_room():
    path = "/data/" + "very-long-folder-name/" * 8 + "scene.tif"
    assert path in one_line(f"no image at {path}: check the path")


def test_spaces_of_a_table_stay():
    assert shortened("a     b", 10) == "a     b"


@given(st.recursive(ANY | st.floats() | st.none(), lambda x: st.dictionaries(ANY, x), max_leaves=5))
def test_any_data_becomes_json_that_any_reader_takes(data):
    text = json.dumps(plain(data), allow_nan=False, ensure_ascii=False)
    text.encode()


@given(ANY)
def test_an_error_of_ours_is_a_line_wherever_it_is_printed(text):
    assert str(BundleError(text)) == one_line(text)


class Panic(BaseException):
    """As Rust's, which are no `Exception`."""


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PermissionError(13, "x", "secret.json"), 2, "secret.json: Permission denied"),
        (OSError(36, "x", "n" * 5000), 2, "shorter name"),
        (OSError(28, "x"), 2, "No space left"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 2, "set TMPDIR"),
        (OSError(40, "x", "link"), 2, "circle"),
        (IsADirectoryError(21, "x", "folder"), 2, "Is a directory"),
        (OSError("cannot read the thing"), 2, "cannot read the thing"),
        (ValueError("embedded null byte"), 2, "null character"),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), 2, "UTF-8"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested"),
        (ImportError("No module named 'rasterio'"), 2, "rasterio'; install geomag-edge again"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("can't start new thread"), 2, "ulimit -u"),
        (GeoMagError("made of our own"), 1, "made of our own"),
        (KeyError("name"), 1, "internal error: 'name' (run again with --debug"),
        (Panic("called `Option::unwrap()` on a `None` value\n"), 1, "internal error: called"),
        (AssertionError(), 1, "AssertionError"),
    ],
)
def test_whatever_is_raised_has_its_line_and_code(error, code, says):
    told, found = explained(error)
    assert found == code
    assert says in told
    assert told == one_line(told)
    assert "Error:" not in told


def test_an_internal_error_names_its_place():
    with pytest.raises(AttributeError) as found:
        printable(None)
    assert "in geomag_edge.printing, line" in explained(found.value)[0]
