"""What the files say: names, types and axes of the contract, the target's operators, no traces."""

import collections
import os
import re
import sys
from pathlib import Path

import onnx
import pytest

from geomag_edge.errors import ExportError
from geomag_edge.export.graph import finish
from geomag_edge.graphs import DYNAMIC, ENCODER, PROJECTOR, all_graphs
from geomag_edge.manifest import Bundle

SPECS = {spec.name: spec for spec in all_graphs(2)}
FORMS = [
    ("qwen3-siglip", 23, "fp32"),
    ("llama-clip", 23, "fp32"),
    ("qwen2-clip", 23, "fp32"),
    ("qwen3-siglip", 20, "fp32"),
    ("llama-clip", 23, "fp16"),
]
SIZES = {"S": 64, "P": 16, "G": 4, "F": 8, "M": 32, "Cf": 32, "D": 48, "Dv": 48, "Hkv": 2,
         "max_crops": 4}  # fmt: skip

forms = pytest.mark.parametrize(("family", "opset", "dtype"), FORMS)
graphs = pytest.mark.parametrize("graph", SPECS)


@pytest.fixture
def read(exported):
    def load(family, opset, dtype, graph):
        return onnx.load(str(exported(family, opset, dtype).graph(graph)), load_external_data=False)

    return load


@forms
@graphs
def test_names_types_and_axes_are_the_contracts(read, family, opset, dtype, graph):
    model, spec = read(family, opset, dtype, graph).graph, SPECS[graph]
    for ports, values in ((spec.inputs, model.input), (spec.outputs, model.output)):
        assert [v.name for v in values] == [p.name for p in ports]
        for port, value in zip(ports, values, strict=True):
            tensor = value.type.tensor_type
            wide = {"fp32": "float32", "fp16": "float16"}[dtype]
            expected = wide if port.dtype == "float" else port.dtype
            assert onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) == expected, port.name
            assert len(tensor.shape.dim) == len(port.axes)
            for axis, dim in zip(port.axes, tensor.shape.dim, strict=True):
                if axis in DYNAMIC:
                    assert dim.dim_param == axis
                else:
                    assert dim.dim_value > 0
                    assert dim.dim_value == SIZES.get(axis, dim.dim_value)


@forms
def test_the_manifest_lists_the_same_ports_and_every_file(exported, family, opset, dtype):
    made = exported(family, opset, dtype)
    bundle = Bundle.open(made.bundle)
    for name, spec in SPECS.items():
        record = bundle.manifest.graphs[dtype][name]
        assert [p["name"] for p in record["inputs"]] == spec.input_names
        assert [p["name"] for p in record["outputs"]] == spec.output_names
        assert record["precision"] == dtype
        assert bundle.graph(name, dtype) == made.graph(name)
    on_disk = {p.relative_to(made.bundle).as_posix() for p in made.bundle.rglob("*") if p.is_file()}
    assert on_disk == {*bundle.manifest.files, "bundle.json"}


def operators(model):
    nodes = list(model.graph.node)
    for function in model.functions:
        nodes += function.node
    return collections.Counter(node.op_type for node in nodes)


@graphs
def test_the_form_for_older_targets_has_no_operator_of_opset_23(read, graph):
    model = read("qwen3-siglip", 20, "fp32", graph)
    assert {e.domain: e.version for e in model.opset_import}[""] == 20
    used = {n.op_type for n in model.graph.node if n.domain == ""}
    for name in used:
        assert onnx.defs.get_schema(name, 20, "").since_version <= 20
    assert not used & {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(
    ("graph", "normalisations"),
    # two towers' layers x 2, and the norms around them and in neck, router, mask blocks
    [("encoder", 2 * 2 + 2 + 1), ("psc_select", 2 * 2 + 1 + 1), ("projector", 1), ("mask_head", 6)],
)
def test_layer_normalisation_stays_one_node(read, graph, opset, normalisations):
    found = operators(read("qwen3-siglip", opset, "fp32", graph))
    assert found["LayerNormalization"] >= normalisations
    assert found["ReduceMean"] == 0


def test_the_portable_llm_has_one_attention_and_no_loose_norms(read):
    found = operators(read("qwen3-siglip", 23, "fp32", "llm"))
    assert found["Attention"] == 2
    assert found["RMSNormalization"] == 2 * 4 + 1  # two a layer, two for q and k, one at the end
    assert found["Softmax"] == 0


def test_grouped_heads_are_not_repeated_in_the_portable_llm(read):
    found = operators(read("qwen3-siglip", 23, "fp32", "llm"))
    assert found["Expand"] + found["Tile"] == 0


@forms
def test_psc_holds_the_node_for_kernels_and_the_body_for_all_others(read, family, opset, dtype):
    model = read(family, opset, dtype, "psc")
    [node] = [n for n in model.graph.node if n.domain == "geomag"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert node.op_type == "PscCrop"
    assert attributes == {"size": 64, "plugin_namespace": b"geomag"}
    assert [(f.domain, f.name) for f in model.functions] == [("geomag", "PscCrop")]


@forms
def test_psc_shares_the_weights_of_its_selection(exported, family, opset, dtype):
    made = exported(family, opset, dtype)
    records = Bundle.open(made.bundle).manifest.graphs[dtype]
    assert records["psc"]["data"] == records["psc_select"]["data"]
    assert not made.graph("psc").with_suffix(".onnx.data").exists()


SOURCE = re.compile(rb"[\w/.-]+\.py\b|site-packages|File \"")


@forms
@graphs
def test_no_graph_tells_where_and_from_which_source_it_was_made(
    exported, family, opset, dtype, graph
):
    content = exported(family, opset, dtype).graph(graph).read_bytes()
    assert SOURCE.search(content) is None
    for place in (sys.prefix, os.getcwd(), str(Path.home()), str(exported().checkpoint.parent)):
        assert place.encode() not in content


@forms
def test_no_absolute_path_stands_in_the_bundles_texts(exported, family, opset, dtype):
    made = exported(family, opset, dtype)
    for name in ("bundle.json", "reference/reference.json"):
        text = (made.bundle / name).read_text()
        for place in (made.checkpoint.parent, made.bundle.parent, Path.cwd(), Path.home()):
            assert f'"{place}' not in text


def test_a_graph_that_breaks_its_contract_is_not_let_out(exported, tmp_path):
    model = onnx.load(str(exported().graph("encoder")))
    broken = tmp_path / "encoder.onnx"
    onnx.save(model, str(broken))
    with pytest.raises(ExportError, match="graph projector has"):
        finish(broken, PROJECTOR)
    fixed = model.graph.output[0].type.tensor_type.shape.dim[1]
    fixed.dim_param = "unknown"
    onnx.save(model, str(broken))
    with pytest.raises(ExportError, match="axis P of tokens should be fixed"):
        finish(broken, ENCODER)


def test_a_graph_that_is_not_valid_is_not_let_out(exported, tmp_path):
    model = onnx.load(str(exported().graph("encoder")))
    model.graph.node[3].op_type = "NoSuchOperator"
    onnx.save(model, str(tmp_path / "encoder.onnx"))
    with pytest.raises(ExportError, match="graph encoder is not valid ONNX"):
        finish(tmp_path / "encoder.onnx", ENCODER)
