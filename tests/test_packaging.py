"""What a wheel of this repository holds, and that importing it puts nothing generic on the path."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("model", "export", "runtime", "calibration", "cpp_ext", "benchmarks")


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory):
    """The wheel that pip builds from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__", "*.so", "*.fatbin")
    for folder in (*STAGES, "geomag_edge"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=skipped)
    for file in ROOT.glob("*.*"):
        if file.suffix in (".toml", ".py", ".md"):
            shutil.copy(file, source)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation",
         "--quiet", "-w", str(out)],
        check=True, timeout=300,
    )  # fmt: skip
    [path] = out.glob("geomag_edge-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file):
    """Names in the wheel."""
    with zipfile.ZipFile(wheel_file) as archive:
        return archive.namelist()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_installed_under_the_package(wheel, stage):
    sources = {p.name for p in (ROOT / stage).glob("*.py")}
    installed = {n.rpartition("/")[2] for n in wheel if n.startswith(f"geomag_edge/{stage}/")}
    assert sources <= installed


@pytest.mark.parametrize("package", ["geomag_edge", "geomag_edge/cli", "geomag_edge/scenes"])
def test_every_module_of_the_spine_is_installed(wheel, package):
    for source in (ROOT / package).glob("*.py"):
        assert f"{package}/{source.name}" in wheel


def test_data_that_modules_read_beside_them_travels(wheel):
    names = {name.rpartition("/")[2] for name in wheel}
    assert {"int8_probe.onnx", "nano.json", "model.safetensors", "targets.json"} <= names
    assert "geomag_edge/py.typed" in wheel


def test_every_folder_with_modules_is_installed(wheel):
    for top in (*STAGES, "geomag_edge"):
        for init in (ROOT / top).rglob("__init__.py"):
            inside = init.relative_to(ROOT).as_posix()
            name = inside if top == "geomag_edge" else f"geomag_edge/{inside}"
            assert name in wheel


def test_nothing_else_lands_in_site_packages(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"geomag_edge"}


def test_the_kernels_sources_travel_for_machines_that_build_them(wheel):
    for source in (ROOT / "cpp_ext" / "csrc").iterdir():
        if source.suffix in (".h", ".cpp", ".cu"):
            assert f"geomag_edge/cpp_ext/csrc/{source.name}" in wheel


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_the_cuda_kernel_is_compiled_where_nvcc_is_there(wheel):
    [name] = [n for n in wheel if n.endswith(".fatbin")]
    assert name.startswith("geomag_edge/cpp_ext/psc_cuda-")


def test_no_test_travels(wheel):
    assert not [n for n in wheel if "/tests/" in n or "conftest" in n or "/test_" in n]


def test_the_command_is_installed(wheel):
    assert [n for n in wheel if n.endswith(".dist-info/entry_points.txt")]


@pytest.mark.parametrize("stage", STAGES)
def test_the_links_for_editors_lead_to_the_stages(stage):
    link = ROOT / "geomag_edge" / stage
    assert link.resolve() == (ROOT / stage).resolve()


def test_stages_import_under_the_package_and_under_no_bare_name():
    code = """
import importlib, sys
for stage in sys.argv[1:]:
    importlib.import_module("geomag_edge." + stage)
print(*sorted(set(sys.argv[1:]) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *STAGES], capture_output=True, text=True, check=True,
        cwd=Path(sys.prefix), timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == ""


def test_no_extra_brings_a_second_owner_of_the_module_onnxruntime():
    """pip leaves the files of whichever was unpacked last, and removing one breaks the other."""
    extras = re.findall(
        r"^(\w[\w-]*) = (\[.*?\])$", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    assert {"cuda", "cuda12"} <= {name for name, _ in extras}
    assert not [name for name, packages in extras if "onnxruntime-gpu" in packages]


def test_an_extra_for_a_cuda_holds_packages_of_that_cuda_alone():
    text = (ROOT / "pyproject.toml").read_text()
    (thirteen,) = re.findall(r"^cuda = (.*)$", text, re.M)
    (twelve,) = re.findall(r"^cuda12 = (.*)$", text, re.M)
    assert "cuda-bindings==13." in thirteen
    assert "cu12" not in thirteen
    assert "cuda-bindings==12." in twelve
    assert "nvidia-cuda-nvrtc-cu12" in twelve


def test_gpu_check_runs_from_the_wheel_alone_and_writes_nothing_into_it(wheel_file, tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(site)
    before = sorted(site.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "geomag_edge.benchmarks.gpu_check"],
        cwd=here, env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stderr
    assert "WHAT TO DO NEXT" in done.stdout
    assert sorted(p.suffix for p in here.iterdir()) == [".json", ".txt"]
    assert sorted(site.rglob("*")) == before
