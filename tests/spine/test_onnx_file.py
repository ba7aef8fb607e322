"""A graph takes weights from what is listed alone, and does what bundles' graphs do, no more."""

import contextlib
import json
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from geomag_edge.cpp_ext.onnx_op import psc_crop_function
from geomag_edge.disk.onnx_file import read_onnx, read_wiring
from geomag_edge.errors import BundleError
from geomag_edge.export.graph import OPSETS
from geomag_edge.manifest import Bundle, sha256_of

from .test_manifest import data, encoder, golden  # noqa: F401

GRAPH = "onnx/fp32/encoder.onnx"


def tensor(location, name="w", offset="0", length="4"):
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=1)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        made.external_data.add(key=key, value=value)
    return made


def inside(kind):
    """A model that names `evil.bin` in one of the places that ONNX has for a tensor."""
    evil = tensor("evil.bin")
    node = helper.make_node("Constant", [], ["y"], value=evil)
    model = onnx.load_from_string(encoder())
    many = helper.make_node("Many", [], ["y"])
    many.attribute.append(onnx.AttributeProto(name="t", type=9, tensors=[evil]))
    sparse = onnx.SparseTensorProto(values=evil, indices=tensor("evil.bin"), dims=[1])
    if kind == "initializer":
        model.graph.initializer.append(evil)
    elif kind == "constant":
        model.graph.node.append(node)
    elif kind == "tensors":
        model.graph.node.append(many)
    elif kind == "sparse":
        model.graph.sparse_initializer.append(sparse)
    elif kind == "sparse constant":
        model.graph.node.append(helper.make_node("Constant", [], ["y"], sparse_value=sparse))
    return model


def refused(kind):
    """A model with what no bundle's graph has."""
    model = onnx.load_from_string(encoder())
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "body", [], [])
    nodes = {
        "loop": helper.make_node("Loop", ["n", "c"], ["z"], body=body),
        "if": helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body),
        "operator of a stranger": helper.make_node("Read", [], ["z"], domain="evil"),
        "stored engine": helper.make_node("EPContext", [], ["z"], domain="com.microsoft"),
    }
    graphs = helper.make_node("Many", [], ["y"])
    graphs.attribute.append(onnx.AttributeProto(name="g", type=10, graphs=[body]))
    nodes["graphs"] = graphs
    if kind in nodes:
        model.graph.node.append(nodes[kind])
    elif kind == "training":
        model.training_info.add().algorithm.CopyFrom(body)
    elif kind == "function":
        made = [helper.make_node("Relu", ["x"], ["y"])]
        model.functions.append(helper.make_function("geomag", "F", ["x"], ["y"], made, []))
    elif kind == "another PscCrop":
        function = psc_crop_function(23)
        function.node.append(helper.make_node("Relu", ["x"], ["more"]))
        model.functions.append(function)
    elif kind == "sequence":
        del model.graph.input[:]
        of = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
        model.graph.input.append(
            helper.make_value_info("views", helper.make_sequence_type_proto(of))
        )
    return model


PLACES = ["initializer", "constant", "tensors", "sparse", "sparse constant"]
REFUSED = ["loop", "if", "graphs", "operator of a stranger", "stored engine", "training",
           "function", "another PscCrop", "sequence"]  # fmt: skip


def written(path, model):
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def with_graph(root, model, **record):
    """The golden bundle with another encoder, its hashes right."""
    stored = json.loads((root / "bundle.json").read_text())
    written(root / GRAPH, model)
    stored["files"][GRAPH] = sha256_of(root / GRAPH)
    stored["graphs"]["fp32"]["encoder"] |= record
    (root / "bundle.json").write_text(json.dumps(stored))
    return Bundle.open(root)


@pytest.mark.parametrize("kind", PLACES)
def test_weights_are_found_wherever_a_graph_may_name_them(tmp_path, kind):
    found = read_onnx(written(tmp_path / "m.onnx", inside(kind)))
    assert set(found.external) == {"evil.bin", "encoder.onnx.data"}
    assert found.inputs == {"views": (None, 3, 64, 64)}


def test_a_message_in_two_pieces_is_read_as_protobuf_joins_them(tmp_path):
    pieces = inside("initializer").SerializeToString() + inside("constant").SerializeToString()
    found = read_onnx(written(tmp_path / "m.onnx", pieces))
    assert "evil.bin" in found.external
    assert onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.node


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("listed", [[], ["onnx/fp32/encoder.onnx.data"]])
def test_a_graph_whose_weights_nobody_vouches_for_is_not_opened(golden, kind, listed):  # noqa: F811
    """Right hashes all over, but the weights can be changed at will."""
    (golden / "onnx/fp32/evil.bin").write_bytes(b"evil")
    bundle = with_graph(golden, inside(kind), data=listed)
    with pytest.raises(BundleError, match="nobody vouches for them"):
        bundle.graph("encoder", "fp32")


@pytest.mark.parametrize(
    "place", ["../evil.bin", "/etc/passwd", "./encoder.onnx.data", "*/_ORT_MEM_ADDR_/*", "", "."]
)
def test_only_the_listed_names_as_they_stand_are_weights(golden, place):  # noqa: F811
    with pytest.raises(BundleError):
        with_graph(golden, encoder(place)).graph("encoder", "fp32")


@pytest.mark.parametrize(
    ("offset", "length"), [("0", "999"), ("999", "4"), (str(2**70), "1"), ("-4", "4"), ("x", "4")]
)
def test_weights_lie_within_their_file(golden, offset, length):  # noqa: F811
    model = onnx.load_from_string(encoder())
    model.graph.initializer.append(tensor("encoder.onnx.data", "v", offset, length))
    with pytest.raises(BundleError, match=r"more weights|a tensor's bytes|not a readable"):
        with_graph(golden, model).graph("encoder", "fp32")


@pytest.mark.parametrize("dims", [[2], [2**40], [0], [1, 1, 3]])
def test_a_tensors_shape_and_its_bytes_agree(golden, dims):  # noqa: F811
    model = onnx.load_from_string(encoder())
    made = tensor("encoder.onnx.data", "v")
    made.dims[:] = dims
    model.graph.initializer.append(made)
    with pytest.raises(BundleError, match="a tensor's bytes"):
        with_graph(golden, model).graph("encoder", "fp32")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_bundles_graph_has_is_refused(golden, kind):  # noqa: F811
    with pytest.raises(BundleError, match=r"(holds|takes).*this bundle is not opened") as refusal:
        with_graph(golden, refused(kind)).graph("encoder", "fp32")
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("opset", OPSETS)
def test_the_function_that_exports_write_is_known(tmp_path, opset):
    """Where it fails PscCrop's body has changed: add its digest, old bundles still hold theirs."""
    model = onnx.load_from_string(encoder())
    model.functions.append(psc_crop_function(opset))
    assert read_onnx(written(tmp_path / "m.onnx", model)).inputs


def test_what_a_function_has_where_nothing_is_given_is_looked_into(tmp_path):
    model = onnx.load_from_string(encoder())
    function = psc_crop_function(23)
    function.attribute_proto.append(onnx.AttributeProto(name="t", type=4, t=tensor("evil.bin")))
    model.functions.append(function)
    assert "evil.bin" in read_onnx(written(tmp_path / "m.onnx", model)).external


def renamed(model):
    model.graph.output[0].name = "other"


def without_an_output(model):
    del model.graph.output[1]


def of_another_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 65


def of_any_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "S"


def of_another_rank(model):
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)


@pytest.mark.parametrize(
    "change", [renamed, without_an_output, of_another_size, of_any_size, of_another_rank]
)
def test_a_graph_is_the_one_that_the_manifest_says(golden, change):  # noqa: F811
    model = onnx.load_from_string(encoder())
    change(model)
    with pytest.raises(BundleError, match=r"other inputs or outputs|the manifest's numbers"):
        with_graph(golden, model).graph("encoder", "fp32")


def test_numbers_of_the_manifest_that_the_graphs_do_not_have_are_refused(golden):  # noqa: F811
    stored = json.loads((golden / "bundle.json").read_text())
    stored["preprocessing"]["view_px"] = 65
    (golden / "bundle.json").write_text(json.dumps(stored))
    with pytest.raises(BundleError, match="views of"):
        Bundle.open(golden).graph("encoder", "fp32")


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_end_the_walk_otherwise_than_with_names_or_a_refusal(tmp_path_factory, data):  # noqa: F811
    text = bytearray(inside("constant").SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    path = written(tmp_path_factory.mktemp("fuzz") / "m.onnx", bytes(text))
    with contextlib.suppress(BundleError):
        assert all(isinstance(name, str) for name in read_onnx(path).external)


@pytest.mark.parametrize("content", [b"", b"\x0f", b"\x3a\xff\xff\xff\xff\x0f", b"tokenizer"])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    with pytest.raises(BundleError, match="not a readable ONNX file"):
        read_onnx(written(tmp_path / "m.onnx", content))


def test_the_shipped_probe_is_such_a_graph_too():
    from geomag_edge.runtime.engines.exact import PROBE

    assert read_onnx(Path(PROBE)).inputs == {"x": (16, 64)}


def varint(value):
    made = b""
    while value > 0x7F:
        made, value = made + bytes([value & 0x7F | 0x80]), value >> 7
    return made + bytes([value])


def message(tag, content):
    return varint(tag) + varint(len(content)) + content


GRAPH_TAG = 7 << 3 | 2


@pytest.mark.parametrize("bit", range(32, 64))
def test_a_graph_behind_a_tag_that_readers_cut_to_32_bits_is_refused(tmp_path, bit):
    hidden = message(GRAPH_TAG | 1 << bit, inside("initializer").graph.SerializeToString())
    with pytest.raises(BundleError, match="not a readable ONNX file"):
        read_onnx(written(tmp_path / "m.onnx", encoder() + hidden))


@pytest.mark.parametrize("model", [encoder(), b""])
@pytest.mark.parametrize("field", [1, 5])
def test_a_file_that_another_format_can_read_too_is_refused(tmp_path, field, model):
    """TensorFlow's nodes and Paddle's blocks lie where ONNX has a number."""
    node = message(1 << 3 | 2, b"x") + message(2 << 3 | 2, b"Placeholder")
    with pytest.raises(BundleError, match="not a readable ONNX file"):
        read_onnx(written(tmp_path / "m.onnx", model + message(field << 3 | 2, node)))


def test_fields_of_number_0_are_refused(tmp_path):
    with pytest.raises(BundleError, match="not a readable ONNX file"):
        read_onnx(written(tmp_path / "m.onnx", encoder() + message(2, b"")))


@pytest.mark.parametrize("packed", [True, False])
def test_a_tensor_of_a_million_sides_takes_no_time(tmp_path, packed):
    side = varint(2**62)
    sides = message(1 << 3 | 2, side * 10**6) if packed else (varint(1 << 3) + side) * 100_000
    model = encoder() + message(GRAPH_TAG, message(5 << 3 | 2, sides))
    with pytest.raises(BundleError, match="sides"):
        read_onnx(written(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.BOOL, TensorProto.DOUBLE])
def test_an_output_of_another_type_is_refused(golden, tmp_path, kind):  # noqa: F811
    model = onnx.load_from_string(encoder())
    model.graph.output[0].type.tensor_type.elem_type = kind
    with pytest.raises(BundleError, match="other"):
        with_graph(golden, model).graph("encoder", "fp32")


def test_the_wiring_of_a_graph_is_that_of_onnx(golden):  # noqa: F811
    for path in sorted(golden.glob("onnx/*/*.onnx")):
        graph = onnx.load(str(path), load_external_data=False).graph
        nodes, inputs = read_wiring(path)
        assert inputs == {i.name for i in graph.input}
        assert [(n.name, n.operator, n.inputs, n.outputs) for n in nodes] == [
            (n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in graph.node
        ]
