"""Processor, instruction sets and power mode, read from folders that look like Linux's."""

import pytest

from geomag_edge.machine import instruction_sets, machine


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
