"""Joules from folders that look like an Intel's and a Jetson's /sys."""

import pytest

from geomag_edge.benchmarks.energy import Energy


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def test_adds_up_the_packages_of_rapl(tmp_path):
    for package, microjoules in ((0, 5_000_000), (1, 2_500_000)):
        write(tmp_path / f"class/powercap/intel-rapl:{package}/energy_uj", microjoules)
        write(tmp_path / f"class/powercap/intel-rapl:{package}:0/energy_uj", 99)  # a part of it
    meter = Energy.of_this_machine(tmp_path)
    assert (meter.kind, meter.joules()) == ("rapl", 7.5)


def rail(tmp_path, number, label, millivolts, milliamperes):
    folder = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(folder / f"in{number}_label", f"{label}\n")
    write(folder / f"in{number}_input", millivolts)
    write(folder / f"curr{number}_input", milliamperes)


def test_a_jetson_s_total_rail_counts_alone(tmp_path):
    rail(tmp_path, 1, "VDD_IN", 20000, 500)
    rail(tmp_path, 2, "VDD_GPU_SOC", 5000, 400)
    times = iter([0.0, 2.0, 5.0])
    meter = Energy.of_this_machine(tmp_path, lambda: next(times))
    assert meter.kind == "jetson"
    assert meter.joules() == pytest.approx(20.0)  # 10 W for 2 s
    rail(tmp_path, 1, "VDD_IN", 20000, 1500)
    assert meter.joules() == pytest.approx(20.0 + 60.0)  # 10 W rising to 30 W over 3 s


def test_without_a_counter_there_is_no_number(tmp_path):
    meter = Energy.of_this_machine(tmp_path)
    assert (meter.kind, meter.joules()) == (None, None)
