"""The bundle's manifest: a golden file, and what hostile or damaged bundles run into."""

import copy
import json
import os
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import BundleError, GeoMagError
from geomag_edge.manifest import FORMAT_VERSION, Bundle, Manifest, check_inside, sha256_of

GOLDEN = Path(__file__).parent / "golden" / "bundle.json"


def encoder(location="encoder.onnx.data"):
    """A graph with the encoder's inputs and outputs and a tensor that lies elsewhere."""
    kind = onnx.TensorProto.FLOAT
    ports = {"views": ["n", 3, 64, 64], "tokens": ["n", 16, 8], "embeds": ["n", 16, 8],
             "features": ["n", 8, 4, 4]}  # fmt: skip
    first, *rest = (helper.make_tensor_value_info(n, kind, s) for n, s in ports.items())
    weights = onnx.TensorProto(name="w", data_type=kind, dims=[1], data_location=1)
    if location:
        weights.external_data.add(key="location", value=location)
    graph = helper.make_graph([], "encoder", [first], rest, [weights] if location else [])
    return helper.make_model(graph).SerializeToString()


CONTENTS = {
    "onnx/fp32/encoder.onnx": encoder(),
    "onnx/fp32/encoder.onnx.data": b"encoder weights",
    "tokenizer.json": b"tokenizer",
}
"""The files of the golden bundle."""


@pytest.fixture
def data():
    return json.loads(GOLDEN.read_text())


@pytest.fixture
def golden(tmp_path, data):
    """A bundle folder that agrees with the golden manifest."""
    root = tmp_path / "bundle"
    for name, content in CONTENTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        data["files"][name] = sha256_of(root / name)
    (root / "bundle.json").write_text(json.dumps(data))
    return root


def test_the_golden_manifest_of_version_1_still_reads(data):
    manifest = Manifest.from_json(data)
    assert FORMAT_VERSION == 1
    assert (manifest.view.view_px, manifest.view.grid) == (64, 4)
    assert manifest.view.std == (0.25, 0.25, 0.25)
    assert manifest.prompt.eos_token_ids == (3,)
    assert manifest.psc.windows == (1, 2, 3)
    assert manifest.budgets["pixel"] == TokenBudget(2, 4, 2)
    assert manifest.decoder.head_dim == 16
    assert manifest.graphs["fp32"]["encoder"]["file"] == "onnx/fp32/encoder.onnx"
    assert manifest.untrained == ["all"]


def test_the_golden_manifest_is_written_back_word_for_word(data):
    written = json.dumps(Manifest.from_json(data).to_json(), indent=1) + "\n"
    assert json.loads(written) == data


def test_a_bundle_hands_out_its_files(golden):
    bundle = Bundle.open(golden)
    assert bundle.file("tokenizer.json").read_bytes() == b"tokenizer"
    assert bundle.graph("encoder", "fp32") == golden / "onnx/fp32/encoder.onnx"


def test_a_bundle_may_be_moved_and_be_reached_through_a_link(golden, tmp_path):
    moved = golden.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    for root in (moved, str(moved), tmp_path / "link"):
        graph = Bundle.open(root).graph("encoder", "fp32")
        assert graph.read_bytes() == CONTENTS["onnx/fp32/encoder.onnx"]


OUTSIDE = [
    "/etc/passwd", "../x", "onnx/../../x", "..", "a/..", "..\\x", "a\\b", "C:/x", "C:\\x", "c:x",
    "//host/share", "",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leaves_the_bundle_is_refused_before_any_file_is_touched(data, name):
    as_graph, as_data = copy.deepcopy(data), copy.deepcopy(data)
    as_graph["graphs"]["fp32"]["encoder"]["file"] = name
    as_data["graphs"]["fp32"]["encoder"]["data"] = [name]
    as_file = data | {"files": {**data["files"], name: "0" * 64}}
    for hostile in (as_graph, as_data, as_file):
        with pytest.raises(BundleError, match="not a path inside the bundle"):
            Manifest.from_json(hostile)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leaves_the_bundle_is_refused_when_asked_for(golden, name):
    with pytest.raises(BundleError, match="not a path inside the bundle"):
        Bundle.open(golden).file(name)


@given(st.text("ab./\\:~\0", max_size=12))
def test_no_spelling_of_a_path_resolves_outside_the_bundle(name):
    try:
        check_inside(name)
    except BundleError:
        return
    joined = os.path.normpath(os.path.join("/bundle", name))
    assert joined == "/bundle" or joined.startswith("/bundle/")


@pytest.mark.parametrize("linked", ["tokenizer.json", "onnx"])
def test_a_link_that_leaves_the_bundle_is_refused_even_with_the_right_content(
    golden, tmp_path, linked
):
    (golden / linked).rename(tmp_path / "outside")
    (golden / linked).symlink_to(tmp_path / "outside")
    name = linked if linked == "tokenizer.json" else "onnx/fp32/encoder.onnx"
    with pytest.raises(BundleError, match=r"a link that leaves the bundle.*cp -rL"):
        Bundle.open(golden).file(name)


def test_a_link_within_the_bundle_is_followed(golden):
    (golden / "tokenizer.json").rename(golden / "real.json")
    (golden / "tokenizer.json").symlink_to("real.json")
    assert Bundle.open(golden).file("tokenizer.json").read_bytes() == b"tokenizer"


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, [1], {}])
def test_another_format_version_is_refused_and_named(data, version):
    with pytest.raises(BundleError, match=r"format version .* this program reads 1"):
        Manifest.from_json(data | {"format_version": version})


@pytest.mark.parametrize("other", [{}, [], None, 3, "bundle", {"version": 1}])
def test_what_is_no_manifest_is_said_to_be_none(other):
    with pytest.raises(BundleError, match="not a geomag-edge manifest"):
        Manifest.from_json(other)


def places(value, path=()):
    """The path of every field in nested dicts, the free-form records left out."""
    free = {"model_config", "parity", "accuracy", "checkpoint", "files", "format_version"}
    for key, inner in value.items():
        if path == () and key in free:
            continue
        yield (*path, key)
        if isinstance(inner, dict):
            yield from places(inner, (*path, key))


FIELDS = [
    p
    for p in places(json.loads(GOLDEN.read_text()))
    if p[0] != "graphs" and p[-1] != "visual_tokens"
]


def at(data, path):
    for key in path[:-1]:
        data = data[key]
    return data


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_missing_field_is_refused_and_named(data, path):
    del at(data, path)[path[-1]]
    with pytest.raises(BundleError, match=f"damaged.*{path[-1]}"):
        Manifest.from_json(data)


@pytest.mark.parametrize("key", ["file", "data"])
def test_a_graph_record_without_its_files_is_refused(data, key):
    del data["graphs"]["fp32"]["encoder"][key]
    with pytest.raises(BundleError, match="damaged"):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("preprocessing",), None),
        (("preprocessing", "view_px"), "wide"),
        (("preprocessing", "view_px"), float("inf")),
        (("preprocessing", "view_px"), 0),
        (("preprocessing", "grid"), -4),
        (("preprocessing", "mean"), 0.5),
        (("preprocessing", "mean"), [0.5, 0.5]),
        (("preprocessing", "std"), ["a", "b", "c"]),
        (("preprocessing", "std"), [0.0, 1.0, 1.0]),
        (("preprocessing", "std"), [float("nan"), 1.0, 1.0]),
        (("prompt",), []),
        (("prompt", "context"), "many"),
        (("prompt", "eos_token_ids"), 3),
        (("prompt", "seg_token_id"), None),
        (("psc",), "off"),
        (("psc", "windows"), 2),
        (("psc", "windows"), []),
        (("psc", "windows"), [2, 0]),
        (("psc", "max_crops"), {}),
        (("psc", "levels"), 0),
        (("token_budgets",), []),
        (("token_budgets", "image"), 9),
        (("token_budgets", "pixel", "global_grid"), 0),
        (("decoder",), None),
        (("decoder", "layers"), "two"),
        (("graphs",), "none"),
        (("graphs", "fp32"), "encoder"),
        (("graphs", "fp32", "encoder"), None),
        (("graphs", "fp32", "encoder", "file"), 5),
        (("graphs", "fp32", "encoder", "data"), None),
        (("files",), ["tokenizer.json"]),
        (("checkpoint",), 1),
        (("untrained",), None),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(data, path, wrong):
    at(data, path)[path[-1]] = wrong
    with pytest.raises(BundleError) as refusal:
        Manifest.from_json(data)
    assert "\n" not in str(refusal.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.sampled_from([p for p in places(json.loads(GOLDEN.read_text()))]), JSON)
def test_whatever_stands_in_a_field_it_is_read_or_refused_but_never_crashes(path, value):
    data = json.loads(GOLDEN.read_text())
    at(data, path)[path[-1]] = value
    try:
        manifest = Manifest.from_json(data)
    except GeoMagError:
        return
    json.dumps(manifest.to_json())


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"format_version": 1}',
        b'{"format_version": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_manifest_file_that_is_no_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"bundle\.json|format version") as refusal:
        Bundle.open(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_place_without_a_bundle_says_how_to_make_one(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="make one with `geomag-edge export`"):
        Bundle.open(tmp_path / place)


def changed_byte(root, name):
    content = bytearray((root / name).read_bytes())
    content[-1] ^= 1
    (root / name).write_bytes(content)


def missing(root, name):
    (root / name).unlink()


def a_folder_instead(root, name):
    missing(root, name)
    (root / name).mkdir()


@pytest.mark.parametrize("name", ["onnx/fp32/encoder.onnx", "onnx/fp32/encoder.onnx.data"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (changed_byte, "sha256 differs"),
        (missing, "the bundle lacks"),
        (a_folder_instead, "the bundle lacks"),
    ],
)
def test_a_damaged_file_is_found_before_its_graph_is_opened(golden, damage, reason, name):
    damage(golden, name)
    with pytest.raises(BundleError, match=f"{reason}") as refusal:
        Bundle.open(golden).graph("encoder", "fp32")
    assert name in str(refusal.value)


def test_a_file_that_the_manifest_does_not_list_is_not_opened(golden):
    (golden / "extra.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="not listed"):
        Bundle.open(golden).file("extra.onnx")


def test_a_graph_whose_file_has_no_checksum_is_refused(data):
    del data["files"]["onnx/fp32/encoder.onnx.data"]
    with pytest.raises(BundleError, match=r"no sha256 for onnx/fp32/encoder\.onnx\.data"):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("name", "precision", "reason"),
    [("encoder", "int8", "no int8 graphs: it has fp32"), ("llm", "fp32", "no fp32 graph 'llm'")],
)
def test_a_precision_or_graph_that_is_not_there_is_named(golden, name, precision, reason):
    with pytest.raises(BundleError, match=reason):
        Bundle.open(golden).graph(name, precision)


def test_a_runtime_gets_its_own_form_of_a_graph_and_the_portable_file_without_one(golden, data):
    record = data["graphs"]["fp32"]["encoder"]
    other = "onnx/fp32/encoder.tensorrt.onnx"
    record["forms"] = {"tensorrt": {**record, "file": other, "data": []}}
    (golden / other).write_bytes(encoder(location=None))
    data["files"][other] = sha256_of(golden / other)
    bundle = Bundle(golden, Manifest.from_json(data))
    assert bundle.graph("encoder", "fp32", "tensorrt") == golden / other
    assert bundle.graph("encoder", "fp32", "openvino") == golden / "onnx/fp32/encoder.onnx"
    assert bundle.graph("encoder", "fp32") == golden / "onnx/fp32/encoder.onnx"


def test_the_file_of_a_form_needs_a_checksum_and_stays_inside_the_bundle(data):
    record = data["graphs"]["fp32"]["encoder"]
    for file in ("onnx/other.onnx", "../other.onnx"):
        record["forms"] = {"tensorrt": {**record, "file": file}}
        with pytest.raises(BundleError, match=r"other\.onnx"):
            Manifest.from_json(data)
