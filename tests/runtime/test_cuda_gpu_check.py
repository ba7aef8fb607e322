"""benchmarks/gpu_check.py: every step's logic on the stand-ins, from which nothing is claimed of
speed; its children, real ones that crash and hang; its page, with and without a GPU.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from geomag_edge.benchmarks import gpu_check
from geomag_edge.benchmarks.gpu import basics, child, engines, facts, outcome, page, steps
from geomag_edge.benchmarks.gpu import psc_crop as gpu_psc_crop
from geomag_edge.benchmarks.gpu.steps import Settings, steps_of
from geomag_edge.errors import EngineError, GeoMagError, MissingExtraError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain import pipeline
from geomag_edge.runtime.engines.cuda.driver import CudaDriver
from geomag_edge.runtime.engines.ort_cuda import OrtCudaEngine, OrtCudaSession

COMMAND = [sys.executable, "-m", "geomag_edge.benchmarks.gpu_check"]


def gpu_present():
    try:
        CudaDriver()
    except GeoMagError:
        return False
    return True


no_gpu = pytest.mark.skipif(gpu_present(), reason="there is a GPU")


@no_gpu
def test_without_a_gpu_the_page_says_why_and_every_other_step_is_not_possible(bundle, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [*COMMAND, str(bundle), "-o", str(out)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    [data, text] = sorted(out.iterdir())
    assert (data.suffix, text.suffix) == (".json", ".txt")
    assert data.name.startswith("gpu_check_no-gpu_")
    assert done.stdout.strip() == text.read_text().strip()
    assert "NO GPU THAT CAN BE USED HERE" in done.stdout
    assert "Then run this again." in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 160  # but for the command
    report = json.loads(data.read_text())
    assert report["running"] is None
    assert report["steps"].keys() == steps_of(Settings()).keys()
    assert report["steps"]["machine"]["ok"]
    for name, step in report["steps"].items():
        if name not in ("machine", "driver"):
            assert not step["ran"]
            assert step["reason"].startswith("not possible here: ")
    assert "GPU" in report["steps"]["driver"]["reason"] or "NVIDIA" in done.stdout


@pytest.mark.parametrize(
    "given",
    [["nowhere"], ["-o", "/dev/null/x"], ["--no-such-option"]],
    ids=["no bundle there", "no place to write", "no such option"],
)
def test_bad_usage_is_told_before_anything_runs(given, tmp_path):
    done = subprocess.run([*COMMAND, *given], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "machine ..." not in done.stderr
    assert not list(tmp_path.iterdir())


# --- the steps on the stand-ins


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


def test_memory_and_small_kernels_are_right_or_not(device, monkeypatch):
    assert basics.memory(device)["ok"]
    assert basics.small_kernels(device) == {"ok": True, "wrong": None}
    launch = device.driver.launch

    def reversed_order(kernel, blocks, threads, *arguments):
        if "argmax" in kernel:  # the smallest index of all, whatever the logits are
            arguments = (arguments[0], type(arguments[1])(1), arguments[2])
        launch(kernel, blocks, threads, *arguments)

    monkeypatch.setattr(device.driver, "launch", reversed_order)
    report = basics.small_kernels(device)
    assert not report["ok"]
    assert "the likeliest token of float32" in report["wrong"]


def test_compiling_says_what_compiled_and_how_long_it_took(device, monkeypatch):
    asked = []
    monkeypatch.setattr(basics.cuda_image, "compile_cubin", asked.append)
    monkeypatch.setattr(basics.kernels, "compiled", asked.append)
    monkeypatch.setattr(basics.nvrtc, "compiler", lambda: {"nvrtc": "13.5"})
    report = basics.compiled(device)
    assert asked == [87, 87]
    assert report["compiler"] == {"nvrtc": "13.5"}
    assert report["seconds_by_file"].keys() == {"crop", "small"}


class OnTheCpu(OrtCudaEngine):
    def session(self, graph):
        path = self.bundle.graph(graph, self.precision, "onnxruntime")
        return OrtCudaSession(path, self.device, ("CPUExecutionProvider", {}), "cpu")


@pytest.fixture
def on_stand_in(monkeypatch, make_device):
    """`ort-cuda`, and the steps' device, open on the stand-in; TensorRT is not installed."""
    plain = pipeline.open_engine

    def missing(module):
        raise MissingExtraError(f"{module} cannot be imported")

    monkeypatch.setattr(engines, "load_flavour", missing)

    def opened(name, bundle, precision, *rest, **more):
        if name == "ort-cuda":
            return OnTheCpu(bundle, precision, make_device(late=False))
        return plain(name, bundle, precision, *rest, **more)

    monkeypatch.setattr(pipeline, "open_engine", opened)
    monkeypatch.setattr(engines, "open_engine", opened)
    monkeypatch.setattr(basics, "opened", lambda: make_device(late=False))
    gpu = {"name": "stand-in", "sm": "8.7", "memory_bytes": 8 << 30}
    monkeypatch.setattr(basics, "driver", lambda: {"cuda": "13.0", "gpus": [gpu]})
    monkeypatch.setattr(
        basics, "compiled", lambda device: {"compiler": {"nvrtc": "13.5"}, "seconds_by_file": {}}
    )


def here(name, step, settings):
    """A step in this process."""
    return {**outcome.ran(lambda: step.act(settings)), "seconds": 0.1}


def test_every_step_is_run_or_says_why_not(bundle, small_scene, on_stand_in, monkeypatch):
    monkeypatch.setattr(gpu_psc_crop, "find_tool", lambda name: None)
    written = []
    settings = Settings(str(bundle), "fp32", 2)
    report = gpu_check.check(
        settings, "gpu_check", here, lambda r: written.append(json.loads(json.dumps(r)))
    )
    found = report["steps"]
    assert report["ok"], {n: s for n, s in found.items() if s["ran"] and not s["ok"]}
    assert report["usable"]
    for graph in CHAIN:
        assert found[f"graph ort-cuda {graph}"]["ok"]
        assert found[f"build tensorrt {graph}"]["reason"] == "tensorrt cannot be imported"
        reason = "not possible here: tensorrt cannot be imported"
        assert found[f"graph tensorrt {graph}"]["reason"] == reason
    chain = found["chain ort-cuda"]
    assert chain["ran"]
    assert all(a["tokens_equal"] for a in chain["answers"])
    assert set(chain["host_copies_bytes"]) <= engines.TO_HOST
    assert found["captures ort-cuda"]["ok"]
    assert found["timings ort-cuda"]["decode_step_ms"] > 0
    for name in ("crop compute-sanitizer", "chain tensorrt", "chain tensorrt-rtx"):
        assert not found[name]["ran"]
        assert "\n" not in found[name]["reason"]
    # Written before and after every step, so that a machine that goes down has told which it was.
    assert [r["running"] for r in written] == [*steps_of(settings), None]
    text = page.page_of(report, gpu_check.advice_of(settings))
    assert "Nothing is wrong of what ran" in text
    assert "stand-in, sm 8.7" in text
    assert max(map(len, text.splitlines())) <= 130
    halfway = page.page_of(written[5], gpu_check.advice_of(settings))
    assert f"NOT FINISHED: it was in the step '{written[5]['running']}'" in halfway


def test_without_a_bundle_the_steps_before_the_engines_run(on_stand_in, small_scene):
    report = gpu_check.check(Settings(rounds=2), "gpu_check", here)
    assert report["usable"]
    assert report["steps"]["crop right"]["ok"]
    reason = report["steps"]["chain ort-cuda"]["reason"]
    assert reason.startswith("not possible here: no bundle was given")


def test_a_step_that_is_wrong_stops_only_what_needs_it(bundle, on_stand_in, small_scene):
    def run(name, step, settings):
        if name == "crop right":
            return {"ran": True, "ok": False, "wrong": "views are off", "seconds": 1.0}
        return here(name, step, settings)

    settings = Settings(str(bundle), "fp32", 2)
    report = gpu_check.check(settings, "gpu_check", run)
    assert not report["ok"]
    assert report["usable"]
    assert report["steps"]["chain ort-cuda"]["reason"] == "needs 'crop right', which is wrong"
    assert report["steps"]["crop speed"]["ok"]
    assert all(report["steps"][f"graph ort-cuda {g}"]["ok"] for g in CHAIN)
    text = page.page_of(report, gpu_check.advice_of(settings))
    assert "1. crop right: views are off - the crop kernel is at fault" in text


def test_ctrl_c_leaves_what_was_found(on_stand_in):
    def run(name, step, settings):
        if name == "kernels right":
            raise KeyboardInterrupt
        return here(name, step, settings)

    report = gpu_check.check(Settings(), "gpu_check", run)
    assert report["running"] == "kernels right"
    assert report["steps"]["memory"]["ok"]
    assert not report["ok"]


def test_an_array_copied_between_stages_is_a_wrong_result(bundle, on_stand_in, monkeypatch):
    from geomag_edge.runtime.engines.cuda.values import DeviceValues

    plain = DeviceValues.concat

    def through_the_host(self, parts):
        parts[0].numpy("visual")
        return plain(self, parts)

    monkeypatch.setattr(DeviceValues, "concat", through_the_host)
    report = engines.chain(Bundle.open(bundle), "ort-cuda", "fp32")
    assert not report["ok"]
    assert report["wrong"] == "copied to the host between stages: visual"


def test_a_graph_that_answers_otherwise_is_named_with_its_output(bundle, on_stand_in, monkeypatch):
    plain = OrtCudaSession.run

    def off(self, feeds, keep=frozenset()):
        made = plain(self, feeds, keep)
        return {k: v * 1.5 if k == "quality" else v for k, v in made.items()}

    monkeypatch.setattr(OrtCudaSession, "run", off)
    report = engines.graph(Bundle.open(bundle), "ort-cuda", "fp32", "mask_head")
    assert not report["ok"]
    assert report["wrong"].startswith("mask_head, output quality: ")


# --- built engines


@pytest.fixture
def rtx(exported, tmp_path, monkeypatch):
    """A copy of an fp16 bundle, and a machine with a GPU that TensorRT for RTX builds for."""
    pytest.importorskip("tensorrt_rtx")
    machine = engines.look_around()
    seen = replace(machine, gpu="NVIDIA L4", sm="8.9")
    monkeypatch.setattr(engines, "look_around", lambda: seen)
    return Bundle.open(shutil.copytree(exported(dtype="fp16").bundle, tmp_path / "bundle"))


def test_each_graph_is_built_on_its_own_and_not_twice(rtx):
    made = engines.build(rtx, "tensorrt-rtx", "fp16", "embed")
    assert made["engines"][0]["bytes"] > 0
    assert made["folder"] == "engines/tensorrt-rtx/fp16"
    engines.build(Bundle.open(rtx.root), "tensorrt-rtx", "fp16", "projector")
    again = engines.build(Bundle.open(rtx.root), "tensorrt-rtx", "fp16", "embed")
    assert again["already"] == made["folder"]
    assert json.loads(json.dumps(again)) == again


def test_where_no_target_fits_the_build_says_so(rtx, monkeypatch):
    monkeypatch.setattr(
        engines, "look_around", lambda: replace(facts.look_around(), gpu="GH100", sm="9.0")
    )
    with pytest.raises(outcome.NotHere, match=r"on GH100 \(sm 9\.0\)"):
        engines.build(rtx, "tensorrt-rtx", "fp16", "embed")


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


# --- processes


def test_steps_that_fail_do_not_hide_each_other():
    def raising(error):
        def act():
            raise error

        return outcome.ran(act)

    for kind in (MissingExtraError, outcome.NotHere, ImportError):
        assert raising(kind("none\nhere")) == {"ran": False, "reason": "none here"}
    # Our own complaint of a GPU that failed is a wrong result, and none of a missing machine.
    failed = {"ran": True, "ok": False, "error": "the GPU failed: ILLEGAL_ADDRESS"}
    assert raising(EngineError("the GPU failed: ILLEGAL_ADDRESS")) == failed
    crashed = {"ran": True, "ok": False, "error": "RuntimeError: boom second line"}
    assert raising(RuntimeError("boom\nsecond line")) == crashed
    assert outcome.ran(lambda: {"x": 1}) == {"ran": True, "ok": True, "x": 1}


def test_a_gpu_that_cannot_be_opened_is_wrong_and_comes_first(on_stand_in, monkeypatch):
    def cannot():
        raise EngineError("no usable NVIDIA driver and GPU here: OUT_OF_MEMORY")

    monkeypatch.setattr(basics, "opened", cannot)
    report = gpu_check.check(Settings(), "gpu_check", here)
    assert not report["usable"]
    assert page.word(report["steps"]["memory"]) == "WRONG"
    assert report["steps"]["kernels compiled"]["reason"] == "needs 'memory', which is wrong"
    assert page.next_of(report, {})[0].startswith("no usable NVIDIA driver and GPU here")


def watched(code, tmp_path, limit_s=20.0):
    into = tmp_path / "result.json"
    return child.watched(
        [sys.executable, "-X", "faulthandler", "-c", code, str(into)], into, limit_s
    )


def test_a_step_that_crashes_says_by_what_and_where(tmp_path):
    code = "import ctypes\ndef poke():\n    ctypes.string_at(0)\npoke()"
    result = watched(code, tmp_path)
    assert (result["ran"], result["ok"]) == (True, False)
    assert result["error"] == "crashed (SIGSEGV)"
    assert any("in poke" in line for line in result["said"])


def test_a_step_that_is_killed_points_at_the_memory(tmp_path):
    result = watched("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert "memory runs out" in result["error"]


def test_a_step_that_ends_without_a_result_is_wrong(tmp_path):
    result = watched("print('hm'); raise SystemExit(3)", tmp_path)
    assert result["error"] == "ended with exit code 3 and left no result"
    assert result["said"] == ["hm"]


def test_a_step_that_hangs_is_ended_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "GRACE_S", 5.0)
    code = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(other.pid, flush=True)\n"
        "def stuck():\n    time.sleep(600)\n"
        "stuck()"
    )
    start = time.monotonic()
    result = watched(code, tmp_path, limit_s=3.0)
    assert time.monotonic() - start < 30
    assert result["error"] == "did not end within 3 s"
    assert any("in stuck" in line for line in result["said"])
    other = int(result["said"][0])
    for _ in range(100):
        status = subprocess.run(["ps", "-o", "stat=", "-p", str(other)], capture_output=True)
        if not status.stdout.strip() or status.stdout.strip().startswith(b"Z"):
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the step started is still running")


def test_a_child_does_the_step_that_it_is_told(tmp_path):
    result = child.in_a_process("machine", {}, 60.0)
    assert result["ok"]
    assert result["seconds"] > 0
    assert result["versions"]["numpy"] == np.__version__


def test_what_is_made_after_the_limit_does_not_count(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGABRT, lambda *a: open(sys.argv[1], 'w').write('{}'))\n"
        "time.sleep(60)"
    )
    assert watched(code, tmp_path, limit_s=1.0)["error"] == "did not end within 1 s"


# --- what is asked of a machine


def test_a_jetsons_facts_are_read_from_its_files(tmp_path):
    gpu = tmp_path / "sys/class/devfreq/17000000.gpu"
    gpu.mkdir(parents=True)
    for name, value in (("cur", 306000000), ("min", 306000000), ("max", 1300500000)):
        (gpu / f"{name}_freq").write_text(f"{value}\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  7800000 kB\nSwapTotal:  0 kB\nX: 1 kB\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1\n")
    (tmp_path / ".dockerenv").write_text("")
    found = facts.facts(tmp_path)
    assert found["gpu_clocks_hz"] == {
        "17000000.gpu": {"cur": "306000000", "min": "306000000", "max": "1300500000"}
    }
    assert found["memory_kb"] == {"MemTotal": 7_800_000, "SwapTotal": 0}
    assert found["l4t"].startswith("# R36")
    assert found["container"]
    found["seen"] |= {"jetpack": "6.1 or 6.2", "power_mode": "15W"}
    report = {
        "when": "2026-01-01T00:00:00", "command": "gpu_check", "running": None, "usable": True,
        "ok": True, "steps": {"machine": {"ran": True, "ok": True, **found}},
    }  # fmt: skip
    text = page.page_of(report, {})
    assert "306 of 1300 MHz" in text
    assert "the power mode is 15W" in text
    assert "no swap" in text


def test_the_driver_is_asked_without_any_package(monkeypatch):
    """On a stand-in for libcuda, whose calls write through the pointers that they are given."""

    class Cuda:
        status = 0

        def cuDriverGetVersion(self, version):
            version._obj.value = 12060

        def cuInit(self, flags):
            return self.status

        def cuDeviceGetCount(self, count):
            count._obj.value = 1
            return 0

        def cuDeviceGet(self, device, number):
            device._obj.value = number

        def cuDeviceGetName(self, name, length, device):
            name.value = b"Orin"

        def cuDeviceTotalMem_v2(self, total, device):
            total._obj.value = 8 << 30

        def cuDeviceGetAttribute(self, value, attribute, device):
            value._obj.value = {75: 8, 76: 7, 18: 1, 16: 8}[attribute]

    monkeypatch.setattr(basics.ctypes, "CDLL", lambda name: Cuda())
    gpu = {
        "name": "Orin", "sm": "8.7", "integrated": True, "multiprocessors": 8,
        "memory_bytes": 8 << 30,
    }  # fmt: skip
    assert basics.driver() == {"cuda": "12.6", "gpus": [gpu]}
    monkeypatch.setattr(Cuda, "status", 100)
    with pytest.raises(outcome.NotHere, match=r"finds no GPU \(CUDA error 100\).*groups video"):
        basics.driver()


def test_it_needs_neither_torch_nor_onnx():
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'polygraphy', 'cuda'):\n"
        "    sys.modules[name] = None\n"
        "from geomag_edge.benchmarks import gpu_check\n"
        "gpu_check.steps_of(gpu_check.Settings())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_step_that_is_needed_comes_before(bundle):
    seen = {steps.BUNDLE}
    for name, step in steps_of(Settings()).items():
        assert set(step.needs) <= seen, name
        seen.add(name)


def test_a_first_step_that_fails_does_not_end_the_page():
    """A TensorRT that aborts when it is imported, say."""
    assert page._of_machine({"ran": True, "ok": False, "error": "killed by signal 6"}) == []
