"""`geomag-edge scenes`: a folder that `eval` reads."""

import json

import pytest


def test_writes_a_set_that_names_itself(command, tmp_path):
    code, out, err = command(
        "scenes", "-o", tmp_path / "set", "--count", 2, "--size", 96, "--seed", 8
    )
    assert (code, err) == (0, "")
    assert "2 scenes with 24 questions (scenes:8:2:96)" in out
    assert len(list((tmp_path / "set" / "images").glob("*.tif"))) == 2
    assert len((tmp_path / "set" / "questions.jsonl").read_text().splitlines()) == 24


def test_json_on_stdout_alone(command, tmp_path):
    code, out, _ = command(
        "scenes", "-o", tmp_path / "set", "--count", 1, "--size", 96, "--questions", 2, "--json"
    )
    assert code == 0
    assert json.loads(out) == {
        "folder": str(tmp_path / "set"), "set": "scenes:0:1:96", "scenes": 1, "questions": 6,
    }  # fmt: skip


def test_force_replaces_an_earlier_set_and_nobody_elses_folder(command, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    given = ("scenes", "-o", tmp_path / "set", "--count", 1, "--size", 96)
    code, _, err = command(*given)
    assert code == 2
    assert "exists" in err
    assert command(*given, "--force")[0] == 2
    assert (tmp_path / "set" / "old").exists()
    (tmp_path / "set" / "questions.jsonl").touch()
    assert command(*given, "--force")[0] == 0
    assert not (tmp_path / "set" / "old").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--count", 0), "--count"),
        (("--size", 8), "8 px"),
        (("--size", 100_000), "100000 px"),
        (("--seed", -1), "-1 is not at least 0"),
        (("--seed", 10**9), "seed is 1000000000"),
        (("--questions", 0), "--questions"),
    ],
)
def test_wrong_arguments_in_one_line(command, tmp_path, given, message):
    code, out, err = command("scenes", "-o", tmp_path / "set", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_interrupted_leaves_nothing(command, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("geomag_edge.calibration.sets.rendered.write_labels", stop)
    code, _, err = command("scenes", "-o", tmp_path / "set", "--count", 1, "--size", 96)
    assert code == 130
    assert "nothing half-written" in err
    assert list(tmp_path.iterdir()) == []
