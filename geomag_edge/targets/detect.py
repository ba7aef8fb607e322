"""`--target auto`: what this machine is, read from its own tools, and which target that means."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geomag_edge.targets import FLAVOURS, Catalog

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
DEVICE_TREE = Path("/proc/device-tree/model")

JETPACKS = (("36.4", "6.1 or 6.2"), ("36.3", "6.0"), ("38.2", "7.0"), ("38.4", "7.1"))
"""L4T release -> JetPack; others are shown as their L4T release."""


@dataclass(frozen=True)
class Machine:
    """What was seen; None where nothing says so.

    Attributes:
        gpu: its name; `sm` its compute capability, `memory_gb` its memory.
        driver: the driver's version.
        jetpack: JetPack's version on a Jetson.
        power_mode: as nvpmodel names it.
        versions: engine module -> version, for those that import.
    """

    platform: str
    gpu: str | None = None
    sm: str | None = None
    memory_gb: float | None = None
    driver: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    versions: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in reports."""
        return asdict(self)

    def __str__(self) -> str:
        seen = [f"GPU {self.gpu} (sm {self.sm})" if self.gpu else "no GPU"]
        if self.jetpack:
            seen.append(f"JetPack {self.jetpack}")
        if self.power_mode:
            seen.append(f"power mode {self.power_mode}")
        versions = self.versions or {}
        seen += [f"{name} {version}" for name, version in versions.items()]
        if not versions:
            seen.append("no TensorRT")
        return ", ".join(seen)


def look_around(
    run: Callable[[list[str]], str | None] | None = None,
    read: Callable[[Path], str | None] | None = None,
    version: Callable[[str], str | None] | None = None,
) -> Machine:
    """Reads the machine.

    Args:
        run: a command's stdout, None if it is not there or fails; tests replace it, as they do
        read: a file's text, None if it is not there, and
        version: an engine module's version, None if it does not import.
    """
    run, read, version = run or _run, read or _read, version or _version
    found: dict[str, Any] = {"platform": f"{platform.system()}-{platform.machine()}".lower()}
    if line := _first_line(
        run(
            ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version",
             "--format=csv,noheader,nounits"]
        )
    ):  # fmt: skip
        parts = [p.strip() for p in line.split(",")]
        if len(parts) == 4:
            found |= {"gpu": parts[0], "sm": _number(parts[1]), "driver": parts[3]}
            if memory := _number(parts[2]):
                found["memory_gb"] = round(float(memory) * 2**20 / 1e9, 1)
    if release := read(TEGRA_RELEASE):
        found["jetpack"] = _jetpack(release)
        found["gpu"] = found.get("gpu") or (read(DEVICE_TREE) or "Jetson").rstrip("\0").strip()
        found["sm"] = found.get("sm") or ("8.7" if "Orin" in found["gpu"] else "11.0")
        if mode := re.search(r"NV Power Mode: *(\S+)", run(["nvpmodel", "-q"]) or ""):
            found["power_mode"] = mode[1]
    versions = {name: v for name in FLAVOURS if (v := version(name))}
    return Machine(**found, versions=versions)


def choose_target(machine: Machine, catalog: Catalog, engines: bool) -> str:
    """The target that fits a machine.

    Args:
        machine: what was seen.
        catalog: targets to choose from, in order.
        engines: True for `build`: without a GPU the flavour that is installed decides.
            False for `export`: without a GPU and TensorRT the portable one.
    """
    versions = machine.versions or {}
    fitting = [
        t
        for t in catalog.targets.values()
        if t.flavour in versions and t.takes_version(versions[t.flavour])
    ]
    if machine.gpu is not None:
        for target in fitting:
            on_jetson = target.name.startswith("jetpack")
            if machine.sm in target.sm and on_jetson == (machine.jetpack is not None):
                return target.name
        return "portable"
    return fitting[0].name if engines and fitting else "portable"


def _jetpack(release: str) -> str:
    match = re.search(r"R(\d+).*?REVISION: *([\d.]+)", release)
    if not match:
        return "unknown"
    l4t = f"{match[1]}.{match[2]}"
    return next((jp for start, jp in JETPACKS if l4t.startswith(start)), f"with L4T {l4t}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def _number(text: str) -> str | None:
    return text if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _run(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        module = importlib.import_module(name)
        return str(module.__version__) if hasattr(module, "Builder") else None
    except Exception:  # a library that does not load is as good as none
        return None
