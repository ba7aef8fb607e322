"""A process's own part of a machine: cores, quotas, and the threads that follow from them."""

import os

import pytest

from geomag_edge import cores
from geomag_edge.cores import default_threads, may_spin, quota, threads_of
from geomag_edge.errors import InputError


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine_of(monkeypatch, root, all_cores, allowed, share=None, siblings=1):
    """A machine with so many cores, of which `allowed` are this process's."""
    monkeypatch.setattr(os, "cpu_count", lambda: all_cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    for n in range(all_cores):
        first = n - n % siblings
        write(root, f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list",
              f"{first}-{first + siblings - 1}\n")  # fmt: skip
    if share is not None:
        write(root, "proc/self/cgroup", "0::/\n")
        write(root, "sys/fs/cgroup/cpu.max", f"{round(share * 100000)} 100000\n")


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


def test_a_hybrid_of_both_versions_keeps_the_second_in_a_folder_of_its_own(tmp_path):
    write(tmp_path, "proc/self/cgroup", "1:name=systemd:/\n0::/a\n")
    write(tmp_path, "sys/fs/cgroup/unified/a/cpu.max", "70000 100000\n")
    assert quota(tmp_path) == 0.7


@pytest.mark.parametrize(
    ("machine", "threads", "spins"),
    [
        ({"all_cores": 8, "allowed": 8}, None, True),  # the engine knows best
        ({"all_cores": 8, "allowed": 8, "share": 8}, None, True),
        ({"all_cores": 8, "allowed": 8, "share": 0.5}, 1, False),
        ({"all_cores": 8, "allowed": 8, "share": 1}, 1, True),
        ({"all_cores": 8, "allowed": 8, "share": 2.5}, 3, False),
        ({"all_cores": 8, "allowed": 3}, 3, True),
        ({"all_cores": 8, "allowed": 3, "share": 1.5}, 2, False),
        ({"all_cores": 8, "allowed": 8, "siblings": 2}, None, True),
        ({"all_cores": 8, "allowed": 4, "siblings": 2}, 2, True),
        ({"all_cores": 8, "allowed": 8, "siblings": 2, "share": 6}, None, True),
        ({"all_cores": 8, "allowed": 8, "siblings": 2, "share": 3}, 3, True),
    ],
)  # fmt: skip
def test_threads_follow_the_part_of_the_machine_that_a_process_has(
    tmp_path, monkeypatch, machine, threads, spins
):
    machine_of(monkeypatch, tmp_path, **machine)
    assert default_threads(tmp_path) == threads
    assert may_spin(threads, tmp_path) is spins


def test_more_threads_than_the_process_has_cores_do_not_spin(tmp_path, monkeypatch):
    machine_of(monkeypatch, tmp_path, 4, 2)
    assert may_spin(2, tmp_path)
    assert not may_spin(3, tmp_path)


@pytest.mark.parametrize(
    "asked", [0, -1, True, False, "two", 2.0, [1], 10**6, 2**31, 10**30, float("nan")]
)
def test_what_is_no_number_of_threads_is_refused_in_one_short_line(asked):
    with pytest.raises(InputError, match=r"^threads is .*give .* 1 to \d+[^\n]*$") as refused:
        threads_of(asked)
    assert len(str(refused.value)) < 200


def test_as_many_threads_as_asked_for_or_the_default(monkeypatch):
    monkeypatch.setattr(cores, "quota", lambda root=None: 0.5)
    assert threads_of(None) == 1
    assert threads_of(3) == 3


def test_a_quota_bounds_the_threads_of_short_work(monkeypatch):
    monkeypatch.setattr(cores, "_first_quota", lambda: 0.5)
    assert cores.usable_threads() == 1
    monkeypatch.setattr(cores, "_first_quota", lambda: None)
    assert cores.usable_threads() == cores.cores()
