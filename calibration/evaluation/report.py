"""An evaluation's outcome: records, metrics with intervals, and the file that keeps them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from geomag_edge.disk.bounds import JSON_BYTES
from geomag_edge.disk.staging import write_whole
from geomag_edge.disk.stored import parse_json, read_bytes
from geomag_edge.errors import DatasetError, OutputError

from . import bootstrap
from .records import ALL, Record, Sums

FORMAT = "geomag-edge evaluation"
FORMAT_VERSION = 1
MOST_KINDS = 200
"""Each is a group, with intervals of its own."""


@dataclass(frozen=True)
class Estimate:
    """A metric over a group of questions, with its 95 % interval.

    `value` is None where nothing can be divided; `low` and `high` where the group has fewer than
    two pictures to resample.
    """

    metric: str
    group: str
    value: float | None
    low: float | None
    high: float | None
    questions: int
    pictures: int


@dataclass
class Report:
    """What a bundle's answers on a set were worth.

    Attributes:
        dataset: the set's name.
        bundle, checkpoint: the bundle's folder name and the sha256 of the trained model.
        engine, precision, providers: what ran.
        budget: what was asked for, or None for the router's choice.
        untrained: parts of the model that were never trained.
        latency_ms: median by stage and in total; pictures' encoded views are shared by their
            questions, as in `Pipeline.open`.
        records: one a question.
    """

    dataset: str
    bundle: str
    checkpoint: str
    engine: str
    precision: str
    providers: dict[str, str]
    budget: str | None
    untrained: list[str] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @cached_property
    def estimates(self) -> list[Estimate]:
        """Every metric over every group that has a question for it."""
        sums = Sums.of(self.records)
        values = bootstrap.ratio(sums.above, sums.below)
        samples = bootstrap.resampled(sums.above, sums.below)
        ranges = bootstrap.intervals(samples, sums.pictures)
        counts = sums.questions.sum(0)
        made = []
        for c, (metric, group) in enumerate(sums.columns):
            low, high = ranges[c] or (None, None)
            value = float(values[c]) if values[c] == values[c] else None
            made.append(
                Estimate(metric, group, value, low, high, int(counts[c]), int(sums.pictures[c]))
            )
        return made

    def __getitem__(self, key: str | tuple[str, str]) -> Estimate:
        """`report["mIoU"]`, or `report["mIoU", "size: <16 px"]` for a group."""
        metric, group = (key, ALL) if isinstance(key, str) else key
        for estimate in self.estimates:
            if (estimate.metric, estimate.group) == (metric, group):
                return estimate
        raise KeyError(f"the report has no {metric} for {group}")

    def to_json(self) -> dict[str, Any]:
        """The form that files and `--json` hold."""
        head = {k: v for k, v in vars(self).items() if k not in ("records", "estimates")}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **head,
            "questions": len(self.records),
            "pictures": len({r.picture for r in self.records}),
            "bootstrap": {
                "by": "picture",
                "resamples": bootstrap.RESAMPLES,
                "seed": bootstrap.SEED,
                "level": bootstrap.LEVEL,
            },
            "metrics": [asdict(e) for e in self.estimates],
            "records": [r.to_json() for r in self.records],
        }

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """Reads `to_json`'s form; metrics are computed again from the records.

        Raises:
            DatasetError: another format or version, or damaged.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DatasetError("it is not a report of `geomag-edge eval`")
        if data.get("format_version") != FORMAT_VERSION:
            raise DatasetError(
                f"it has format version {str(data.get('format_version'))[:40]}, this program reads "
                f"{FORMAT_VERSION}: evaluate again"
            )
        try:
            report = cls(
                dataset=str(data["dataset"]),
                bundle=str(data["bundle"]),
                checkpoint=str(data["checkpoint"]),
                engine=str(data["engine"]),
                precision=str(data["precision"]),
                providers=dict(data["providers"]),
                budget=data["budget"],
                untrained=list(data["untrained"]),
                latency_ms=dict(data["latency_ms"]),
                records=[Record.from_json(r) for r in data["records"]],
            )
        except (KeyError, TypeError, ValueError) as e:
            if isinstance(e, DatasetError):
                raise
            raise DatasetError(f"it is damaged: {type(e).__name__} at {str(e)[:80]}") from e
        if not report.records:
            raise DatasetError("it has no records")
        kinds = {record.kind for record in report.records}
        if len(kinds) > MOST_KINDS:
            raise DatasetError(f"it has {len(kinds)} kinds of questions, {MOST_KINDS} is the most")
        return report


def read_report(path: Path) -> Report:
    """Reads a report's file.

    Raises:
        DatasetError: missing, not JSON, or not a report.
    """
    content = read_bytes(path, JSON_BYTES, DatasetError)
    try:
        return Report.from_json(parse_json(content, "it", DatasetError))
    except DatasetError as e:
        raise DatasetError(f"cannot use {path}: {e}") from e


def check_place(path: Path) -> None:
    """Refuses a report's place before the work is done rather than after.

    Raises:
        OutputError: a folder, or in a folder that is not there.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a .json file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission in {path.parent}")


def write_report(path: Path, data: dict[str, Any]) -> None:
    """Writes a report's JSON under its name only once it is whole; an older one is replaced.

    Raises:
        OutputError: cannot be written.
    """
    check_place(path)
    write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
