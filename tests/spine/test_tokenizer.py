"""A tokenizer file from a stranger: it works within bounds or is refused in one line."""

import contextlib
import copy
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.disk.tokenizer import GROWTH, read_tokenizer, tokenizing
from geomag_edge.errors import BundleError

from .test_manifest_fields import places, put


@pytest.fixture(scope="module")
def stored(tokenizers):
    """The two tokenizers' files, parsed; the second has a template."""
    return [json.loads(t.to_str()) for t in tokenizers]


def written(folder, data):
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder / "tokenizer.json"


def grows(*contents):
    rules = [{"type": "Replace", "pattern": {"String": "a"}, "content": c} for c in contents]
    return {"normalizer": {"type": "Sequence", "normalizers": rules}}


TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
A = {"Sequence": {"id": "A", "type_id": 0}}
SPECIAL = {"SpecialToken": {"id": "[X]", "type_id": 0}}

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

HOSTILE = {
    "1 to a billion": grows(*["a" * 10] * 9),
    "1 to a million": grows("a" * 1000, "a" * 1000),
    "one long content": grows("a" * 2000),
    "the decoder too": {"decoder": grows("b" * 999)["normalizer"]["normalizers"][0]},
    "an expression that matches nothing": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "b" * 200}
    },
    "a special token that is not there": {"post_processor": TEMPLATE | {"single": [A, SPECIAL]}},
    "the text a thousand times": {"post_processor": TEMPLATE | {"single": [A] * 1000}},
    "twice and twice again": {
        "post_processor": {
            "type": "Sequence", "processors": [TEMPLATE | {"single": [A, A]}] * 40,
        }
    },
    "a word of any length": {
        "model": {"type": "WordPiece", "unk_token": "[SEG]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 10**9, "vocab": {"[SEG]": 0}}
    },
    "no unknown token": {"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "?"}},
    "an unknown token out of the list": {
        "model": {"type": "Unigram", "unk_id": 9, "vocab": [["x", 0.0]]}
    },
    "a token of a megabyte": {"added_tokens": [
        {"id": 9, "content": "x" * 10**6, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": False}]},
    "rules without end": grows(*["b"] * 500),
    "a list of rules without its name": {
        "normalizer": {"normalizers": grows(*["a" * 10] * 9)["normalizer"]["normalizers"]}
    },
    "rules without names": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"pattern": {"String": "a"}, "content": "a" * 100}] * 5,
        }
    },
    "a template without its name": {
        "post_processor": {"single": [A] * 1000, "pair": [], "special_tokens": {}}
    },
    "bytes of bytes of bytes": {"normalizer": {"type": "Sequence", "normalizers": [BYTES] * 60}},
    "and where words are split": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 60}
    },
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_tokenizer_that_would_fail_or_never_end_is_refused(stored, tmp_path, what):
    path = written(tmp_path, stored[1] | HOSTILE[what])
    with pytest.raises(BundleError, match="cannot read the tokenizer") as refusal:
        read_tokenizer(path)
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(BundleError, match="it is not read"):
        read_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("changes", [grows("b"), grows("bb" * 10, "c"), {"normalizer": None}])
def test_rules_as_tokenizers_have_them_are_read(stored, tmp_path, changes):
    assert read_tokenizer(written(tmp_path, stored[1] | changes)).encode("a").ids
    assert GROWTH > 33  # what compatibility forms make of one character


def test_the_end_of_the_world_in_rust_is_an_error_of_ours():
    class PanicException(BaseException):
        """As pyo3 has it."""

    def panic(error):
        with tokenizing():
            raise error

    with pytest.raises(BundleError, match="cannot read text with the bundle's tokenizer: boom"):
        panic(PanicException("boom\nand more"))
    for other in (KeyboardInterrupt, SystemExit):
        with pytest.raises(other):
            panic(other())


PANICS = """
import sys
from pathlib import Path
from geomag_edge.errors import BundleError
from geomag_edge.disk.tokenizer import read_tokenizer
try:
    read_tokenizer(Path(sys.argv[1]))
except BundleError as e:
    print(e)
"""


def test_what_rust_writes_of_a_panic_is_not_heard(stored, tmp_path):
    path = written(tmp_path, stored[1] | {"pre_tokenizer": {"type": "FixedLength", "length": 0}})
    done = subprocess.run([sys.executable, "-c", PANICS, path], capture_output=True, text=True)
    assert "chunk size must be non-zero" in done.stdout
    assert done.stderr == ""


STARTS = """
import os, sys, threading
from pathlib import Path
from geomag_edge.disk import tokenizer
path, own, load = Path(sys.argv[1]), os.fstat(2).st_ino, tokenizer.Tokenizer.from_buffer
class Seen:
    def from_buffer(content):
        print(os.fstat(2).st_ino == own)
        return load(content)
tokenizer.Tokenizer = Seen
tokenizer.read_tokenizer(path)
end = threading.Event()
other = threading.Thread(target=end.wait)
other.start()
tokenizer.read_tokenizer(path)
end.set()
"""


def test_stderr_stays_in_its_place_where_another_thread_may_fork_or_start_a_program(
    stored, tmp_path
):
    path = written(tmp_path, stored[1])
    done = subprocess.run([sys.executable, "-c", STARTS, path], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["False", "True"], "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats(allow_nan=False)
    | st.text(max_size=3) | st.sampled_from(["Sequence", "Replace", "BPE", "Split", "[SEG]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "id", "ids", "content", "pattern", "normalizers"]), inner
    ),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=300)
@given(st.data())
def test_any_value_of_the_file_may_be_any_other(stored, tmp_path_factory, data):
    whole = copy.deepcopy(stored[1])
    whole["model"]["vocab"] = dict([*whole["model"]["vocab"].items()][:270])
    whole["model"]["merges"] = whole["model"]["merges"][:2]
    small = [p for p in places(whole) if p[0] != "model" or len(p) < 3 or p[1] == "merges"]
    path = data.draw(st.sampled_from(small))
    folder = tmp_path_factory.mktemp("fuzz")
    with contextlib.suppress(BundleError), tokenizing():
        read = read_tokenizer(written(folder, put(whole, path, data.draw(VALUES))))
        read.decode(read.encode("segment the ships").ids)
