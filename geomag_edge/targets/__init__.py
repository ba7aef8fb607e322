"""Targets: what a machine's runtime can take, and devices: what a machine has, as data.

`targets.json` holds the records and docs/TARGETS.md explains their fields. A user's own file of the
same form adds to them or replaces one of the same name (`load_catalog`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from geomag_edge.disk.stored import read_json
from geomag_edge.errors import InputError

DATA = Path(__file__).with_name("targets.json")

DTYPES = ("fp32", "fp16", "int8", "fp8", "int4")
FLAVOURS = ("tensorrt", "tensorrt_rtx")

FIRST_SM = {"fp32": (8, 0), "int4": (8, 0), "fp8": (8, 9)}
"""Compute capability from which on TensorRT for RTX multiplies a type."""


@dataclass(frozen=True)
class Target:
    """What graphs and engines for a kind of machine look like.

    Attributes:
        name, note: the target, and what runs there.
        opset: ONNX opset that export writes.
        opset_max: newest opset that the machine's parser reads.
        attention: "fused" (the Attention operator) or "decomposed".
        layer_norm: "whole" where a decomposed one loses accuracy, "any" elsewhere.
        dtypes: what graphs may hold, of `DTYPES`.
        flavour: the Python module that builds and loads engines, of `FLAVOURS`; None: no engines.
        versions: the flavour's first version and the first one past the range.
        operators: ONNX operators of the default domain that are taken; None: all.
        profiles: "one" or "many" optimisation profiles an engine.
        sm: compute capabilities that engines run on.
    """

    name: str
    note: str
    opset: int
    opset_max: int
    attention: str
    dtypes: tuple[str, ...]
    layer_norm: str = "any"
    flavour: str | None = None
    versions: tuple[str, str] | None = None
    operators: frozenset[str] | None = None
    profiles: str = "many"
    sm: tuple[str, ...] = ()

    def takes_version(self, version: str) -> bool:
        """Whether a version such as "10.3.0" lies in the target's range."""
        if self.versions is None:
            return False
        low, high = (_numbers(v) for v in self.versions)
        return low <= _numbers(version) < high

    def distance(self, version: str) -> int:
        """How many minor versions lie between a version and the target's range; 0 inside."""
        low, high = (_minor(v) for v in self.versions or ("", ""))
        return max(low - _minor(version), _minor(version) + 1 - high, 0)

    def takes_precision(self, precision: str) -> bool:
        """Whether the graphs of a precision hold only what the target multiplies.

        Args:
            precision: a bundle's name for it, such as "fp16" or "int8+int4-llm".
        """
        return _types_of(precision) <= set(self.dtypes)

    def sm_for(self, precision: str) -> tuple[str, ...]:
        """The compute capabilities that have all types of a precision."""
        first = max((FIRST_SM.get(t, (0,)) for t in _types_of(precision)), default=(0,))
        return tuple(sm for sm in self.sm if _numbers(sm) >= first)


@dataclass(frozen=True)
class Device:
    """A machine's peak figures, as its vendor gives them.

    Attributes:
        targets: what it may run; the first is the default.
        sm: compute capability.
        fp16_tflops, int8_tops: dense peaks; `int8_tops` None where the vendor gives none.
        gb_s, gb: memory bandwidth and size, decimal.
        shared_memory: the CPU's memory is the GPU's (Jetson), so the system takes its part.
        watts: power modes, the last one unlimited; the peaks hold for the last.
    """

    name: str
    label: str
    targets: tuple[str, ...]
    sm: str
    fp16_tflops: float
    int8_tops: float | None
    gb_s: float
    gb: float
    shared_memory: bool
    watts: tuple[float, ...]


@dataclass(frozen=True)
class Catalog:
    """Targets and devices by name."""

    targets: Mapping[str, Target]
    devices: Mapping[str, Device]

    def target(self, name: str) -> Target:
        """The target of that name.

        Raises:
            InputError: no such target.
        """
        if name not in self.targets:
            raise InputError(f"unknown target {name!r}: choose one of {', '.join(self.targets)}")
        return self.targets[name]

    def device(self, name: str) -> Device:
        """The device of that name.

        Raises:
            InputError: no such device.
        """
        if name not in self.devices:
            raise InputError(f"unknown device {name!r}: choose one of {', '.join(self.devices)}")
        return self.devices[name]


@cache
def known() -> Catalog:
    """The catalog that comes with geomag-edge."""
    return _read(DATA, Catalog({}, {}))


def load_catalog(extra: Path | None = None) -> Catalog:
    """The known targets and devices, with those of a user's file added.

    Raises:
        InputError: the file cannot be read, or a record in it is not understood.
    """
    return known() if extra is None else _read(Path(extra), known())


def find_target(name: str) -> Target:
    """A known target by name.

    Raises:
        InputError: no such target.
    """
    return known().target(name)


def _read(path: Path, base: Catalog) -> Catalog:
    data = read_json(path, error=InputError)
    try:
        shared = read_json(DATA)["operators"]
        lists = {**shared, **data.get("operators", {})}
        targets, devices = dict(base.targets), dict(base.devices)
        for record in data.get("targets", []):
            target = _target(record, lists, path)
            targets[target.name] = target
        for record in data.get("devices", []):
            device = _device(record, path)
            devices[device.name] = device
            for name in device.targets:
                if name not in targets:
                    raise InputError(f"{path}: device {device.name!r} names no target {name!r}")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise InputError(f"{path} is no targets file: {type(e).__name__}: {e}") from e
    return Catalog(MappingProxyType(targets), MappingProxyType(devices))


def _target(record: Any, lists: Mapping[str, str], path: Path) -> Target:
    fields = _fields(Target, record, path)
    name = fields["name"]
    operators = fields.get("operators")
    if operators is not None:
        fields["operators"] = _operators(operators, lists, path, name)
    for key in ("dtypes", "versions", "sm"):
        if fields.get(key) is not None:
            fields[key] = tuple(str(x) for x in fields[key])
    target = Target(**fields)
    choices = {
        "attention": ("fused", "decomposed"),
        "layer_norm": ("whole", "any"),
        "flavour": (None, *FLAVOURS),
        "profiles": ("one", "many"),
    }
    for key, allowed in choices.items():
        if getattr(target, key) not in allowed:
            raise InputError(
                f"{path}: target {name!r} has {key} {getattr(target, key)!r}: choose one of "
                f"{', '.join(str(a) for a in allowed)}"
            )
    for key, values, allowed in (("dtypes", target.dtypes, DTYPES),):
        if wrong := [v for v in values if v not in allowed]:
            raise InputError(
                f"{path}: target {name!r} has {key} {wrong[0]!r}: choose of {', '.join(allowed)}"
            )
    if not (isinstance(target.opset, int) and isinstance(target.opset_max, int)):
        raise InputError(f"{path}: target {name!r} needs whole numbers for opset and opset_max")
    if target.opset > target.opset_max:
        raise InputError(f"{path}: target {name!r} exports an opset above its opset_max")
    if target.flavour and (target.versions is None or len(target.versions) != 2):
        raise InputError(
            f"{path}: target {name!r} needs versions, the first and the first one past the range"
        )
    return target


def _device(record: Any, path: Path) -> Device:
    fields = _fields(Device, record, path)
    for key in ("targets", "watts"):
        fields[key] = tuple(fields[key])
    device = Device(**fields)
    for key in ("fp16_tflops", "gb_s", "gb"):
        value = getattr(device, key)
        if not (isinstance(value, int | float) and value > 0):
            raise InputError(f"{path}: device {device.name!r} needs {key} above 0, not {value!r}")
    if not device.watts or not device.targets:
        raise InputError(f"{path}: device {device.name!r} needs at least one of targets and watts")
    return device


def _fields(kind: type, record: Any, path: Path) -> dict[str, Any]:
    """A record's fields, all known and all needed ones there."""
    if not isinstance(record, dict):
        raise InputError(f"{path}: {record!r} is no record of a {kind.__name__.lower()}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    what = f"{kind.__name__.lower()} {record.get('name', '?')!r}"
    if unknown := sorted(set(record) - set(fields)):
        raise InputError(f"{path}: {what} has the unknown field {unknown[0]!r}")
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
    if missing := [n for n in needed if n not in record]:
        raise InputError(f"{path}: {what} lacks {missing[0]!r}")
    return dict(record)


def _operators(name: str, lists: Mapping[str, str], path: Path, target: str) -> frozenset[str]:
    """A named list of operators; `+other` at its start takes another list in."""
    if name not in lists:
        raise InputError(f"{path}: target {target!r} names the unknown operator list {name!r}")
    words = lists[name].split()
    found = {w for w in words if not w.startswith("+")}
    for word in words:
        if word.startswith("+"):
            found |= _operators(word[1:], lists, path, target)
    return frozenset(found)


def _types_of(precision: str) -> set[str]:
    """The types that a precision's name names."""
    return {word for word in re.split(r"[-+]", precision) if word in DTYPES}


def _minor(version: str) -> int:
    """ "10.3.0" -> 1003, so that versions of one major lie nearer than those of another."""
    major, minor = (*_numbers(version), 0, 0)[:2]
    return major * 1000 + minor


def _numbers(version: str) -> tuple[int, ...]:
    """ "10.3.0.26" -> (10, 3, 0, 26); what is not a number ends it."""
    numbers = []
    for part in version.split("."):
        digits = "".join(c for c in part if c.isdecimal())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
