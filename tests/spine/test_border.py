"""The bundle is a border: names are plain words, numbers have bounds, weights are vouched for."""

import contextlib
import json
import os
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from geomag_edge.bounds import MOST
from geomag_edge.errors import BundleError
from geomag_edge.manifest import Bundle, Manifest, sha256_of
from geomag_edge.onnx_data import external_locations

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


def tensor(location, name="w"):
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    made.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = made.external_data.add()
        entry.key, entry.value = key, value
    return made


def graph(**kw):
    return helper.make_graph([], "g", [], [], **kw)


def inside(kind):
    """A model that names `evil.bin` in one of the places that ONNX has for a tensor."""
    evil = tensor("evil.bin")
    node = helper.make_node("Constant", [], ["y"], value=evil)
    many = helper.make_node("Many", [], ["y"], domain="x")
    many.attribute.append(onnx.AttributeProto(name="t", type=9, tensors=[evil]))
    sparse = onnx.SparseTensorProto(values=evil, indices=tensor("evil.bin"), dims=[1])
    model = helper.make_model(graph())
    if kind == "initializer":
        model.graph.initializer.append(evil)
    elif kind == "constant":
        model.graph.node.append(node)
    elif kind == "tensors":
        model.graph.node.append(many)
    elif kind == "subgraph":
        branch = helper.make_graph([node], "b", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch))
    elif kind == "deep":
        for _ in range(3):
            branch = helper.make_graph([node], "b", [], [])
            node = helper.make_node("Loop", ["n"], ["y"], body=branch)
        model.graph.node.append(node)
    elif kind == "sparse":
        model.graph.sparse_initializer.append(sparse)
    elif kind == "sparse constant":
        model.graph.node.append(helper.make_node("Constant", [], ["y"], sparse_value=sparse))
    elif kind == "function":
        model.functions.append(helper.make_function("x", "F", [], ["y"], [node], []))
    elif kind == "training":
        model.training_info.add().algorithm.initializer.append(evil)
    return model


PLACES = ["initializer", "constant", "tensors", "subgraph", "deep", "sparse", "sparse constant",
          "function", "training"]  # fmt: skip


@pytest.mark.parametrize("kind", PLACES)
def test_weights_are_found_wherever_a_graph_may_name_them(tmp_path, kind):
    (tmp_path / "m.onnx").write_bytes(inside(kind).SerializeToString())
    assert external_locations(tmp_path / "m.onnx") == {"evil.bin"}


def test_a_message_in_two_pieces_is_read_as_protobuf_joins_them(tmp_path):
    pieces = inside("initializer").SerializeToString() + inside("constant").SerializeToString()
    (tmp_path / "m.onnx").write_bytes(pieces)
    assert external_locations(tmp_path / "m.onnx") == {"evil.bin"}
    assert onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.node


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("listed", [[], ["onnx/fp32/encoder.onnx.data"]])
def test_a_graph_whose_weights_nobody_vouches_for_is_not_opened(tmp_path, kind, listed):
    """Right hashes all over, but the weights can be changed at will."""
    data = manifest()
    name = "onnx/fp32/encoder.onnx"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(inside(kind).SerializeToString())
    (tmp_path / "onnx/fp32/encoder.onnx.data").write_bytes(b"encoder weights")
    (tmp_path / "onnx/fp32/evil.bin").write_bytes(b"evil")
    data["graphs"]["fp32"]["encoder"]["data"] = listed
    data["files"][name] = sha256_of(tmp_path / name)
    (tmp_path / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="nobody vouches for them"):
        Bundle.open(tmp_path).graph("encoder", "fp32")


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_end_the_walk_otherwise_than_with_names_or_a_refusal(tmp_path_factory, junk, at):
    text = bytearray(inside("subgraph").SerializeToString())
    text[at : at + len(junk) // 8] = junk
    path = tmp_path_factory.mktemp("fuzz") / "m.onnx"
    path.write_bytes(bytes(text))
    with contextlib.suppress(BundleError):
        assert all(isinstance(name, str) for name in external_locations(path))
