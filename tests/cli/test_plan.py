"""`geomag-edge plan` and `run --latency-ms`: a time in, a budget out."""

import json

import pytest

from geomag_edge.manifest import Bundle
from geomag_edge.runtime.planning.frontier import frontier_of


@pytest.fixture(scope="module")
def own_bundle(bundle, tmp_path_factory):
    """A copy that accuracy may be written to, measured on a small set."""
    import shutil

    from geomag_edge.cli.main import main

    copy = shutil.copytree(bundle, tmp_path_factory.mktemp("plan") / "bundle")
    assert main(["plan", str(copy), "--data", "scenes:3:1:96"]) == 0
    return copy


def test_accuracy_becomes_part_of_the_bundle(own_bundle):
    opened = Bundle.open(own_bundle)
    found = frontier_of(opened)
    assert found.data == "scenes:3:1:96"
    assert found.points["image"]
    assert all(0 <= p.value <= 1 for points in found.points.values() for p in points)
    assert all(n > 0 for n in found.answer_tokens.values())


def test_shows_the_frontier_and_the_choice_of_each_level(command, own_bundle, tmp_path):
    picture = tmp_path / "frontier.png"
    code, out, _ = command("plan", own_bundle, "--latency-ms", 60000, "--plot", picture)
    assert code == 0
    for text in ("image within 60000 ms", "pixel within", "<- chosen", "scenes:3:1:96", "p95 ms"):
        assert text in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_time_that_nothing_fits_in_is_said(command, own_bundle):
    code, out, _ = command("plan", own_bundle, "--latency-ms", 0.001, "--level", "pixel", "--json")
    assert code == 0
    (plan,) = json.loads(out)["plans"]
    assert (plan["level"], plan["fits"]) == ("pixel", False)
    assert plan["chosen"] == plan["options"][0]


def test_plans_for_a_device_that_is_not_here(command, own_bundle):
    code, out, err = command("plan", own_bundle, "--latency-ms", 100, "--device", "orin-nano-8gb")
    assert (code, err) == (0, "")
    assert "roofline" in out
    assert "not measured" in out


def test_run_keeps_to_a_time_and_reports_it(command, own_bundle, picture):
    code, out, _ = command(
        "run", own_bundle, picture, "count the ships", "--latency-ms", 30000, "--json"
    )
    assert code == 0
    found = json.loads(out)["deadline"]
    assert found["kept"]
    assert found["actual_ms"] < found["latency_ms"] == 30000
    code, out, _ = command("run", own_bundle, picture, "count the ships", "--latency-ms", 30000)
    assert "  deadline  " in out
    assert "kept" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--latency-ms", 0), "not more than 0"),
        (("--latency-ms", 100, "--budget", "4"), "exclude each other"),
    ],
)
def test_times_that_cannot_be_kept_are_refused(command, bundle, picture, given, said):
    code, _, err = command("run", bundle, picture, "count", *given)
    assert code == 2
    assert said in err


def test_nothing_to_plan_is_said(command, bundle):
    code, _, err = command("plan", bundle)
    assert code == 2
    assert "nothing to plan" in err
