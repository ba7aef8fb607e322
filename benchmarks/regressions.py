"""Two runs of `geomag-edge bench` against each other: which stage of which case got slower?

A stage counts as slower (or faster) if the ratio of its medians is past `THRESHOLD`, the bootstrap
interval of that ratio lies wholly on that side of 1, and the difference is more than a clock's.
Past the threshold with an interval that reaches 1 it is "slower?" or "faster?": seen, not proven.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from geomag_edge.benchmarks.queries import DERIVED, STAGES, case_name
from geomag_edge.benchmarks.timing import ratio
from geomag_edge.errors import InputError

THRESHOLD = 1.10
LEAST_MS = 0.02
ENOUGH_ROUNDS = 5
"""A bootstrap of fewer is sure of too much."""


@dataclass(frozen=True)
class Change:
    """One stage of one case: medians in ms, new over old with its 95 % interval, and a verdict."""

    case: str
    stage: str
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "slower", "faster", either with a "?", or "same"."""
        if abs(self.after_ms - self.before_ms) < LEAST_MS:
            return "same"
        if self.ratio >= THRESHOLD:
            return "slower" if self.low > 1 else "slower?"
        if self.ratio <= 1 / THRESHOLD:
            return "faster" if self.high < 1 else "faster?"
        return "same"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"verdict": self.verdict}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Every stage of every case that both runs have.

    Raises:
        InputError: they have no case in common.
    """
    old = {_key(case): case for case in before["cases"]}
    both = [(old[_key(case)], case) for case in after["cases"] if _key(case) in old]
    if not both:
        raise InputError("the two runs have no case in common: nothing can be compared")
    return [change for a, b in both for change in _stages(a, b)]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What else differs between the runs or weakens the comparison, in plain words."""
    notes = []
    fewest = min(
        len(case["stages_ms"]["total"]["rounds"])
        for run in (before, after)
        for case in run["cases"]
    )
    if fewest < ENOUGH_ROUNDS:
        notes.append(
            f"{fewest} rounds are too few to tell noise from a change: bench with --rounds "
            f"{ENOUGH_ROUNDS} or more"
        )
    for name in ("cpu", "instruction_sets", "quota", "cores", "threads", "governor", "power_mode"):
        a, b = before["machine"].get(name), after["machine"].get(name)
        if a != b:
            notes.append(f"{name}: {a} -> {b}")
    old, new = before["machine"]["versions"], after["machine"]["versions"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            notes.append(f"{name}: {old.get(name)} -> {new.get(name)}")
    if before["checkpoint_sha256"] != after["checkpoint_sha256"]:
        notes.append("another checkpoint")
    return notes


def _key(case: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(case[name] for name in ("engine", "precision", "budget", "image_px"))


def _stages(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    name = case_name(*_key(after))
    for stage in (*STAGES, *DERIVED):
        old, new = before["stages_ms"].get(stage), after["stages_ms"].get(stage)
        if not old or not new or not old["p50"] or not new["p50"]:
            continue
        found = ratio(new["rounds"], old["rounds"], paired=False)
        yield Change(
            name, stage, old["p50"], new["p50"], found["ratio"], found["low"], found["high"]
        )
