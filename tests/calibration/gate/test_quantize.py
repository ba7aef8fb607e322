"""A precision is written, measured at every boundary, judged by its answers, and kept only then."""

import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from geomag_edge.calibration import open_dataset
from geomag_edge.calibration.gate.gate import Gate
from geomag_edge.calibration.quantization import recipes
from geomag_edge.calibration.quantization.capture import capture
from geomag_edge.calibration.quantization.qdq import step_of
from geomag_edge.calibration.quantization.scales import save_scales
from geomag_edge.calibration.quantization.slim import write_slim
from geomag_edge.calibration.quantize import past_tolerance, quantize
from geomag_edge.calibration.sets.calibrating import open_calibration_set
from geomag_edge.errors import BundleError, InputError, OutputError
from geomag_edge.graphs import TOLERANCES
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.replay import Drift
from geomag_edge.runtime.proof.verify import ChainDrift
from geomag_edge.runtime.proof.verify import Report as Parity


def everything(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def calibrated(bundle, tmp_path_factory):
    """A tiny untrained bundle with scales; read only."""
    root = tmp_path_factory.mktemp("calibrated") / "bundle"
    shutil.copytree(bundle, root)
    found = capture(Bundle.open(root), open_calibration_set("scenes:1:2:128"), threads=1)
    return save_scales(Bundle.open(root), found.scales, "mse").root


@pytest.fixture
def fresh(calibrated, tmp_path):
    """A copy of it to change."""
    return Bundle.open(shutil.copytree(calibrated, tmp_path / "bundle"))


@pytest.mark.parametrize("recipe", list(recipes.RECIPES))
def test_every_recipe_runs_and_stays_near_float32(fresh, recipe):
    result = quantize(fresh, recipe, None, Gate(), threads=1)
    assert result.ok
    assert result.bytes < result.source_bytes
    drifts = result.parity["ort-cpu"].graphs
    assert {d.graph for d in drifts} >= {"encoder", "llm", "mask_head", "psc_select", "psc"}
    # A model of random weights, 48 wide, is as hard on 4 bits as any.
    least = {"fp16": 0.9999, "int8": 0.99}.get(recipe, 0.9)
    assert min(d.cosine for d in drifts) > least
    again = Bundle.open(fresh.root)
    assert again.manifest.parity[recipe]["ort-cpu"]["graphs"]
    with Pipeline.load(again, precision=recipe, threads=1) as pipe:
        answer = pipe(np.zeros((90, 120, 3), np.uint8), "where is it?", max_new_tokens=3)
    assert answer.precision == recipe


def test_an_untrained_model_is_not_judged_by_its_answers_and_that_is_said(fresh):
    result = quantize(fresh, "fp16", None, Gate(), threads=1)
    assert result.verdicts == {}
    assert result.notes == ["never trained: all; not judged by its answers"]


def test_tensorrts_files_are_half_and_share_the_integers(fresh):
    quantize(fresh, "int8", None, Gate(), threads=1)
    bundle = Bundle.open(fresh.root)
    record = bundle.record("encoder", "int8")
    form = bundle.record("encoder", "int8", "tensorrt")
    assert form["file"] != record["file"]
    assert set(record["data"]) < set(form["data"])
    assert {p["dtype"] for p in form["outputs"]} == {"float16"}
    model = onnx.load(str(bundle.graph("encoder", "int8", "tensorrt")))
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    assert "INT8" in kinds
    large = [t for t in model.graph.initializer if np.prod(t.dims) > 256]
    assert not [t.name for t in large if t.data_type == onnx.TensorProto.FLOAT]


def test_a_node_can_be_kept_wide_by_its_name_and_by_a_pattern(fresh):
    first = quantize(fresh, "int8", None, Gate(), threads=1)
    name = first.quantized["encoder"][0]
    bundle = Bundle.open(fresh.root)
    second = quantize(bundle, "int8", None, Gate(), keep=[f"encoder/{name}", "llm/*"], threads=1)
    assert name not in second.quantized["encoder"]
    assert "llm" not in second.quantized
    assert len(second.quantized["encoder"]) == len(first.quantized["encoder"]) - 1


@pytest.mark.parametrize("pattern", ["encoder/no_such_node", "decoder/*", "encoder"])
def test_a_name_that_no_node_has_is_refused_and_nothing_changes(fresh, pattern):
    before = everything(fresh.root)
    with pytest.raises(InputError, match="no node"):
        quantize(fresh, "int8", None, Gate(), keep=[pattern], threads=1)
    assert everything(fresh.root) == before


def test_int8_without_calibration_says_what_to_run(bundle, tmp_path):
    root = shutil.copytree(bundle, tmp_path / "bundle")
    with pytest.raises(BundleError, match="geomag-edge calibrate"):
        quantize(Bundle.open(root), "int8", None, Gate(), threads=1)


def test_a_bundle_without_fp32_graphs_has_nothing_to_quantize(exported, tmp_path):
    root = shutil.copytree(exported(dtype="fp16").bundle, tmp_path / "bundle")
    with pytest.raises(BundleError, match="no fp32 graphs to quantize"):
        quantize(Bundle.open(root), "fp16", None, Gate(), threads=1)


def test_a_slim_bundle_holds_one_precision_and_answers(fresh, tmp_path):
    quantize(fresh, "int8+int4-llm", None, Gate(), threads=1)
    whole = Bundle.open(fresh.root)
    slim = write_slim(whole, "int8+int4-llm", tmp_path / "slim")
    assert list(slim.manifest.graphs) == ["int8+int4-llm"]
    assert not (slim.root / "onnx" / "fp32" / "encoder.onnx").exists()
    for name in slim.manifest.files:
        slim.file(name)
    image = np.random.default_rng(0).integers(0, 255, (100, 80, 3), np.uint8)
    answers = []
    for bundle in (whole, slim):
        with Pipeline.load(bundle, precision="int8+int4-llm", threads=1) as pipe:
            answers.append(pipe(image, "segment the ships", max_new_tokens=6).token_ids)
    assert answers[0] == answers[1]


def test_a_slim_bundle_is_not_written_over_something_else(fresh, tmp_path):
    quantize(fresh, "fp16", None, Gate(), threads=1)
    (tmp_path / "slim").mkdir()
    (tmp_path / "slim" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError):
        write_slim(Bundle.open(fresh.root), "fp16", tmp_path / "slim", force=True)
    assert (tmp_path / "slim" / "mine.txt").read_text() == "precious"


def test_a_trained_model_is_not_kept_unjudged(nano):
    with pytest.raises(InputError, match="--data"):
        quantize(Bundle.open(nano), "fp16", None, Gate(), threads=1)


def test_half_passes_the_gate(nano, tmp_path):
    root = shutil.copytree(nano, tmp_path / "nano")
    data = open_dataset("scenes:8:10:256")
    result = quantize(Bundle.open(root), "fp16", data, Gate(), threads=1)
    verdict = result.verdicts["ort-cpu"]
    assert result.ok, verdict.reasons
    assert verdict.questions >= 60
    assert "fp16" in Bundle.open(root).manifest.accuracy


def quantize_what_must_stay_wide(source):
    """Residual sums and what norms read in int8, one scale for the whole tensor."""
    graph = source.model.graph
    zero = ir.tensor(np.zeros((), np.int8), name="broken_zero")
    scale = ir.tensor(step_of(40.0, np.dtype(np.float32)), name="broken_scale")
    held = []
    for tensor in (zero, scale):
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape,
            const_value=tensor,
        )  # fmt: skip
        graph.register_initializer(value)
        held.append(value)
    broken = []
    for node in list(graph):
        if node.op_type not in ("Add", "LayerNormalization", "RMSNormalization"):
            continue
        value = node.inputs[0]
        if value is None or value.is_initializer() or value.dtype != ir.DataType.FLOAT:
            continue
        name = f"{node.name}_broken"
        narrow = ir.node("QuantizeLinear", [value, held[1], held[0]], name=f"{name}_q")
        back = ir.node("DequantizeLinear", [narrow.outputs[0], held[1], held[0]], name=f"{name}_d")
        narrow.outputs[0].name, back.outputs[0].name = f"{name}_q", f"{name}_d"
        graph.insert_before(node, [narrow, back])
        node.replace_input_with(0, back.outputs[0])
        broken.append(node.name)
    return broken


def test_a_recipe_that_quantises_residuals_and_norms_is_caught_and_blamed(
    nano, tmp_path, monkeypatch
):
    root = shutil.copytree(nano, tmp_path / "nano")
    form = recipes.Forms((quantize_what_must_stay_wide,))
    broken = {"encoder": form, "llm": form}
    monkeypatch.setitem(recipes.RECIPES, "int8", broken)
    before = everything(root)
    result = quantize(Bundle.open(root), "int8", open_dataset("scenes:8:10:256"), Gate(), threads=1)
    assert not result.ok
    assert result.verdicts["ort-cpu"].reasons
    assert everything(root) == before
    worst = result.blamed[0]
    assert worst.node in result.quantized[worst.graph]
    assert worst.alone > 0


def drift(ok, crop_px):
    graph = Drift("encoder", "tokens", "unit", 1, 1.0, 0.5, 0.9, ok)
    asked = ChainDrift("ships", "4", 3, None, crop_px, 0.9, 1, True)
    return Parity("ort-cpu", "int8", {}, TOLERANCES["int8"], [], [graph], [asked])


@pytest.mark.parametrize(
    ("ok", "crop_px", "said"),
    [
        (True, 0.0, []),
        (False, 0.0, ["`verify` will call it past tolerance on ort-cpu: graph encoder"]),
        (True, 400.0, ["magnifies another place, 400 px away"]),
        (False, 12.0, ["past tolerance", "12 px away"]),
        (True, float("inf"), ["magnifies more or fewer places"]),
    ],
)
def test_what_is_kept_for_its_answers_says_what_verify_will_say(ok, crop_px, said):
    notes = past_tolerance({"ort-cpu": drift(ok, crop_px)})
    assert len(notes) == len(said)
    for note, words in zip(notes, said, strict=True):
        assert words in note


def test_tensorrts_tables_are_half_so_that_no_token_expands_a_whole_one(fresh):
    quantize(fresh, "int8", None, Gate(), threads=1)
    bundle = Bundle.open(fresh.root)
    for graph in ("embed", "psc_select"):
        model = onnx.load(str(bundle.graph(graph, "int8", "tensorrt")))
        narrow = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
        assert not [
            n.name for n in model.graph.node if n.op_type == "Gather" and n.input[0] in narrow
        ]
        portable = onnx.load(str(bundle.graph(graph, "int8")))
        assert "INT8" in {
            onnx.TensorProto.DataType.Name(t.data_type) for t in portable.graph.initializer
        }
