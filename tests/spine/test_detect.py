"""What a machine is taken for: a target for every GPU and TensorRT, or a line that says why not."""

import itertools
import os
import platform
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.cli.main import main
from geomag_edge.errors import InputError, TargetError
from geomag_edge.targets import cuda as asked
from geomag_edge.targets import known
from geomag_edge.targets.cuda import Gpu, ask_cuda, driver_cuda, newer_than_driver, use_gpu
from geomag_edge.targets.detect import Machine, choose_target, look_around

FAMILIES = ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"]
VERSIONS = [f"10.{n}.0" for n in range(17)] + [f"11.{n}.1" for n in range(6)]
JETSON = {"8.7", "11.0"}
ORIN = "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64"


def seen(
    monkeypatch, arch="x86_64", smi=None, release="", model=None, cuda="no driver", **versions
):
    """A machine whose tools and driver answer so; a version that is an exception is raised."""
    monkeypatch.setattr(platform, "machine", lambda: arch)

    def version(name):
        found = versions.get(name)
        if isinstance(found, Exception):
            raise found
        return found

    return look_around(
        run=lambda command: smi if command[0] == "nvidia-smi" else None,
        read=lambda path: release if path.name == "nv_tegra_release" else model,
        version=version,
        cuda=lambda: cuda,
    )


def gpu(sm, name="GPU"):
    return Gpu(name, sm, 16.0, "13.0")


# every GPU, every version, on every kind of machine


def chosen(machine, engines):
    """The target's name and None, or None and what is said instead."""
    try:
        return choose_target(machine, known(), engines), None
    except TargetError as e:
        return None, str(e)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_gpu_has_a_target_that_holds_it_or_is_told_the_nearest(monkeypatch, version):
    for sm, arch, release, by_smi, engines in itertools.product(
        FAMILIES, ("x86_64", "aarch64"), ("", ORIN), (False, True), (False, True)
    ):
        smi = f"GPU, {sm}, 16000, 550.1" if by_smi else None
        cuda = "there is no driver's library" if by_smi else gpu(sm)
        machine = seen(monkeypatch, arch, smi, release, cuda=cuda, tensorrt=version)
        name, said = chosen(machine, engines)
        if said is None:
            target = known().target(name)
            assert target.takes_version(version)
        else:
            (near,) = (n for n in known().targets if f"'{n}'" in said)
            target = known().target(near)
            assert version in said
        assert sm in target.sm  # all of these GPUs are known


@pytest.mark.parametrize(
    ("sm", "version", "target"),
    [
        ("9.0", "10.3.0", "datacenter-10.0"),
        ("8.0", "10.3.0", "datacenter-10.0"),
        ("9.0", "10.13.3", "datacenter-10.13"),
        ("9.0", "10.14.1", "datacenter-10.13"),
        ("10.0", "10.9.0", "datacenter-10.8"),
        ("10.3", "10.13.2", "datacenter-10.13"),
        ("12.1", "10.14.1", "datacenter-10.13"),
        ("10.3", "10.16.1", "datacenter"),
        ("12.1", "11.5.0", "datacenter"),
        ("8.7", "10.7.0", "jetpack6"),
        ("8.7", "10.3.0", "jetpack6"),
        ("11.0", "10.14.1", "jetpack7"),
        ("8.7", "10.16.2", "jetpack7.2"),
    ],
)
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_common_pairs_have_their_target(monkeypatch, arch, sm, version, target):
    machine = seen(monkeypatch, arch, cuda=gpu(sm), tensorrt=version)
    assert choose_target(machine, known(), engines=True) == target
    assert choose_target(machine, known(), engines=False) == target


@pytest.mark.parametrize("version", VERSIONS)
def test_a_parser_gets_what_it_takes(version):
    """Attention, RMSNormalization and RotaryEmbedding together from 10.15; several profiles of an
    engine answer right from 10.8."""
    minor = tuple(int(n) for n in version.split(".")[:2])
    for target in known().targets.values():
        if target.flavour != "tensorrt" or not target.takes_version(version):
            continue
        fused = target.attention == "fused"
        assert fused == (minor >= (10, 15))
        assert (target.opset >= 23) == fused
        assert ("RMSNormalization" in target.operators) == fused
        assert target.opset_max <= 20 or minor >= (10, 13)
        assert target.profiles == "one" or minor >= (10, 8)


def test_too_early_for_the_gpu_names_both_and_what_to_install(monkeypatch):
    machine = seen(monkeypatch, "aarch64", cuda=gpu("12.1", "NVIDIA GB10"), tensorrt="10.9.0")
    with pytest.raises(TargetError) as caught:
        choose_target(machine, known(), engines=True)
    assert str(caught.value).startswith(
        "no target takes tensorrt 10.9.0 on NVIDIA GB10 (sm 12.1): the nearest, "
        "'datacenter-10.13', wants tensorrt from 10.13 and before 10.15; install such a one"
    )


def test_a_gpu_that_nobody_knows_is_told_who_is_nearest(monkeypatch):
    machine = seen(monkeypatch, cuda=gpu("14.0"), tensorrt="11.5.0")
    with pytest.raises(
        TargetError, match=r"sm 14\.0\): the nearest, '[^']+', is for sm .*--target"
    ):
        choose_target(machine, known(), engines=True)


def test_an_old_tensorrt_is_named(monkeypatch):
    """JetPack 6.0 has TensorRT 8.6."""
    machine = seen(monkeypatch, "aarch64", release=ORIN, cuda=gpu("8.7", "Orin"), tensorrt="8.6.2")
    with pytest.raises(TargetError, match=r"8\.6\.2 on Orin .*'jetpack6', wants tensorrt from 10"):
        choose_target(machine, known(), engines=False)


def test_rtx_that_does_not_run_here_stops_a_build_and_not_an_export(monkeypatch):
    machine = seen(monkeypatch, cuda=gpu("9.0", "NVIDIA H200"), tensorrt_rtx="1.7.1")
    with pytest.raises(TargetError, match=r"tensorrt_rtx 1\.7\.1 on NVIDIA H200 .*'tensorrt-rtx'"):
        choose_target(machine, known(), engines=True)
    assert choose_target(machine, known(), engines=False) == "portable"


def test_the_flavour_that_fits_goes_before_the_one_that_does_not(monkeypatch):
    machine = seen(monkeypatch, cuda=gpu("8.9"), tensorrt="9.9", tensorrt_rtx="1.7.1")
    assert choose_target(machine, known(), engines=True) == "tensorrt-rtx"


# Jetsons, also in containers


@pytest.mark.parametrize("release", ["", "\n", ORIN])
@pytest.mark.parametrize("cuda", ["no driver's library", gpu("8.7", "Orin")])
def test_a_container_on_a_jetson_is_the_jetson(monkeypatch, release, cuda):
    """There /etc/nv_tegra_release is missing or empty."""
    machine = seen(
        monkeypatch, "aarch64", "Orin (nvgpu), 8.7, [N/A], 540.4.0", release, cuda=cuda,
        tensorrt="10.3.0",
    )  # fmt: skip
    assert machine.jetson
    assert machine.gpu == "Orin"
    assert machine.sm == "8.7"
    assert choose_target(machine, known(), engines=True) == "jetpack6"


def test_an_engine_is_built_on_the_name_that_cuda_gives(monkeypatch):
    """nvidia-smi adds to a Jetson's, and the runtime compares with CUDA's."""
    smi = "Orin (nvgpu), 8.7, [N/A], 540.4.0"
    assert seen(monkeypatch, "aarch64", smi, ORIN, cuda=gpu("8.7", "Orin")).gpu == "Orin"
    assert seen(monkeypatch, "aarch64", smi, ORIN).gpu == "Orin"


@pytest.mark.parametrize(("sm", "jetson"), [("8.7", True), ("11.0", True), ("9.0", False),
                                            ("12.1", False)])  # fmt: skip
def test_an_aarch64_server_is_no_jetson(monkeypatch, sm, jetson):
    assert seen(monkeypatch, "aarch64", cuda=gpu(sm)).jetson is jetson


@pytest.mark.parametrize(
    ("release", "model", "sm"),
    [
        (ORIN, None, "8.7"),
        (ORIN, "NVIDIA Jetson Orin Nano\0", "8.7"),
        ("# R39 (release), REVISION: 2.0", "NVIDIA Jetson AGX Orin", "8.7"),
        ("# R38 (release), REVISION: 4.0", "NVIDIA Jetson AGX Thor", "11.0"),
        ("# R39 (release), REVISION: 2.0", None, None),
        ("gibberish", None, None),
    ],
)
def test_a_jetson_without_cuda_is_known_by_its_files_and_not_by_guessing(
    monkeypatch, release, model, sm
):
    assert seen(monkeypatch, "aarch64", release=release, model=model).sm == sm


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("R36 (release), REVISION: 3.0", "6.0"),
        ("R36 (release), REVISION: 4.4", "6.1 or 6.2"),
        ("R36 (release), REVISION: 5.0", "6.2.2 or 6.2.3"),
        ("R38 (release), REVISION: 2.1", "7.0"),
        ("R38 (release), REVISION: 4", "7.1"),
        ("R39 (release), REVISION: 2.0", "7.2"),
        ("R36 (release), REVISION: 40.1", "with L4T 36.40.1"),
        ("R35 (release), REVISION: 6.1", "with L4T 35.6.1"),
        ("what is this", "unknown"),
    ],
)
def test_l4t_releases_are_told_as_jetpacks(monkeypatch, release, jetpack):
    assert seen(monkeypatch, "aarch64", release=f"# {release}, GCID: 1").jetpack == jetpack


# who says what is here


def test_without_nvidia_smi_cuda_is_asked(monkeypatch):
    machine = seen(monkeypatch, cuda=gpu("9.0", "NVIDIA H100"), tensorrt="10.16.0")
    assert (machine.gpu, machine.sm, machine.cuda) == ("NVIDIA H100", "9.0", "13.0")
    assert machine.trouble is None
    assert choose_target(machine, known(), engines=True) == "datacenter"


def test_cuda_goes_before_nvidia_smi_which_counts_gpus_otherwise(monkeypatch):
    smi = "NVIDIA T4, 7.5, 15360, 570.1\nNVIDIA H100, 9.0, 81559, 570.1"
    machine = seen(monkeypatch, smi=smi, cuda=gpu("9.0", "NVIDIA H100"))
    assert (machine.gpu, machine.sm, machine.memory_gb) == ("NVIDIA H100", "9.0", 16.0)
    assert machine.driver == "570.1"


@pytest.mark.parametrize("engines", [True, False])
def test_tensorrt_without_a_gpu_to_see_is_not_taken_for_a_plain_cpu(monkeypatch, engines):
    cause = "CUDA does not start (CUDA_ERROR_NO_DEVICE)"
    _, said = chosen(seen(monkeypatch, cuda=cause, tensorrt="11.0"), engines)
    assert said is not None
    assert said.startswith(
        f"tensorrt 11.0 is installed, but nothing says which GPU this is ({cause}): give this "
        "process its GPU"
    )


def test_a_gpu_of_unknown_capability_is_not_guessed(monkeypatch):
    machine = seen(monkeypatch, smi="NVIDIA A100, [N/A], 40000, 450.1", tensorrt="10.3")
    with pytest.raises(TargetError, match="nothing says which GPU this is"):
        choose_target(machine, known(), engines=True)
    assert "sm unknown" in str(machine)


def test_rtx_builds_without_a_gpu_though_the_full_tensorrt_is_there_too(monkeypatch):
    machine = seen(monkeypatch, tensorrt="11.0", tensorrt_rtx="1.7.1")
    assert choose_target(machine, known(), engines=True) == "tensorrt-rtx"


@pytest.mark.parametrize("engines", [True, False])
def test_a_tensorrt_that_lacks_its_cuda_is_named_with_what_it_lacks(monkeypatch, engines):
    missing = OSError("libcudart.so.12: cannot open shared object file\nand more")
    machine = seen(monkeypatch, cuda=gpu("9.0"), tensorrt=missing)
    assert "tensorrt that does not import" in str(machine)
    _, said = chosen(machine, engines)
    assert said is not None
    assert said.startswith(
        "tensorrt is installed and does not import (libcudart.so.12: cannot open shared object "
        "file): install what it lacks"
    )


def test_a_machine_of_nothing_is_portable(monkeypatch):
    machine = seen(monkeypatch)
    assert choose_target(machine, known(), engines=True) == "portable"
    assert machine == Machine("linux-x86_64", trouble="no driver", versions={}, broken={})


@given(st.text(), st.text(), st.text())
def test_strange_versions_end_in_a_target_or_one_line(version, sm, name):
    machine = Machine("linux-x86_64", gpu=name, sm=sm, versions={"tensorrt": version})
    said = ""
    try:
        assert choose_target(machine, known(), engines=True) in known().targets
    except TargetError as e:
        said = str(e)
    assert "\n" not in said


# the driver's own library, played by one that is compiled here

STAND_IN = r"""
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return START; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDeviceGet(int *d, int n) { *d = 5; return n; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Orin", n); return d != 5; }
int cuDeviceTotalMem_v2(size_t *m, int d) { *m = 7990000000ull; return d != 5; }
int cuDeviceGetAttribute(int *v, int a, int d) {
    *v = a == 75 ? 8 : a == 76 ? 7 : -1;
    return d != 5;
}
int cuGetErrorName(int e, const char **s) {
    if (e != 100) return 1;
    *s = "CUDA_ERROR_NO_DEVICE";
    return 0;
}
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in")

    def make(start):
        source, made = tmp_path / "cuda.c", tmp_path / f"libcuda{start}.so"
        source.write_text(STAND_IN)
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-DSTART={start}", "-o", made, source], check=True
        )
        monkeypatch.setattr(asked, "LIBRARY", str(made))

    return make


def test_the_drivers_library_names_the_gpu(driver):
    driver(0)
    assert ask_cuda() == Gpu("Orin", "8.7", 8.0, "12.6")
    assert driver_cuda() == "12.6"


@pytest.mark.parametrize(("start", "says"), [(100, "CUDA_ERROR_NO_DEVICE"), (803, "error 803")])
def test_a_driver_that_does_not_start_says_why(driver, start, says):
    driver(start)
    assert ask_cuda() == f"CUDA does not start ({says})"


def test_no_driver_is_said(monkeypatch):
    monkeypatch.setattr(asked, "LIBRARY", "libcuda-of-nobody.so.1")
    assert ask_cuda() == "there is no driver's library libcuda-of-nobody.so.1"
    assert driver_cuda() is None


@pytest.mark.parametrize(
    ("bindings", "says"),
    [
        ("12.9.4", None),
        ("13.5.0", "cuda-bindings 13.5.0 is newer than this driver, which knows CUDA 12.6: pip "
         "install 'cuda-bindings==12.*' nvidia-cuda-nvrtc-cu12, or install a newer driver"),
    ],
)  # fmt: skip
def test_a_driver_too_old_for_the_wheels_is_told_which_wheels(driver, monkeypatch, bindings, says):
    driver(0)
    monkeypatch.setattr(asked, "version", lambda package: bindings)
    assert newer_than_driver() == says


@pytest.mark.parametrize(
    ("shown", "index", "left"),
    [(None, 0, "0"), (None, 3, "3"), ("2,5", 1, "5"), (" GPU-a , GPU-b", 0, "GPU-a")],
)
def test_one_gpu_of_those_that_are_shown_is_left(monkeypatch, shown, index, left):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    use_gpu(index)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


@pytest.mark.parametrize("shown", ["", "2,5", "4,-1,7"])
def test_a_gpu_that_is_not_shown_is_refused_in_one_line(monkeypatch, shown):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    with pytest.raises(InputError, match=r"--device-index 2: CUDA_VISIBLE_DEVICES=.* shows"):
        use_gpu(2)


def test_a_command_uses_the_gpu_that_it_is_told(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    assert main(["run", "none", "none.png", "ships", "--device-index", "1"]) == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "8"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    assert main(["build", "none", "--device-index", "2"]) == 2
    assert "shows this process 2 GPUs" in capsys.readouterr().err
