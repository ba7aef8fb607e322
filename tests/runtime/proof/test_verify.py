"""`verify` on any machine: a healthy bundle passes, a bundle with one wrong weight is named."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from geomag_edge import Pipeline
from geomag_edge.errors import BundleError, EngineError
from geomag_edge.graphs import TOLERANCES
from geomag_edge.manifest import Bundle, sha256_of
from geomag_edge.runtime.engines.engine import graph_sets
from geomag_edge.runtime.engines.reference import FILES, load_reference, reference_of
from geomag_edge.runtime.engines.replay import difference
from geomag_edge.runtime.proof.recording import save_reference
from geomag_edge.runtime.proof.verify import first_difference, tolerance_of, verify


def reference(bundle):
    return load_reference(*(bundle / "reference" / name for name in FILES))


def verified(bundle, precision="fp32", samples=None):
    with Pipeline.load(bundle, precision=precision) as pipe:
        samples = reference(bundle) if samples is None else samples
        return verify(pipe.chain, samples, TOLERANCES[precision])


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


def one_percent(weights):
    return weights * np.float32(1.01)


def perturb(bundle, graph, change=one_percent):
    """Changes the largest float initializer of a graph; the manifest agrees with the new files."""
    path = bundle / "onnx" / "fp32" / f"{graph}.onnx"
    model = onnx.load(str(path))
    floats = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT]
    largest = max(floats, key=lambda i: int(np.prod(i.dims)))
    weights = np.ascontiguousarray(change(numpy_helper.to_array(largest)))
    largest.CopyFrom(numpy_helper.from_array(weights, largest.name))
    path.with_suffix(".onnx.data").unlink(missing_ok=True)
    onnx.save(model, str(path))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["graphs"]["fp32"][graph]["data"] = []
    for name in list(manifest["files"]):
        if (bundle / name).exists():
            manifest["files"][name] = sha256_of(bundle / name)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def test_a_healthy_bundle_passes_again(bundle):
    report = verified(bundle)
    assert report.ok
    assert report.first_drift is None
    assert report.engine == "ort-cpu"
    assert {*report.providers.values()} == {"CPUExecutionProvider"}
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_a_moved_bundle_passes_too(copy):
    assert verified(copy).ok


@pytest.mark.parametrize("graph", ["encoder", "projector", "embed", "llm", "mask_head"])
def test_a_weight_that_is_one_percent_off_is_caught_and_its_graph_named(copy, graph):
    perturb(copy, graph)
    report = verified(copy)
    assert not report.ok
    assert report.first_drift.startswith(f"graph {graph}, output ")
    assert {d.graph for d in report.graphs if not d.ok} == {graph}


def test_the_earliest_of_two_broken_graphs_is_named(copy):
    perturb(copy, "llm")
    perturb(copy, "encoder")
    assert verified(copy).first_drift.startswith("graph encoder, output ")


def test_a_drift_is_told_in_its_own_unit(copy):
    perturb(copy, "llm", np.fliplr)
    report = verified(copy)
    logits = next(d for d in report.graphs if d.output == "logits")
    assert logits.unit == "logit"
    assert logits.max_abs > 1e-3
    broken = [c for c in report.chain if not c.ok]
    assert broken, "a scrambled LLM says something else"
    assert all(c.first_token is not None for c in broken)


def test_a_wrong_token_in_the_reference_is_found_at_its_place(bundle):
    samples = reference(bundle)
    samples[1].token_ids[4] += 1
    report = verified(bundle, samples=samples)
    assert [c.first_token for c in report.chain] == [None, 4, None]
    assert "token 4 differs" in report.first_drift
    assert samples[1].prompt in report.first_drift


def test_a_wrong_mask_in_the_reference_is_found(bundle):
    samples = reference(bundle)
    pixel = next(s for s in samples if len(s.masks))
    pixel.masks = ~pixel.masks
    report = verified(bundle, samples=samples)
    assert not report.ok
    assert "mask IoU 0.0000" in report.first_drift


def emptied(samples, what):
    """A reference in which something that would have to be compared is left out."""
    calls = [c for s in samples for c in s.calls]
    if what == "samples":
        return []
    if what == "calls":
        for sample in samples:
            sample.calls = []
    elif what == "outputs":
        for call in calls:
            call.outputs.clear()
    elif what == "one output":
        next(c for c in calls if c.graph == "llm").outputs.pop("logits")
    elif what == "values":
        for call in (c for c in calls if c.graph == "embed"):
            call.inputs["input_ids"] = np.zeros((1, 0), np.int64)
            call.outputs["inputs_embeds"] = call.outputs["inputs_embeds"][:, :0]
    else:  # every call of one graph
        for sample in samples:
            sample.calls = [c for c in sample.calls if c.graph != what]
    return samples


@pytest.mark.parametrize(
    "what", ["samples", "calls", "outputs", "one output", "values", "encoder", "embed"]
)
def test_agreeing_with_nothing_is_no_proof(bundle, what):
    with pytest.raises(BundleError, match=r"the bundle's reference (holds no samples|lacks)"):
        verified(bundle, samples=emptied(reference(bundle), what))


def test_a_manifest_that_declares_no_outputs_takes_none_out_of_the_reference(copy):
    manifest = json.loads((copy / "bundle.json").read_text())
    for record in manifest["graphs"]["fp32"].values():
        record["outputs"] = []
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        verified(copy, samples=emptied(reference(copy), "outputs"))


def unlike(samples, what):
    call = next(c for s in samples for c in s.calls if c.graph == "llm")
    if what == "no inputs":
        call.inputs.clear()
    elif what == "inputs of another rank":
        call.inputs["inputs_embeds"] = call.inputs["inputs_embeds"].ravel()
    else:
        call.outputs["other"] = call.outputs["logits"]


@pytest.mark.parametrize("what", ["no inputs", "inputs of another rank", "another output"])
def test_calls_that_are_none_of_their_graph_are_refused_by_whoever_reads_them(copy, what):
    samples = reference(copy)
    unlike(samples, what)
    save_reference(samples, copy / "reference")
    manifest = json.loads((copy / "bundle.json").read_text())
    for name in FILES:
        manifest["files"][f"reference/{name}"] = sha256_of(copy / "reference" / name)
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="lacks answers of the graph llm"):
        reference_of(Bundle.open(copy))


def test_auto_without_a_precision_that_passed_its_gate_says_so(bundle):
    opened = Bundle.open(bundle)
    opened.manifest.accuracy = {"fp32": {"gate": {"ort-cpu": {"ok": False}}}}
    with pytest.raises(EngineError, match="every precision of this bundle failed its gate"):
        graph_sets(opened, "auto")


def test_a_precision_that_nobody_has_judged_is_told():
    with pytest.raises(EngineError, match="no tolerance is known for mine"):
        tolerance_of("mine")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("granularity", "", "another task level"), ("granularity", "nonsense", "another task level"),
     ("boxes", [[1, 2, 3, 4]] * 9, "other boxes"), ("boxes", [["x"]], "other boxes"),
     ("boxes", [[1, 2]], "other boxes"), ("boxes", 7, "other boxes")],
)  # fmt: skip
def test_an_answer_that_was_taken_out_or_falsified_is_found(bundle, field, value, said):
    samples = reference(bundle)
    setattr(samples[0], field, value)
    assert said in verified(bundle, samples=samples).first_drift


def test_crops_that_were_falsified_are_found(bundle):
    samples = reference(bundle)
    with_crops = next(s for s in samples if len(s.crop_boxes))
    with_crops.crop_boxes = with_crops.crop_boxes + np.float32(30)
    assert "other crops" in verified(bundle, samples=samples).first_drift


def test_a_reference_survives_the_disk(bundle, tmp_path):
    before = reference(bundle)
    save_reference(before, tmp_path)
    after = load_reference(*(tmp_path / name for name in FILES))
    for a, b in zip(before, after, strict=True):
        assert (a.prompt, a.budget, a.token_ids, a.boxes) == (
            b.prompt,
            b.budget,
            b.token_ids,
            b.boxes,
        )
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.masks, b.masks)
        np.testing.assert_array_equal(a.crop_boxes, b.crop_boxes)
        for x, y in zip(a.calls, b.calls, strict=True):
            assert x.graph == y.graph
            for name in x.outputs:
                np.testing.assert_array_equal(x.outputs[name], y.outputs[name])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"{}", b"garbage", None])
def test_a_damaged_reference_is_one_clear_error(bundle, tmp_path, name, content):
    folder = shutil.copytree(bundle / "reference", tmp_path / "reference")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match="reference inputs are damaged"):
        load_reference(*(folder / n for n in FILES))


def test_a_truncated_reference_is_one_clear_error(bundle, tmp_path):
    folder = shutil.copytree(bundle / "reference", tmp_path / "reference")
    whole = (folder / FILES[1]).read_bytes()
    for keep in (100, len(whole) // 2, len(whole) - 10):
        (folder / FILES[1]).write_bytes(whole[:keep])
        with pytest.raises(BundleError, match="reference inputs are damaged"):
            load_reference(*(folder / n for n in FILES))


@pytest.mark.parametrize(
    ("expected", "got", "answer"),
    [
        ([1, 2, 3], [1, 2, 3], (0, 0, 1)),
        ([0, 4], [1, 4], (1, 0.25, 16 / (4 * 17**0.5))),
        ([1, 0], [0, 1], (1, 1, 0)),
        ([0, 0], [0, 0], (0, 0, 1)),
        ([0, 0], [0, 1e-3], (1e-3, 1e-3, 0)),
        ([], [], (0, 0, 1)),
        ([1, 2], [1, 2, 3], (np.inf, np.inf, 0)),
        ([1, 2], [1, np.nan], (np.inf, np.inf, 0)),
        ([1, 2], [1, np.inf], (np.inf, np.inf, 0)),
    ],
)
def test_the_difference_of_two_arrays(expected, got, answer):
    found = difference(np.array(expected, np.float32), np.array(got, np.float32))
    assert found == pytest.approx(answer)


@pytest.mark.parametrize(
    ("expected", "got", "index"),
    [([], [], None), ([1], [1], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [], 0)],
)
def test_the_first_token_that_differs(expected, got, index):
    assert first_difference(expected, got) == index
