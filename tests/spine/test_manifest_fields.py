"""Any value of a manifest may be any other: it is read, or refused in one line that names it."""

import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.cli import main
from geomag_edge.errors import BundleError
from geomag_edge.manifest import Bundle, Manifest, sha256_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bundle.json").read_text())

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9)
    | st.sampled_from(["../x", "/etc/passwd", "\ud800", "\x1b[31m", "x" * 3000, 10**9, -1, 1e308]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip


def places(value, path=()):
    """The path of every value in nested records and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


PLACES = [*places(GOLDEN)]


def put(data, path, value):
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


@settings(max_examples=500)
@given(st.sampled_from(PLACES), VALUES)
def test_any_value_may_be_any_other(path, value):
    try:
        manifest = Manifest.from_json(put(GOLDEN, path, value))
    except BundleError as e:
        said = str(e)
    else:
        said = ""
        assert Manifest.from_json(manifest.to_json()) == manifest
    assert len(said) < 400
    assert "\n" not in said


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A bundle that agrees with the golden manifest, as far as `inspect` looks."""
    root = tmp_path_factory.mktemp("shown")
    data = copy.deepcopy(GOLDEN)
    for name in data["files"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
        data["files"][name] = sha256_of(root / name)
    return root, data


@settings(max_examples=300)
@given(st.sampled_from(PLACES), VALUES, st.booleans())
def test_inspect_shows_it_or_refuses_it(shown, path, value, as_json):
    root, data = shown
    (root / "bundle.json").write_text(json.dumps(put(data, path, value)))
    assert main(["inspect", str(root), *["--json"] * as_json]) in (0, 2)


def budget(grid, crops, crop_grid):
    return {"global_grid": grid, "crops": crops, "crop_grid": crop_grid}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preprocessing": {"view_px": 4096}, "psc": {"max_crops": 256}}, "crops of 4096 px"),
        ({"preprocessing": {"grid": 512}, "psc": {"windows": [*range(1, 65)]}}, "windows scored"),
        ({"token_budgets": {"pixel": budget(5, 0, 0)}}, "global_grid of 5"),
        ({"token_budgets": {"pixel": budget(4, 5, 1)}}, "crops of 5"),
        ({"token_budgets": {"pixel": budget(4, 1, 0)}}, "not possible"),
        ({"checkpoint": {"path": "/etc"}}, "a relative path"),
        ({"prompt": {"template": "x" * 30_000}}, "at most 20000 characters"),
        ({"prompt": {"eos_token_ids": [3] * 1000}}, "a list of 0 to 256"),
        ({"files": {"a": "0" * 63}}, "a sha256"),
    ],
)  # fmt: skip
def test_numbers_that_ask_for_too_much_together_are_refused(changes, said):
    data = copy.deepcopy(GOLDEN)
    for part, fields in changes.items():
        data[part] |= fields
    with pytest.raises(BundleError, match=said):
        Manifest.from_json(data)


def test_more_precisions_than_anybody_needs_are_refused():
    graphs = {f"p{i}": GOLDEN["graphs"]["fp32"] for i in range(20)}
    with pytest.raises(BundleError, match="lists 20 entries"):
        Manifest.from_json(GOLDEN | {"graphs": graphs})


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(36, "Too long")]
)
@pytest.mark.parametrize("where", [(Path, "is_file"), (Path, "resolve"), (os, "open")])
def test_a_bundle_that_may_not_be_read_is_one_line(shown, monkeypatch, error, where):
    root, data = shown
    (root / "bundle.json").write_text(json.dumps(data))

    def refused(*_, **__):
        raise error

    monkeypatch.setattr(*where, refused)
    with pytest.raises(BundleError, match=r"cannot (open|read)"):
        Bundle.open(root)


@pytest.mark.parametrize("where", [(Path, "is_file"), (Path, "resolve"), (os, "open")])
def test_a_file_that_may_not_be_read_is_one_line(shown, monkeypatch, where):
    root, data = shown
    bundle = Bundle(root, Manifest.from_json(copy.deepcopy(data)))

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(*where, refused)
    with pytest.raises(BundleError, match=r"cannot read tokenizer\.json .*Permission denied"):
        bundle.file("tokenizer.json")
