"""Which of a bundle's builds this GPU and this TensorRT can load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from geomag_edge.errors import EngineError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour
from geomag_edge.runtime.engines.tensorrt.record import BuildRecord, load_records

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Engine name -> the module that loads it."""


def built_by(bundle: Bundle, name: str, precision: str) -> list[BuildRecord]:
    """The builds of a bundle for an engine and a precision.

    Raises:
        EngineError: there are none.
    """
    records = [r for r in load_records(bundle) if r.flavour == FLAVOURS[name]]
    found = [r for r in records if r.precision == precision]
    if not found:
        have = ", ".join(sorted({r.precision for r in records}))
        target = "tensorrt-rtx" if name == "tensorrt-rtx" else "auto"
        raise EngineError(
            f"the bundle has no {precision} engines for {name}"
            + (f", but {have}" if have else "")
            + f": `geomag-edge build {bundle.root} --target {target} --precision {precision}`"
        )
    return found


def fitting(
    records: Iterable[BuildRecord], flavour: Flavour, device: Device, graphs: Sequence[str] = CHAIN
) -> BuildRecord:
    """The first build of so many graphs that this GPU and this version of TensorRT load.

    Raises:
        EngineError: none does; says why not the last one.
    """
    driver = device.driver
    sm = f"{driver.capability[0]}.{driver.capability[1]}"
    reason = ""
    for record in records:
        again = f"build them again here: `geomag-edge build` with --precision {record.precision}"
        if not _takes_version(record, flavour.version):
            reason = (
                f"the engines in {record.folder} were built by {record.flavour} {record.version}, "
                f"{flavour.version} is installed: {again}"
            )
        elif sm not in record.loads_on_sm:
            reason = (
                f"the engines in {record.folder} are for GPUs of compute capability "
                f"{', '.join(record.loads_on_sm)}, this {driver.name} has {sm}: {again}"
            )
        elif absent := [graph for graph in graphs if graph not in record.engines]:
            reason = f"{record.folder} has no engine of {', '.join(absent)}: {again}"
        elif record.options.get("stripped"):
            reason = (
                f"the engines in {record.folder} were built without their weights, which this "
                f"version does not put back: {again} and without stripping"
            )
        else:
            return record
    raise EngineError(reason)


def _takes_version(record: BuildRecord, installed: str) -> bool:
    """An engine is for the version that built it, or, if built so, for later ones of its major."""
    if record.version == installed:
        return True
    if not record.options.get("version_compatible"):
        return False
    built, here = (tuple(map(int, v.split(".")[:3])) for v in (record.version, installed))
    return built[0] == here[0] and here >= built
