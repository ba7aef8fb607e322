"""`geomag-edge calibrate` on a tiny bundle: what is written, what is re-used, what is refused."""

import contextlib
import io
import json
import shutil

import pytest

from geomag_edge.calibration.quantization.scales import load_scales
from geomag_edge.errors import BundleError
from geomag_edge.manifest import Bundle

SET = ("--data", "scenes:1:2:96", "--count", "9")


@pytest.fixture(scope="module")
def made(bundle, tmp_path_factory):
    """A calibrated copy of the bundle, and what the command printed."""
    from geomag_edge.cli.main import main

    out, printed = tmp_path_factory.mktemp("calibrate") / "calibrated", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["calibrate", str(bundle), *SET, "-o", str(out), "--json"]) == 0
    return out, json.loads(printed.getvalue())


@pytest.fixture
def calibrated(made, tmp_path):
    """A calibrated bundle that a test may change."""
    return shutil.copytree(made[0], tmp_path / "copy")


def test_a_copy_is_calibrated_and_the_bundle_left_as_it_was(bundle, made):
    out, data = made
    assert data["set"]["questions"] == sum(row["questions"] for row in data["asked"]) == 9
    assert not data["reused"]
    assert data["calls"]["mask_head"]
    assert data["peak_memory_mb"] > 0
    copy = Bundle.open(out)
    assert copy.manifest.calibration["digest"] == data["set"]["digest"]
    assert load_scales(copy).graph("encoder").tensors
    for name in copy.manifest.files:
        copy.file(name)
    with pytest.raises(BundleError, match="not calibrated"):
        load_scales(Bundle.open(bundle))


def test_the_same_set_is_not_captured_again(command, calibrated, monkeypatch):
    from geomag_edge.calibration.quantization import capture

    def never(*args, **kwargs):
        raise AssertionError

    out = calibrated
    before = (out / "calibration/scales.json").read_bytes()
    monkeypatch.setattr(capture, "capture", never)
    code, text, _ = command("calibrate", out, *SET, "--method", "entropy")
    assert code == 0
    assert "re-used" in text
    assert (out / "calibration/scales.json").read_bytes() == before
    assert Bundle.open(out).manifest.calibration["method"] == "entropy"
    code, _, err = command("calibrate", out, *SET, "--seed", 5)
    assert code == 1  # another choice of questions: captured anew
    assert "AssertionError" in err


def test_the_table_says_what_was_seen(command, calibrated):
    code, text, _ = command("calibrate", calibrated, "--data", "scenes:2:2:96", "--count", 8)
    assert code == 0
    for word in ("scenes:2:2:96: 8 questions", "peak memory", "routed", "mask_head", "(mse)"):
        assert word in text


def test_a_set_that_lacks_a_level_is_warned_of(command, bundle, tmp_path, picture):
    root = tmp_path / "set"
    root.mkdir()
    (root / "p.png").write_bytes(picture.read_bytes())
    line = {"image": "p.png", "prompt": "how many ships are there?", "level": "image"}
    (root / "questions.jsonl").write_text((json.dumps(line) + "\n") * 8)
    code, text, err = command("calibrate", bundle, "--data", root, "-o", tmp_path / "out")
    assert code == 0
    warning = "has no question of the region and pixel level"
    assert warning in err
    assert warning in text
    assert "mask_head never ran" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data", ""), "never made from random numbers"),
        (("--data", "nowhere"), "no calibration set at nowhere"),
        (("--data", "scenes:1"), "write scenes:SEED:COUNT"),
        (("--data", "scenes:1:1:96", "--count", 2), "2 questions are too few"),
        (("--data", "scenes:1:1:96", "--method", "max"), "invalid choice"),
    ],
)
def test_a_wrong_set_is_one_line(command, bundle, given, message):
    code, out, err = command("calibrate", bundle, *given)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_the_bundle_is_no_place_for_its_own_copy(command, bundle):
    code, _, err = command("calibrate", bundle, *SET, "-o", bundle)
    assert code == 2
    assert "leave -o away" in err
