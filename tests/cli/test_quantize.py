"""`geomag-edge quantize` on a tiny untrained bundle: what is written, said and refused."""

import json

import pytest

from geomag_edge.manifest import Bundle


def test_half_is_added_and_written_alone(command, bundle_copy, tmp_path):
    slim = tmp_path / "slim"
    code, out, _ = command(
        "quantize", bundle_copy, "--recipe", "fp16", "--threads", "1", "-o", slim, "--json"
    )
    data = json.loads(out)
    assert code == 0
    assert data["ok"]
    assert 0.4 < data["bytes"] / data["source_bytes"] < 0.6
    assert set(Bundle.open(bundle_copy).manifest.graphs) == {"fp32", "fp16"}
    assert set(Bundle.open(slim).manifest.graphs) == {"fp16"}


def test_the_report_for_people_names_drift_size_and_what_was_not_judged(command, bundle_copy):
    code, out, _ = command("quantize", bundle_copy, "--recipe", "fp16", "--threads", "1")
    assert code == 0
    for words in ("relative error", "of fp32's", "never trained", "kept: --precision fp16"):
        assert words in out


def test_int8_of_an_uncalibrated_bundle_says_what_to_run(command, bundle_copy):
    code, out, err = command("quantize", bundle_copy, "--recipe", "int8")
    assert (code, out) == (2, "")
    assert "run `geomag-edge calibrate` first" in err.splitlines()[-1]


def test_a_slim_bundle_that_may_not_be_written_is_refused_before_any_work(
    command, bundle_copy, tmp_path
):
    place = tmp_path / "notes"
    place.mkdir()
    (place / "todo.txt").write_text("buy milk")
    code, _, err = command("quantize", bundle_copy, "--recipe", "fp16", "-o", place, "--force")
    assert code == 2
    assert "notes" in err
    assert list(Bundle.open(bundle_copy).manifest.graphs) == ["fp32"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "int3"), "invalid choice"),
        (("--recipe", "fp16", "--plot", "x.png"), "--search"),
        (("--recipe", "fp16", "--max-miou-drop", "-1"), "is not from 0 to 100 points"),
        (("--recipe", "fp16", "--engine", "abacus"), "abacus"),
        (("--recipe", "fp16", "--search", "ort-cpu"), "trained model"),
    ],
)
def test_bad_options_are_one_line_and_change_nothing(command, bundle_copy, options, words):
    code, out, err = command("quantize", bundle_copy, *options)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert list(Bundle.open(bundle_copy).manifest.graphs) == ["fp32"]
