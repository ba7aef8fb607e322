"""Every graph of `nano` and `base` as engines of TensorRT for RTX: by the command line, with all
profiles, for every GPU of the target, on a machine without one. No engine is run.
"""

import json
import shutil

import pytest

from geomag_edge.calibration.quantization.recipes import RECIPES
from geomag_edge.calibration.quantize import write_graphs
from geomag_edge.cli.main import main
from geomag_edge.disk.amend import amended
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.tensorrt.profiles import profiles_of
from geomag_edge.targets import find_target

pytest.importorskip("tensorrt_rtx")

RTX = find_target("tensorrt-rtx")

NARROW = {
    "fp16": {"encoder": "HALF", "llm": "HALF", "mask_head": "HALF"},
    "int8": {"encoder": "INT8", "llm": "INT8", "mask_head": "INT8"},
    "int4-llm": {"encoder": "HALF", "llm": "HALF*INT4", "mask_head": "HALF"},
    "int8+int4-llm": {"encoder": "INT8", "llm": "HALF*INT4", "mask_head": "INT8"},
    "fp8": {"encoder": "FP8", "llm": "FP8"},
}
"""Recipe -> graph -> the type that most of its layers multiply in."""


def test_every_recipe_is_here():
    assert set(NARROW) == set(RECIPES)


@pytest.fixture(scope="module")
def own_nano(nano, tmp_path_factory):
    """A copy to build in."""
    return shutil.copytree(nano, tmp_path_factory.mktemp("built") / "nano")


def built(root, precision, capsys, *options):
    """The build report of `geomag-edge build --json`, the precision's graphs written before."""
    with amended(Bundle.open(root), f"onnx/{precision}") as change:
        write_graphs(change, precision)  # unjudged: its answers are not what is tested
    capsys.readouterr()
    arguments = ["build", root, "--target", RTX.name, "--precision", precision, "--json", *options]
    assert main([str(a) for a in arguments]) in (None, 0)
    return json.loads(capsys.readouterr().out)


def check(report, root, precision):
    """Every engine with every profile, for all GPUs that have the type, as large as predicted."""
    assert list(report["engines"]) == list(CHAIN)
    assert report["loads_on_sm"] == list(RTX.sm_for(precision))
    assert report["built_on"]["gpu"] is None
    bundle = Bundle.open(root)
    cache = report["options"]["cache"]
    for graph, profiles in profiles_of(bundle.manifest, cache=cache).items():
        [file] = report["engines"][graph]
        assert [p["name"] for p in file["profiles"]] == [p.name for p in profiles]
        assert bundle.file(file["file"]).stat().st_size == file["bytes"]
        types = file["layer_precisions"]
        if narrow := NARROW[precision].get(graph):
            assert max(types, key=types.get) == narrow, (graph, types)
    engines = [file for files in report["engines"].values() for file in files]
    built = sum(f["bytes"] + f["memory"]["activation_bytes"] for f in engines)
    predicted = sum(e["engine_bytes"] + e["activation_bytes"] for e in report["fit"]["engines"])
    assert predicted == pytest.approx(built, rel=0.2)


@pytest.mark.parametrize("precision", NARROW)
def test_nano_builds_whole(own_nano, precision, capsys):
    check(built(own_nano, precision, capsys), own_nano, precision)


def test_a_fixed_cache_builds_too(own_nano, capsys):
    report = built(own_nano, "int8", capsys, "--cache", "fixed", "--graph", "llm")
    [llm] = report["engines"]["llm"]
    expected = profiles_of(Bundle.open(own_nano).manifest, cache="fixed")["llm"]
    assert [p["name"] for p in llm["profiles"]] == [p.name for p in expected]
    assert all(set(p["axes"]) == {"B", "T"} for p in llm["profiles"])
    assert report["options"]["cache"] == "fixed"
    assert llm["layer_precisions"]["INT8"]


@pytest.mark.slow
def test_base_builds_whole_in_half_and_in_int8(tmp_path, capsys):
    """Needs 12 GB of memory and 10 GB of disk; some minutes, most of them for the export."""
    from geomag_edge.calibration.quantization.capture import capture
    from geomag_edge.calibration.quantization.scales import save_scales
    from geomag_edge.calibration.sets.calibrating import open_calibration_set
    from geomag_edge.export.exporter import export_bundle
    from geomag_edge.model.presets import make_preset

    root = tmp_path / "bundle"
    export_bundle(make_preset("base", tmp_path / "base"), root)
    found = capture(Bundle.open(root), open_calibration_set("scenes:1:1:256"), threads=1)
    save_scales(Bundle.open(root), found.scales, "mse")
    for precision in ("fp16", "int8"):
        report = built(root, precision, capsys)
        check(report, root, precision)
        assert report["peak_rss_bytes"] < 12e9
