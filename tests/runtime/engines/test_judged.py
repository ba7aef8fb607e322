"""A precision judged on one CPU and run on another says so, unless both were found exact."""

from types import SimpleNamespace

import pytest

from geomag_edge.runtime.engines import judged
from geomag_edge.runtime.engines.judged import judged_elsewhere


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr(judged, "instruction_sets", lambda: ["avx2"])


def note(verdict, precision="int8", **engine):
    manifest = SimpleNamespace(accuracy={precision: {"gate": {"ort-cpu": verdict}}})
    return judged_elsewhere(
        manifest, SimpleNamespace(name="ort-cpu", precision=precision, **engine)
    )


def test_the_same_instruction_sets_need_no_word():
    assert (
        note({"instruction_sets": ["avx2"], "exact_integers": False}, exact_integers=False) is None
    )


def test_two_exact_machines_are_the_same_arithmetic():
    verdict = {"instruction_sets": ["avx2", "avx512_vnni"], "exact_integers": True}
    assert note(verdict, exact_integers=True) is None


@pytest.mark.parametrize(("there", "here"), [(True, False), (False, True), (None, True)])
def test_other_arithmetic_is_told_with_both_cpus(there, here):
    verdict = {"instruction_sets": ["avx2", "avx512_vnni"], "exact_integers": there}
    said = note(verdict, exact_integers=here)
    assert "judged on a CPU with avx2 avx512_vnni, this one has avx2" in said
    assert "geomag-edge verify" in said


def test_a_verdict_from_before_cpus_were_named_says_what_to_do():
    assert "`geomag-edge quantize` judges it again" in note({"ok": True}, exact_integers=True)


def test_auto_is_asked_for_the_engines_that_run():
    verdict = {"instruction_sets": ["avx2", "avx512_vnni"], "exact_integers": None}
    manifest = SimpleNamespace(accuracy={"int8": {"gate": {"ort-cpu": verdict}}})
    parts = [
        SimpleNamespace(name="openvino", precision="fp32", exact_integers=True),
        SimpleNamespace(name="openvino", precision="int8+bf16", exact_integers=True),
    ]
    auto = SimpleNamespace(name="auto", precision="auto", opened=parts)
    assert "judged on a CPU with avx2 avx512_vnni" in judged_elsewhere(manifest, auto)
    auto.opened = parts[:1]
    assert judged_elsewhere(manifest, auto) is None


def test_floats_engines_on_a_gpu_and_unjudged_precisions_are_passed_over():
    assert note({"ok": True}, precision="fp16", exact_integers=True) is None
    assert note({"ok": True}) is None
    manifest = SimpleNamespace(accuracy={})
    engine = SimpleNamespace(name="ort-cpu", precision="int8", exact_integers=True)
    assert judged_elsewhere(manifest, engine) is None
