"""The bundle is a border: names are plain words, numbers have bounds."""

import json
import os
from pathlib import Path

import pytest

from geomag_edge.disk.bounds import MOST
from geomag_edge.errors import BundleError
from geomag_edge.manifest import Bundle, Manifest

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bundle.json").read_text())

WORDS = [
    "x/../../victim", "..", ".", "", "/", "a/b", "a\\b", "C:", "~", "-rf", ".hidden", "a b", "a\nb",
    "\x1b[31m", "\u202e", "a" * 65, "\0", "n\u00e9e",
]  # fmt: skip


def manifest(**changes):
    return json.loads(json.dumps(GOLDEN)) | changes


@pytest.mark.parametrize("name", WORDS)
def test_a_set_of_graphs_has_a_plain_name(name):
    """It becomes part of paths that are written and removed: engines/TARGET/NAME, caches."""
    data = manifest(graphs={name: GOLDEN["graphs"]["fp32"]})
    with pytest.raises(BundleError, match="calls a set of graphs") as e:
        Manifest.from_json(data)
    assert len(str(e.value)) < 300


@pytest.mark.parametrize("name", [*WORDS, "another"])
def test_a_graph_is_one_of_the_chains(name):
    data = manifest(graphs={"fp32": {name: GOLDEN["graphs"]["fp32"]["encoder"]}})
    with pytest.raises(BundleError):
        Manifest.from_json(data)


def test_a_form_is_of_a_runtime_that_is_known():
    record = GOLDEN["graphs"]["fp32"]["encoder"]
    forms = record | {"forms": {"../tensorrt": record}}
    with pytest.raises(BundleError, match="holds a form"):
        Manifest.from_json(manifest(graphs={"fp32": {"encoder": forms}}))


@pytest.mark.parametrize("version", [True, 1.0, "1", None, 2, [1]])
def test_a_format_version_is_the_whole_number_that_it_is(version):
    with pytest.raises(BundleError, match="format version"):
        Manifest.from_json(manifest(format_version=version))


NUMBERS = [
    ("preprocessing", "view_px", "view_px"), ("preprocessing", "grid", "grid"),
    ("psc", "max_crops", "max_crops"), ("psc", "levels", "levels"),
    ("prompt", "psc_pad_to", "psc_pad_to"), ("prompt", "context", "context"),
    ("prompt", "psc_context", "psc_context"), ("decoder", "layers", "layers"),
    ("decoder", "kv_heads", "kv_heads"), ("decoder", "head_dim", "head_dim"),
    ("decoder", "hidden", "hidden"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "key", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["above", 10**9, 2**63, -5])
def test_numbers_that_size_something_have_bounds(part, key, name, value):
    data = manifest()
    data[part][key] = MOST[name] + 1 if value == "above" else value
    with pytest.raises(BundleError):
        Manifest.from_json(data)


@pytest.mark.parametrize("key", ["global_grid", "crops", "crop_grid"])
def test_budgets_have_bounds(key):
    data = manifest()
    data["token_budgets"]["pixel"][key] = 10**6
    with pytest.raises(BundleError, match=key):
        Manifest.from_json(data)


def test_a_manifest_that_lists_a_million_files_is_refused():
    with pytest.raises(BundleError, match="lists 20000 entries"):
        Manifest.from_json(manifest(files={str(i): "0" * 64 for i in range(20_000)}))


def test_a_manifest_that_is_a_link_to_elsewhere_is_not_read(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle.json").write_text(json.dumps(GOLDEN))
    os.symlink(tmp_path / "bundle.json", tmp_path / "bundle" / "bundle.json")
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("file", ["onnx/fp32/encoder.ort", "onnx/fp32/encoder.xml", "onnx/fp32/x"])
def test_a_graph_is_an_onnx_file_by_its_name_as_well(file):
    """Runtimes tell formats by the name, and other formats name weights in ways of their own."""
    data = manifest()
    data["graphs"]["fp32"]["encoder"]["file"] = file
    data["files"][file] = "0" * 64
    with pytest.raises(BundleError, match=r"ends in \.onnx"):
        Manifest.from_json(data)
