"""Stored scales: what comes back is what went in, and damage is one clear line."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.calibration.quantization.ranges import METHODS
from geomag_edge.calibration.quantization.scales import (
    Channels,
    GraphScales,
    Scales,
    TensorScale,
    choose_method,
    load_scales,
    save_scales,
)
from geomag_edge.errors import BundleError
from geomag_edge.manifest import Bundle


def example(value=1.5, names=("a", "layer/b")):
    channels = Channels(np.array([1, 2], np.float32), np.array([0.5, 1], np.float32))
    tensors = {n: TensorScale(dict.fromkeys(METHODS, value + i), 7) for i, n in enumerate(names)}
    graph = GraphScales("ab", tensors, dict.fromkeys(names, channels))
    about = {"name": "scenes:1:2", "digest": "d", "questions": 8, "levels": {"image": 8}}
    return Scales(about, {"bins": 1}, {"encoder": graph, "embed": GraphScales("cd", {})}, ["note"])


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that a test may change."""
    return Bundle.open(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def calibrated(copy):
    return save_scales(copy, example(), "mse")


def test_scales_come_back_as_they_were(calibrated):
    back, given = load_scales(calibrated), example()
    assert (back.data, back.settings, back.notes) == (given.data, given.settings, given.notes)
    for name, graph in given.graphs.items():
        assert back.graph(name).sha256 == graph.sha256
        assert back.graph(name).tensors == graph.tensors
        for tensor, channels in graph.channels.items():
            assert np.array_equal(back.graph(name).channels[tensor].absmax, channels.absmax)
            assert np.array_equal(back.graph(name).channels[tensor].rms, channels.rms)
    assert back.graph("llm").tensors == {}


def test_the_manifest_says_what_it_was_calibrated_on(calibrated):
    manifest = Bundle.open(calibrated.root).manifest
    assert manifest.calibration["digest"] == "d"
    assert manifest.calibration["method"] == "mse"
    assert manifest.calibration["settings"] == {"bins": 1}
    assert {"calibration/scales.json", "calibration/channels.npz"} <= set(manifest.files)
    for name in manifest.files:
        calibrated.file(name)  # every sha256 holds


def test_the_json_is_readable(calibrated):
    data = json.loads((calibrated.root / "calibration/scales.json").read_text())
    assert data["graphs"]["encoder"]["tensors"]["layer/b"]["percentile"] == 2.5


def test_calibrating_again_replaces_the_scales(calibrated):
    again = save_scales(calibrated, example(9.0), "entropy")
    assert load_scales(again).graph("encoder").tensors["a"].threshold("mse") == 9.0
    assert again.manifest.calibration["method"] == "entropy"


def test_another_method_keeps_the_scales(calibrated):
    again = choose_method(calibrated, "minmax")
    assert again.manifest.calibration["method"] == "minmax"
    assert load_scales(again).graph("encoder").tensors == example().graph("encoder").tensors


def test_scales_fit_only_the_same_set_settings_and_graphs():
    scales, graphs = example(), {"encoder": "ab", "embed": "cd"}
    assert scales.fits("d", {"bins": 1}, graphs)
    assert not scales.fits("e", {"bins": 1}, graphs)
    assert not scales.fits("d", {"bins": 2}, graphs)
    assert not scales.fits("d", {"bins": 1}, graphs | {"embed": "other"})


def test_a_bundle_that_was_not_calibrated_says_what_to_do(copy):
    with pytest.raises(BundleError, match="run `geomag-edge calibrate` first"):
        load_scales(copy)


def test_changed_scales_are_refused(calibrated):
    path = calibrated.root / "calibration/scales.json"
    path.write_text(path.read_text().replace("1.5", "1.25"))
    with pytest.raises(BundleError, match="sha256 differs"):
        load_scales(Bundle.open(calibrated.root))


def test_an_interrupted_write_leaves_the_bundle_as_it_was(calibrated, monkeypatch):
    def no_space(*args, **kwargs):
        raise KeyboardInterrupt

    before = {p: p.read_bytes() for p in calibrated.root.rglob("*") if p.is_file()}
    monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(KeyboardInterrupt):
        save_scales(calibrated, example(3.0), "mse")
    assert {p: p.read_bytes() for p in calibrated.root.rglob("*") if p.is_file()} == before


DAMAGE = {
    "no tensors": lambda d: d["graphs"]["encoder"].pop("tensors"),
    "a threshold of 0": lambda d: d["graphs"]["encoder"]["tensors"]["a"].update(mse=0),
    "a negative threshold": lambda d: d["graphs"]["encoder"]["tensors"]["a"].update(mse=-1),
    "text for a number": lambda d: d["graphs"]["encoder"]["tensors"]["a"].update(mse="x"),
    "a lost channel": lambda d: d["graphs"]["encoder"]["tensors"]["a"].update(channels="no"),
    "another format": lambda d: d.update(format=1),
    "a list of graphs": lambda d: d.update(graphs=[]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_scales_are_one_clear_line(calibrated, damage):
    path = calibrated.root / "calibration/scales.json"
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    calibrated._checked.add("calibration/scales.json")  # as though the sha256 were of this
    with pytest.raises(BundleError, match=r"scales\.json is damaged.*calibrate the bundle again"):
        load_scales(calibrated)


@given(st.binary(max_size=200))
@settings(max_examples=8)
def test_any_bytes_in_the_npz_are_one_clear_line(bundle, tmp_path_factory, content):
    root = shutil.copytree(bundle, tmp_path_factory.mktemp("any") / "copy")
    made = save_scales(Bundle.open(root), example(), "mse")
    (root / "calibration/channels.npz").write_bytes(content)
    made._checked |= {"calibration/channels.npz"}
    with pytest.raises(BundleError, match="damaged"):
        load_scales(made)
