"""Joules, where the machine counts them: Intel and AMD's RAPL counters, or a Jetson's power rails.

RAPL counts energy itself; its files are readable by root alone on most systems. A Jetson's INA3221
sensors give volts and milliamperes of a moment, so two readings are joined by their mean power.
Both are None where there is no such file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SYS = Path("/sys")
RAILS = ("VDD_IN", "VIN_SYS_5V0", "VDD_GPU_SOC", "VDD_CPU_CV")
"""Names of the rails that feed a Jetson: the first, where there is it, is all of it."""


class Energy:
    """A meter. `joules` grows from call to call, by differences that mean something."""

    def __init__(self, kind: str | None, read: Callable[[], float | None]):
        self.kind, self._read = kind, read

    @classmethod
    def of_this_machine(
        cls, sys: Path = SYS, now: Callable[[], float] = time.perf_counter
    ) -> Energy:
        """The meter that this machine has; one without a `kind` reads None."""
        packages = sorted((sys / "class/powercap").glob("intel-rapl:?"))
        if packages and all(_number(p / "energy_uj") is not None for p in packages):
            return cls("rapl", lambda: _rapl(packages))
        rails = _rails(sys)
        if rails:
            return cls("jetson", _Rails(rails, now).joules)
        return cls(None, lambda: None)

    def joules(self) -> float | None:
        """The meter's reading."""
        return self._read()


def _rapl(packages: list[Path]) -> float | None:
    values = [_number(p / "energy_uj") for p in packages]
    return None if None in values else sum(v for v in values if v is not None) / 1e6


def _rails(sys: Path) -> list[tuple[Path, Path]]:
    """(volt file in mV, current file in mA) of the rail that feeds all, or of all partial ones."""
    found = {}
    for label in sorted((sys / "bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in*_label")):
        number = label.name[2:].partition("_")[0]
        name = label.read_text().strip()
        pair = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if all(_number(p) is not None for p in pair):
            found[name] = pair
    return [found["VDD_IN"]] if "VDD_IN" in found else [found[n] for n in RAILS if n in found]


class _Rails:
    """Mean power of two moments times the time between them, added up."""

    def __init__(self, rails: list[tuple[Path, Path]], now: Callable[[], float]):
        self._rails, self._now = rails, now
        self._at, self._watts = now(), self._power()
        self._sum = 0.0

    def _power(self) -> float:
        return sum((_number(v) or 0.0) * (_number(a) or 0.0) / 1e6 for v, a in self._rails)

    def joules(self) -> float:
        """Since the meter was made."""
        at, watts = self._now(), self._power()
        self._sum += (watts + self._watts) / 2 * (at - self._at)
        self._at, self._watts = at, watts
        return self._sum


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
