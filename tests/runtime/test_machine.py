"""Processor, instruction sets, quota and power mode, read from folders that look like Linux's."""

import pytest

from geomag_edge.runtime.machine import instruction_sets, machine, quota


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flags\t\t: fpu sse2 avx2 fma", ["avx2"]),
        (
            "flags\t\t: amx_int8 avx512_vnni avx2 avx512f",
            ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
        ),
        ("Features\t: fp asimd asimddp i8mm", ["asimd", "asimddp", "i8mm"]),
        ("bogomips\t: avx2", []),
    ],
)
def test_instruction_sets_are_those_that_matter_in_one_order(tmp_path, line, found):
    write(tmp_path, "proc/cpuinfo", f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert instruction_sets(tmp_path) == found


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
             "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 1.5,
        ),
        (
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
             "sys/fs/cgroup/a/b/cpu.max": "25000 100000\n"}, 0.25,
        ),
        (  # in a container: the group's path is the host's, its own files are at the top
            {"proc/self/cgroup": "0::/docker/x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0,
        ),
        (
            {"proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n1:name=systemd:/y\n",
             "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
             "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 0.5,
        ),
        (
            {"proc/self/cgroup": "4:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
             "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None,
        ),
        ({"proc/self/cgroup": "nonsense\n"}, None),
    ],
)  # fmt: skip
def test_the_quota_is_the_tightest_of_the_groups_around_a_process(tmp_path, files, share):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert quota(tmp_path) == share


def test_the_record_names_what_a_measurement_depends_on(tmp_path):
    write(tmp_path, "proc/cpuinfo", "model name\t: Some CPU\nflags\t: avx2\n")
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson\0")
    write(tmp_path, "proc/driver/nvidia/version", "NVRM version: 580.1\n")
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002\n")
    found = machine(tmp_path)
    assert found["cpu"] == "Some CPU"
    assert found["board"] == "NVIDIA Jetson"
    assert found["driver"] == "NVRM version: 580.1"
    assert found["power_mode"] == "0002"
    assert machine()["cores"] >= 1
