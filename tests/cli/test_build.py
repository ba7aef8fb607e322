"""`targets` and `build`: what they print, what they refuse, and their exit codes."""

import json
import shutil

import pytest


def test_targets_lists_targets_devices_and_this_machine(command):
    code, out, _ = command("targets")
    assert code == 0
    for word in ("jetpack6", "tensorrt-rtx", "agx-orin-64", "--target auto"):
        assert word in out
    code, out, _ = command("targets", "--json")
    data = json.loads(out)
    assert {t["name"] for t in data["targets"]} >= {"portable", "jetpack7.2"}
    assert "MatMul" in next(t for t in data["targets"] if t["name"] == "jetpack6")["operators"]
    assert data["here"]["machine"]["platform"]


def test_a_users_device_is_listed_and_checked(command, bundle, tmp_path):
    board = {
        "name": "board", "label": "Board", "targets": ["tensorrt-rtx"], "sm": "8.6",
        "fp16_tflops": 5, "int8_tops": None, "gb_s": 50, "gb": 0.1, "shared_memory": False,
        "watts": [10],
    }  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"devices": [board]}))
    code, out, _ = command("targets", "--targets-file", path)
    assert code == 0
    assert "board" in out
    code, out, err = command(
        "build", bundle, "--check-only", "--device", "board", "--targets-file", path
    )
    assert code == 1
    assert "geomag-edge build: error: fp32 for tensorrt-rtx needs" in err
    assert "board has 0.10 GB: it does not fit" in err
    assert "prefill" in out
    assert not (bundle / "engines").exists()


def test_a_check_alone_builds_nothing(command, bundle):
    code, out, _ = command("build", bundle, "--target", "jetpack7.2", "--check-only",
                           "--device", "orin-nano-8gb", "--watts", 7)  # fmt: skip
    assert code == 0
    assert "it fits" in out
    code, out, _ = command("build", bundle, "--target", "jetpack7.2", "--check-only", "--json")
    assert code == 0
    assert json.loads(out)["device"] is None
    assert not (bundle / "engines").exists()


def test_what_a_target_refuses_is_known_before_anything_goes_to_the_device(command, bundle):
    code, _, err = command("build", bundle, "--target", "jetpack6", "--check-only")
    assert code == 2
    assert "'jetpack6' cannot take encoder.onnx: node" in err
    assert "(Attention)" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "jetpack9"], "unknown target 'jetpack9'"),
        (["--target", "portable"], "has no engines to build"),
        (["--target", "tensorrt-rtx", "--precision", "int8"], "no int8 graphs"),
        (["--device", "phone"], "unknown device 'phone'"),
        (["--device", "t4", "--target", "tensorrt-rtx", "--watts", "9e2"], "no power mode of 900"),
        (["--targets-file", "none.json"], "cannot read none.json"),
        (["--graph", "psc"], "invalid choice: 'psc'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(command, bundle, arguments, says):
    code, _, err = command("build", bundle, *arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_build_prints_its_engines_and_skips_what_is_there(command, bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    root = shutil.copytree(bundle, tmp_path / "bundle")
    arguments = ["build", root, "--target", "tensorrt-rtx", "--device", "l4", "--graph", "embed"]
    code, out, err = command(*arguments)
    assert code == 0
    assert "1 engines in" in out
    assert "embed (tokens)" in err
    code, out, _ = command(*arguments, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["built"] == []
    assert report["loads_on_sm"] == ["8.9"]
    assert report["fit"]["device"] == "l4"


def test_inspect_lists_the_engines_of_a_bundle(command, exported, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    root = shutil.copytree(exported(dtype="fp16").bundle, tmp_path / "bundle")
    command("build", root, "--target", "tensorrt-rtx", "--graph", "embed", "--device", "l4")
    code, out, _ = command("inspect", root)
    assert code == 0
    line = out.strip().splitlines()[-1].split()
    assert line[:3] == ["tensorrt-rtx", "fp16", "tensorrt_rtx"]
    assert {"8.9", "growing"} <= set(line)


def test_inspect_reads_the_parity_of_every_engine(command, bundle, tmp_path):
    root = shutil.copytree(bundle, tmp_path / "bundle")
    data = json.loads((root / "bundle.json").read_text())
    report = data["parity"]["fp32"]
    data["parity"]["int8"] = {"ort-cpu": report, "openvino": report | {"engine": "openvino"}}
    (root / "bundle.json").write_text(json.dumps(data))
    code, out, _ = command("inspect", root)
    assert code == 0
    assert [x.split()[:2] for x in out.splitlines() if x.startswith("int8 ")] == [
        ["int8", "ort-cpu"], ["int8", "openvino"]
    ]  # fmt: skip


def test_export_for_an_unknown_target_lists_the_known_ones(command, checkpoint_of, tmp_path):
    code, _, err = command("export", checkpoint_of("qwen2-clip"), "-o", tmp_path / "b",
                           "--target", "tpu")  # fmt: skip
    assert code == 2
    assert "unknown target 'tpu': choose one of portable" in err
