"""`--target auto`: what this machine is, read from its own tools, and which target that means."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geomag_edge.errors import TargetError
from geomag_edge.targets import FLAVOURS, Catalog, Target
from geomag_edge.targets.cuda import Gpu, ask_cuda

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
DEVICE_TREE = Path("/proc/device-tree/model")

JETPACKS = {
    (36, 3): "6.0", (36, 4): "6.1 or 6.2", (36, 5): "6.2.2 or 6.2.3", (38, 2): "7.0",
    (38, 4): "7.1", (39,): "7.2",
}  # fmt: skip
"""L4T release -> JetPack; others are shown as their L4T release."""

JETSON_SM = {"8.7": "Orin", "11.0": "Thor"}
"""Compute capabilities that only Jetsons and their kin have, by the name of the chip."""

TEGRA = " (nvgpu)"
"""What nvidia-smi, and not CUDA, puts behind the name of a Jetson's GPU."""


@dataclass(frozen=True)
class Machine:
    """What was seen; None where nothing says so.

    Attributes:
        gpu: its name as CUDA has it; `sm` its compute capability, `memory_gb` its memory.
        driver: the driver's version.
        cuda: the newest CUDA that the driver knows.
        trouble: why CUDA cannot be used here, in words; None where it can.
        jetson: whether it is one, also in a container that does not say so.
        jetpack: JetPack's version on a Jetson.
        power_mode: as nvpmodel names it.
        versions: engine module -> version, for those that import.
        broken: engine module -> why it does not import, for those that are installed in vain.
    """

    platform: str
    gpu: str | None = None
    sm: str | None = None
    memory_gb: float | None = None
    driver: str | None = None
    cuda: str | None = None
    trouble: str | None = None
    jetson: bool = False
    jetpack: str | None = None
    power_mode: str | None = None
    versions: dict[str, str] | None = None
    broken: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in reports."""
        return asdict(self)

    def __str__(self) -> str:
        seen = [f"GPU {self.gpu} (sm {self.sm or 'unknown'})" if self.gpu else "no GPU"]
        if self.trouble and self.gpu:
            seen.append(self.trouble)
        if self.jetson:
            seen.append(f"JetPack {self.jetpack}" if self.jetpack else "a Jetson")
        if self.power_mode:
            seen.append(f"power mode {self.power_mode}")
        seen += [f"{name} {version}" for name, version in (self.versions or {}).items()]
        seen += [f"{name} that does not import" for name in self.broken or {}]
        if not self.versions and not self.broken:
            seen.append("no TensorRT")
        return ", ".join(seen)


def look_around(
    run: Callable[[list[str]], str | None] | None = None,
    read: Callable[[Path], str | None] | None = None,
    version: Callable[[str], str | None] | None = None,
    cuda: Callable[[], Gpu | str] | None = None,
) -> Machine:
    """Reads the machine. CUDA's own word goes before nvidia-smi's, which counts GPUs otherwise,
    names a Jetson's differently, and is missing in small containers.

    Args:
        run: a command's stdout, None if it is not there or fails; tests replace it, as they do
        read: a file's text, None if it is not there,
        version: an engine module's version, None if it is not installed; raises what the module
            raises where it does not import, and
        cuda: see `ask_cuda`.
    """
    run, read, version, cuda = run or _run, read or _read, version or _version, cuda or ask_cuda
    machine = platform.machine().lower()
    found: dict[str, Any] = {"platform": f"{platform.system()}-{machine}".lower()}
    smi = _smi(run)
    tegra = str(smi.get("gpu") or "").endswith(TEGRA)
    found |= smi
    if tegra:
        found["gpu"] = smi["gpu"].removesuffix(TEGRA)
    said = cuda()
    if isinstance(said, Gpu):
        found |= {"gpu": said.name, "sm": said.sm, "memory_gb": said.memory_gb, "cuda": said.cuda}
    else:
        found["trouble"] = said
    release = (read(TEGRA_RELEASE) or "").strip()
    arm = machine in ("aarch64", "arm64")
    found["jetson"] = bool(release) or tegra or (arm and found.get("sm") in JETSON_SM)
    if found["jetson"]:
        found |= _jetson(found, release, read(DEVICE_TREE) or "", run(["nvpmodel", "-q"]) or "")
    versions, broken = _modules(version)
    return Machine(**found, versions=versions, broken=broken)


def _smi(run: Callable[[list[str]], str | None]) -> dict[str, Any]:
    """What nvidia-smi says of the first GPU that it lists."""
    line = _first_line(
        run(
            ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version",
             "--format=csv,noheader,nounits"]
        )
    )  # fmt: skip
    parts = [p.strip() for p in line.split(",")]
    if len(parts) != 4 or not parts[0]:
        return {}
    found: dict[str, Any] = {"gpu": parts[0], "sm": _number(parts[1]), "driver": parts[3]}
    if memory := _number(parts[2]):
        found["memory_gb"] = round(float(memory) * 2**20 / 1e9, 1)
    return found


def _jetson(found: dict[str, Any], release: str, model: str, modes: str) -> dict[str, Any]:
    """What a Jetson's own files add: JetPack, power mode, and the GPU where nothing named it."""
    l4t = re.search(r"R(\d+).*?REVISION: *(\d+)(?:\.(\d+))?", release)
    numbers = tuple(int(n) for n in l4t.groups() if n) if l4t else ()
    added: dict[str, Any] = {"gpu": found.get("gpu") or model.rstrip("\0").strip() or "Jetson"}
    if release:
        known = (JETPACKS.get(numbers[:length]) for length in (2, 1))
        shown = f"with L4T {'.'.join(map(str, numbers))}" if numbers else "unknown"
        added["jetpack"] = next((name for name in known if name), shown)
    if found.get("sm") is None:
        named = [sm for sm, chip in JETSON_SM.items() if chip in added["gpu"]]
        orin_alone = numbers[:1] == (36,)  # L4T 36 is for Orin; later ones are for both
        added["sm"] = named[0] if named else "8.7" if orin_alone else None
    if mode := re.search(r"NV Power Mode: *(\S+)", modes):
        added["power_mode"] = mode[1]
    return added


def _modules(version: Callable[[str], str | None]) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the engine modules, and why others that are installed do not import."""
    versions, broken = {}, {}
    for name in FLAVOURS:
        try:
            if found := version(name):
                versions[name] = found
        except Exception as e:  # whatever a library raises that finds its own parts missing
            broken[name] = _first_line(str(e)) or type(e).__name__
    return versions, broken


def choose_target(machine: Machine, catalog: Catalog, engines: bool) -> str:
    """The target that fits a machine.

    Args:
        machine: what was seen.
        catalog: targets to choose from, in order.
        engines: True for `build`: without a GPU the flavour that is installed decides.
            False for `export`: without TensorRT the portable one.

    Raises:
        TargetError: TensorRT is installed, and no target takes it on this GPU, or nothing says
            which GPU this is; names what was seen, and the nearest target.
    """
    versions = machine.versions or {}
    fitting = [
        t
        for t in catalog.targets.values()
        if t.flavour in versions and t.takes_version(versions[t.flavour])
    ]
    if machine.sm is not None:
        for target in fitting:
            if machine.sm in target.sm:
                return target.name
    elif engines and machine.gpu is None:
        for target in fitting:
            if target.flavour == "tensorrt_rtx":  # which builds without a GPU
                return target.name
    # The full TensorRT's absence of a target is never passed over; RTX's only where it is wanted.
    wanted = [name for name in FLAVOURS if name == "tensorrt" or engines]
    for name in wanted:
        if name in versions:
            raise TargetError(_unfit(machine, name, versions[name], catalog.targets.values()))
        if name in (machine.broken or {}):
            raise TargetError(
                f"{name} is installed and does not import ({(machine.broken or {})[name]}): "
                "install what it lacks, or say which target with --target"
            )
    return "portable"


def _unfit(machine: Machine, flavour: str, version: str, targets: Iterable[Target]) -> str:
    """Why no target of a flavour fits, and which is the nearest."""
    if machine.sm is None:
        return (
            f"{flavour} {version} is installed, but nothing says which GPU this is "
            f"({machine.trouble or 'its compute capability is unknown'}): give this process its "
            "GPU and driver, or say which target with --target"
        )
    own = [t for t in targets if t.flavour == flavour and t.versions is not None]
    here = f"no target takes {flavour} {version} on {machine.gpu} (sm {machine.sm})"
    remedy = "say it with --target, or add one with --targets-file (docs/TARGETS.md)"
    if not own:
        return f"{here}, nor is there another of {flavour}: {remedy}"
    near = min(own, key=lambda t: (machine.sm not in t.sm, t.distance(version)))
    if machine.sm not in near.sm:
        return f"{here}: the nearest, {near.name!r}, is for sm {', '.join(near.sm)}; {remedy}"
    low, high = near.versions or ("", "")
    return (
        f"{here}: the nearest, {near.name!r}, wants {flavour} from {low} and before {high}; "
        f"install such a one, {remedy}"
    )


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
    module = importlib.import_module(name)
    if not hasattr(module, "Builder"):
        raise ImportError("it is an empty package without TensorRT's libraries")
    return str(module.__version__)
