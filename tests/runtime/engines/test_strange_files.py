"""What a stranger's reference and graphs may hold: it is compared, or refused in one line."""

import contextlib
import copy
import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from geomag_edge.disk.onnx_model import load_ir, load_proto
from geomag_edge.errors import BundleError, EngineError
from geomag_edge.runtime.engines.ort import OrtSession
from geomag_edge.runtime.engines.reference import FILES, load_reference
from tests.spine.test_manifest_fields import places

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)
    | st.text(max_size=4) | st.sampled_from([10**9, "x" * 30_000, "pixel", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=150)
@given(st.data())
def test_any_value_of_a_reference_may_be_any_other(bundle, tmp_path_factory, data):
    whole = json.loads((bundle / "reference" / FILES[0]).read_text())
    whole["samples"] = whole["samples"][:1]
    path = data.draw(st.sampled_from([*places(whole)]))
    changed = inner = copy.deepcopy(whole)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(VALUES)
    listing = tmp_path_factory.mktemp("reference") / FILES[0]
    listing.write_text(json.dumps(changed))
    with contextlib.suppress(BundleError):
        for sample in load_reference(listing, bundle / "reference" / FILES[1]):
            assert sample.masks.ndim == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("mask_shape", [2**20, 2**20, 2**20]), ("mask_shape", [1, 2]), ("mask_shape", [-1, 2, 2]),
     ("max_new_tokens", "9"), ("max_new_tokens", 10**9), ("token_ids", None), ("calls", [None])],
)  # fmt: skip
def test_a_reference_that_asks_for_too_much_is_refused(bundle, tmp_path, key, value):
    whole = json.loads((bundle / "reference" / FILES[0]).read_text())
    whole["samples"][0][key] = value
    (tmp_path / FILES[0]).write_text(json.dumps(whole))
    with pytest.raises(BundleError, match="reference inputs are damaged"):
        load_reference(tmp_path / FILES[0], bundle / "reference" / FILES[1])


def saved(path, node, *, count=TensorProto.INT64):
    ports = (helper.make_tensor_value_info("x", count, [1]),
             helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]))  # fmt: skip
    graph = helper.make_graph([node], "g", [ports[0]], [ports[1]])
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


@pytest.mark.parametrize("count", [2**45, 2**62, -3])
def test_onnx_runtime_says_what_is_wrong_in_our_line_alone(tmp_path, capfd, count):
    path = saved(tmp_path / "m.onnx", helper.make_node("ConstantOfShape", ["x"], ["y"]))
    session = OrtSession(path)
    with pytest.raises(EngineError, match="ONNX Runtime failed on a graph") as refusal:
        session.run({"x": np.array([count])})
    assert len(str(refusal.value)) < 300
    assert capfd.readouterr().err == ""


def test_a_graph_with_an_operator_that_nobody_has_is_one_line(tmp_path, capfd):
    path = saved(tmp_path / "m.onnx", helper.make_node("Nonsense", ["x"], ["y"]))
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load m\.onnx"):
        OrtSession(path)
    assert capfd.readouterr().err == ""


def test_inputs_of_a_type_that_the_chain_never_feeds_are_one_line(tmp_path):
    node = helper.make_node("StringNormalizer", ["x"], ["y"])
    path = saved(tmp_path / "m.onnx", node, count=TensorProto.STRING)
    with pytest.raises(EngineError, match="cannot load"):
        OrtSession(path)


@pytest.mark.parametrize("load", [load_proto, load_ir])
@pytest.mark.parametrize("content", [b"\xff" * 50, b":\x02\x12\xff", None])
def test_what_the_onnx_libraries_cannot_read_is_one_line(tmp_path, load, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"m\.onnx is not a graph that can be read") as refusal:
        load(path)
    assert "\n" not in str(refusal.value)
