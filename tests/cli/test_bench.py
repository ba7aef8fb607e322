"""`geomag-edge bench`: measured, written, compared."""

import json

import pytest


@pytest.fixture(scope="module")
def measured(bundle, tmp_path_factory):
    """A folder with the report of one case on a rendered scene."""
    from geomag_edge.cli.main import main

    out = tmp_path_factory.mktemp("bench") / "out"
    given = (
        "bench", bundle, "--size", 256, "--budget", "2", "--budget", "pixel", "--rounds", 3,
        "--threads", 1, "--max-new-tokens", 3, "-o", out,
    )  # fmt: skip
    assert main([str(a) for a in given]) == 0
    return out


def test_writes_a_report_and_a_page(measured):
    report = json.loads((measured / "bench.json").read_text())
    assert [c["budget"] for c in report["cases"]] == ["2", "pixel"]
    assert report["command"].startswith("geomag-edge bench ")
    assert "/" not in report["command"].split()[2]  # no path of the machine that measured
    assert "<svg" in (measured / "bench.html").read_text()


def test_prints_totals_and_stages(command, bundle):
    code, out, _ = command(
        "bench", bundle, "--size", 256, "--budget", "2", "--rounds", 1, "--max-new-tokens", 2
    )
    assert code == 0
    for text in ("ort-cpu fp32 2 256 px", "first token", "prefill", "peak MB", "machine"):
        assert text in out


def slowed(measured, tmp_path, stage, factor):
    report = json.loads((measured / "bench.json").read_text())
    found = report["cases"][0]["stages_ms"][stage]
    base = [10.0 + 0.1 * i for i in range(12)]
    before = json.loads(json.dumps(report))
    before["cases"][0]["stages_ms"][stage] = found | {"rounds": base, "p50": 10.5}
    report["cases"][0]["stages_ms"][stage] = found | {
        "rounds": [factor * ms for ms in base], "p50": factor * 10.5,
    }  # fmt: skip
    paths = tmp_path / "before.json", tmp_path / "after.json"
    for path, data in zip(paths, (before, report), strict=True):
        path.write_text(json.dumps(data))
    return paths


def test_a_slower_stage_is_named_and_fails(command, measured, tmp_path):
    code, out, _ = command("bench", "--compare", *slowed(measured, tmp_path, "encode", 1.2))
    assert code == 1
    assert "1.20x" in out
    line = next(x for x in out.splitlines() if "SLOWER" in x)
    assert " encode " in line
    assert "1 of " in out.splitlines()[-1]


def test_the_same_run_twice_is_no_regression(command, measured, tmp_path):
    paths = slowed(measured, tmp_path, "encode", 1.0)
    code, out, _ = command("bench", "--compare", *paths, "--json")
    assert code == 0
    assert json.loads(out)["slower"] == 0


def test_quick_measures_what_the_planner_needs_and_remembers_it(command, bundle, own_cache):
    code, out, _ = command("bench", bundle, "--quick", "--threads", 1, "--json")
    assert code == 0
    (model,) = json.loads(out)["models"].values()
    assert model["spread"] >= 1
    assert model["source"].startswith("measured on this machine")
    assert list((own_cache / "geomag-edge" / "latency").glob("ort-cpu-fp32-*.json"))


def test_nothing_to_do_is_said_in_one_line(command, tmp_path):
    code, _, err = command("bench")
    assert code == 2
    assert "give a BUNDLE" in err
    code, _, err = command("bench", "--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 2
    assert "cannot read" in err
    assert len(err.splitlines()) == 1
