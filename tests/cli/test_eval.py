"""`geomag-edge eval` on a real, tiny, untrained bundle: what matters is that it all fits."""

import json

import pytest

SET = "scenes:3:2:96"


@pytest.fixture(scope="module")
def reported(bundle, tmp_path_factory):
    """The report of a run on the whole set."""
    from geomag_edge.cli.main import main

    path = tmp_path_factory.mktemp("eval") / "report.json"
    given = ("eval", bundle, "--data", SET, "--max-new-tokens", 4, "-o", path)
    assert main([str(a) for a in given]) == 0
    return path


def test_prints_the_tables_and_says_what_ran(command, bundle):
    code, out, err = command(
        "eval", bundle, "--data", SET, "--max-new-tokens", 4, "--budget", "3", "--limit", 20
    )
    assert (code, err) == (0, "")
    for text in (
        f"{SET}: 2 pictures, 20 questions", "ort-cpu fp32 (CPUExecutionProvider)", "UNTRAINED",
        "mIoU", "box IoU@0.5", "level: image", "size: ", "median ms",
    ):  # fmt: skip
        assert text in out
    assert "9.0  9.0 .. 9.0" in out  # a 3 x 3 grid and no crops, in every answer


def test_the_json_holds_metrics_and_records(command, bundle, reported):
    code, out, _ = command("eval", bundle, "--data", SET, "--max-new-tokens", 4, "--json")
    assert code == 0
    data, written = json.loads(out), json.loads(reported.read_text())
    assert data["questions"] == len(data["records"]) == 24
    assert data["metrics"] == written["metrics"]
    assert data["providers"]["llm"] == "CPUExecutionProvider"
    assert data["checkpoint"]


def test_a_folder_and_the_rendered_set_agree_through_the_chain(command, bundle, reported, tmp_path):
    folder = tmp_path / "set"
    command("scenes", "-o", folder, "--count", 2, "--size", 96, "--seed", 3)
    code, out, _ = command(
        "eval", bundle, "--data", folder, "--max-new-tokens", 4, "--compare", reported, "--json"
    )
    made = json.loads(out)["comparison"]
    assert code == 0
    assert (made["identical"], made["questions"], made["only_here"]) == (1.0, 24, 0)
    for d in made["differences"]:
        assert d["difference"] in (0.0, None)
        assert d["low"] in (0.0, None)


def test_another_bundle_is_asked_the_same_and_compared(command, bundle, tmp_path):
    code, out, _ = command(
        "eval", bundle, "--data", SET, "--limit", 3, "--max-new-tokens", 2, "--compare", bundle,
        "-o", tmp_path / "r.json",
    )  # fmt: skip
    assert code == 0
    assert "100.0% of 3 identical" in out
    assert json.loads((tmp_path / "r.json").read_text())["comparison"]["identical"] == 1.0


def test_torch_and_onnx_runtime_get_the_same_numbers(command, bundle, checkpoint_of, reported):
    code, out, _ = command(
        "eval", bundle, "--data", SET, "--max-new-tokens", 4, "--engine", "torch",
        "--checkpoint", checkpoint_of("qwen2-clip"), "--compare", reported, "--json",
    )  # fmt: skip
    made = json.loads(out)["comparison"]
    assert code == 0
    assert made["identical"] == 1.0
    for d in made["differences"]:
        assert d["difference"] is None or abs(d["difference"]) <= 0.001


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data", "scenes:x"), "write scenes:SEED:COUNT"),
        (("--data", "nowhere"), "no set at nowhere"),
        (("--data", SET, "--limit", 0), "--limit"),
        (("--data", SET, "--budget", "lots"), "unknown budget 'lots'"),
        (("--data", SET, "--precision", "int3"), "no int3 graphs"),
        (("--data", SET, "--engine", "abacus"), "abacus"),
        (("--data", SET, "--compare", "none.json"), "cannot read none.json"),
        (("--data", SET, "-o", "no/where.json"), "does not exist"),
        ((), "--data"),
    ],
)
def test_bad_input_in_one_line(command, bundle, given, message):
    code, out, err = command("eval", bundle, *given)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_reports_of_other_sets_cannot_be_compared(command, bundle, reported):
    code, _, err = command(
        "eval", bundle, "--data", "scenes:4:1:96", "--limit", 1, "--compare", reported
    )
    assert code == 2
    assert "no question in common" in err


def test_interrupted_leaves_no_report(command, bundle, tmp_path, monkeypatch):
    from geomag_edge.runtime.chain.scene_session import SceneSession

    ask, asked = SceneSession.ask, []

    def stop(self, *args):
        if asked:
            raise KeyboardInterrupt
        asked.append(ask(self, *args))
        return asked[0]

    monkeypatch.setattr(SceneSession, "ask", stop)
    code, _, err = command(
        "eval", bundle, "--data", SET, "--max-new-tokens", 2, "-o", tmp_path / "r.json"
    )
    assert code == 130
    assert "nothing half-written" in err
    assert list(tmp_path.iterdir()) == []
