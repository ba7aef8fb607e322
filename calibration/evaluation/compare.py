"""Two reports on the same questions: paired differences with bootstrap intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from geomag_edge.errors import DatasetError

from . import bootstrap
from .records import ALL, Record, Sums
from .report import Report


@dataclass(frozen=True)
class Difference:
    """A metric of both reports over a group, and one minus the other with its 95 % interval.

    `low` and `high` are None where the group has fewer than two pictures to resample.
    """

    metric: str
    group: str
    value: float | None
    other: float | None
    difference: float | None
    low: float | None
    high: float | None
    questions: int


@dataclass
class Comparison:
    """Report minus other, on the questions that both answered.

    Attributes:
        questions: how many both answered.
        only_here, only_there: how many just one of them did.
        identical: share of answers with the same text, markup included.
        differences: by metric and group.
    """

    report: str
    other: str
    questions: int
    only_here: int
    only_there: int
    identical: float
    differences: list[Difference]

    def __getitem__(self, key: str | tuple[str, str]) -> Difference:
        """`comparison["mIoU"]`, or `comparison["mIoU", "size: <16 px"]` for a group."""
        metric, group = (key, ALL) if isinstance(key, str) else key
        for difference in self.differences:
            if (difference.metric, difference.group) == (metric, group):
                return difference
        raise KeyError(f"the comparison has no {metric} for {group}")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare(report: Report, other: Report) -> Comparison:
    """Compares two reports question by question.

    Raises:
        DatasetError: they share no question, or mean different questions by one id.
    """
    theirs = {r.id: r for r in other.records}
    pairs = [(r, theirs[r.id]) for r in report.records if r.id in theirs]
    for mine, its in pairs:
        if _asked(mine) != _asked(its):
            raise DatasetError(
                f"the reports are of different sets: question {mine.id!r} is {mine.prompt!r} in "
                f"{report.dataset} and {its.prompt!r} in {other.dataset}"
            )
    if not pairs:
        raise DatasetError(
            f"the reports have no question in common ({report.dataset} and {other.dataset}): "
            "evaluate both on the same set"
        )
    same = sum(mine.text == its.text for mine, its in pairs)
    return Comparison(
        report=_title(report),
        other=_title(other),
        questions=len(pairs),
        only_here=len(report.records) - len(pairs),
        only_there=len(other.records) - len(pairs),
        identical=same / len(pairs),
        differences=_differences([m for m, _ in pairs], [_as_grouped(i, m) for m, i in pairs]),
    )


def _asked(record: Record) -> tuple[Any, ...]:
    return record.level, record.kind, record.prompt, record.expected


def _as_grouped(its: Record, mine: Record) -> Record:
    """The other's record, in the groups of ours: a folder may name pictures in another way, and
    models with other views see another size."""
    return replace(its, picture=mine.picture, image_px=mine.image_px, size_px=mine.size_px)


def _title(report: Report) -> str:
    budget = "" if report.budget is None else f" budget {report.budget}"
    return f"{report.bundle} {report.engine} {report.precision}{budget}"


def _differences(mine: list[Record], its: list[Record]) -> list[Difference]:
    """Both sums have the same pictures in the same order, so the draws are the same too."""
    one, two = Sums.of(mine), Sums.of(its)
    shared = [(c, two.columns.index(k)) for c, k in enumerate(one.columns) if k in two.columns]
    here, there = ([pair[i] for pair in shared] for i in range(2))
    values = bootstrap.ratio(one.above[:, here], one.below[:, here])
    others = bootstrap.ratio(two.above[:, there], two.below[:, there])
    samples = bootstrap.resampled(one.above[:, here], one.below[:, here])
    samples -= bootstrap.resampled(two.above[:, there], two.below[:, there])
    ranges = bootstrap.intervals(samples, one.pictures[here])
    made = []
    for i, c in enumerate(here):
        low, high = ranges[i] or (None, None)
        value, other = _known(values[i]), _known(others[i])
        known = value is not None and other is not None
        made.append(
            Difference(
                *one.columns[c],
                value=value,
                other=other,
                difference=float(values[i] - others[i]) if known else None,
                low=low,
                high=high,
                questions=int(one.questions[:, c].sum()),
            )
        )
    return made


def _known(value: float) -> float | None:
    return float(value) if value == value else None
