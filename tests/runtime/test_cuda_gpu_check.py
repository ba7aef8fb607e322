"""benchmarks/gpu_check.py: without a GPU one line and exit code 2; on the stand-in every part's
logic, from which nothing is claimed of speed.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from geomag_edge.benchmarks import gpu_check
from geomag_edge.benchmarks.gpu import psc_crop as gpu_psc_crop
from geomag_edge.errors import EngineError, GeoMagError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain import pipeline
from geomag_edge.runtime.engines.cuda.driver import CudaDriver
from geomag_edge.runtime.engines.ort_cuda import OrtCudaEngine, OrtCudaSession


def gpu_present():
    try:
        CudaDriver()
    except GeoMagError:
        return False
    return True


@pytest.mark.skipif(gpu_present(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(bundle, tmp_path):
    command = [sys.executable, "-m", "geomag_edge.benchmarks.gpu_check", str(bundle)]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "GPU" in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_scene(monkeypatch):
    """The 16 windows' place taken by three small ones."""
    boxes = np.array([[0, 0, 90, 90], [50, 60, 250, 260], [10, 10, 40, 40]], np.float32)
    monkeypatch.setattr(gpu_psc_crop, "cases", lambda: {gpu_psc_crop.WINDOWS: boxes})
    monkeypatch.setattr(gpu_psc_crop, "SIDE", 300)
    monkeypatch.setattr(gpu_psc_crop, "scene", lambda h=300, w=300: some_scene(h, w))
    monkeypatch.setattr(gpu_psc_crop, "COPIED_BYTES", 1 << 10)
    return boxes


def some_scene(height, width):
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_right_kernel_is_right_and_a_wrong_one_is_not(device, small_scene, monkeypatch):
    report = gpu_psc_crop.exactness(device)
    assert report["ok"]
    assert max(report["largest_error_std"].values()) < 4e-3
    crop = device.driver.crop
    monkeypatch.setattr(device.driver, "crop", lambda i, b, m, v: crop(i, b + 1, m, v))
    report = gpu_psc_crop.exactness(device)
    assert not report["ok"]
    assert "off the" in report["wrong"]


def test_bytes_touched_count_every_pixel_once(small_scene):
    read, written = gpu_psc_crop.touched_bytes(small_scene, 2)
    assert read == 3 * (90 * 90 + 200 * 200 - 40 * 30)
    assert written == 3 * 3 * 336 * 336 * 2


def test_speed_reports_the_share_of_a_copy(device, small_scene):
    report = gpu_psc_crop.speed(device, 3)
    assert {"copy_gb_s", "goal_share", "float32", "float16"} == report.keys()
    assert report["float16"]["bytes_written"] * 2 == report["float32"]["bytes_written"]


class OnTheCpu(OrtCudaEngine):
    def session(self, graph):
        path = self.bundle.graph(graph, self.precision, "onnxruntime")
        return OrtCudaSession(path, self.device, ("CPUExecutionProvider", {}), "cpu")


@pytest.fixture
def on_stand_in(monkeypatch, make_device):
    """`ort-cuda` opens on the stand-in."""
    plain = pipeline.open_engine

    def opened(name, bundle, precision, *rest, **more):
        if name == "ort-cuda":
            return OnTheCpu(bundle, precision, make_device(late=False))
        return plain(name, bundle, precision, *rest, **more)

    monkeypatch.setattr(pipeline, "open_engine", opened)


def test_every_part_is_run_or_says_why_not(bundle, device, small_scene, on_stand_in, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    report = gpu_check.check(Bundle.open(bundle), "fp32", 2, device)
    assert report["ok"], report
    parts = report["parts"]
    chain = parts["chain, ort-cuda"]
    assert chain["ran"]
    assert all(a["tokens_equal"] for a in chain["answers"])
    assert set(chain["host_copies_bytes"]) <= gpu_check.TO_HOST
    for name in ("psc_crop, compute-sanitizer", "chain, tensorrt", "chain, tensorrt-rtx"):
        assert not parts[name]["ran"]
        assert "\n" not in parts[name]["reason"]
    assert "geomag-edge build" in parts["chain, tensorrt-rtx"]["reason"]
    assert json.loads(json.dumps(report)) == report


def test_an_array_copied_between_stages_is_a_wrong_result(bundle, on_stand_in, monkeypatch):
    from geomag_edge.runtime.engines.cuda.values import DeviceValues

    plain = DeviceValues.concat

    def through_the_host(self, parts):
        parts[0].numpy("visual")
        return plain(self, parts)

    monkeypatch.setattr(DeviceValues, "concat", through_the_host)
    report = gpu_check.chain(Bundle.open(bundle), "ort-cuda", "fp32", 1)
    assert not report["ok"]
    assert report["wrong"] == "copied to the host between stages: visual"


def test_parts_that_fail_do_not_hide_each_other():
    def cannot():
        raise EngineError("no such thing\nsecond line")

    def crashes():
        raise RuntimeError("boom")

    assert gpu_check.ran(cannot) == {
        "ran": False,
        "reason": "no such thing second line",  # an error is one line, whatever it was made of
    }
    assert gpu_check.ran(crashes) == {"ran": True, "ok": False, "error": "RuntimeError: boom"}
    assert gpu_check.ran(lambda: {"x": 1}) == {"ran": True, "ok": True, "x": 1}


def test_times_are_stored_beside_the_prediction(exported, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx")
    from geomag_edge.cli.main import main
    from geomag_edge.runtime.engines.tensorrt.bundle import store_measured
    from geomag_edge.runtime.engines.tensorrt.record import load_record

    root = shutil.copytree(exported(dtype="fp16").bundle, tmp_path / "bundle")
    arguments = ["build", str(root), "--target", "tensorrt-rtx", "--graph", "embed"]
    main([*arguments, "--device", "l4"])
    for ms in (1.25, 2.5):  # the second takes the first one's place
        bundle = Bundle.open(root)
        entry = {
            "gpu": "L4", "power_mode": None, "when": "2026-01-01",
            "stages_ms": {"pixel": {"encode": ms, "total": 9.0}},
        }  # fmt: skip
        store_measured(bundle, load_record(bundle, "tensorrt-rtx", "fp16"), entry)
    capsys.readouterr()
    main([*arguments, "--device", "l4"])
    said = capsys.readouterr().out
    [line] = [x for x in said.splitlines() if "encode" in x]
    assert "2.50" in line
    stages = load_record(Bundle.open(root), "tensorrt-rtx", "fp16").fit["stages"]["pixel"]
    [predicted] = [s["ms"] for s in stages if s["stage"] == "encode"]
    assert line.split()[-1] == f"{predicted:.2f}"
    assert "nothing changed" in said
