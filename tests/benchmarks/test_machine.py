"""The machine's record, read from a folder that looks like a Jetson's system, and from this one."""

from geomag_edge.benchmarks.machine import described, machine, peak_mb, reset_peak, resident_mb


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_reads_memory_clocks_governor_and_power_mode(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal:       8000000 kB\n")
    write(tmp_path, "proc/cpuinfo", "cpu MHz\t\t: 1510.4\ncpu MHz\t\t: 729.6\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n")
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002\n")
    found = machine(2, root=tmp_path)
    assert found["memory_gb"] == 8.2
    assert found["clocks_mhz"] == {"lowest": 729.6, "highest": 1510.4}
    assert (found["governor"], found["power_mode"]) == ("schedutil", "0002")
    assert "power mode 0002" in described(found)


def test_what_the_system_does_not_say_is_none(tmp_path):
    found = machine(None, root=tmp_path)
    for name in ("memory_gb", "clocks_mhz", "governor", "power_mode", "threads"):
        assert found[name] is None
    assert found["versions"]["numpy"] in described(found)


def test_the_peak_is_of_what_happened_since_the_reset():
    assert reset_peak()
    before = peak_mb()
    block = bytearray(60_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_mb() - before > 50
    del block
    assert reset_peak()
    assert peak_mb() < before + 30
    assert resident_mb() <= peak_mb()
