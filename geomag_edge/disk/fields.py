"""What a JSON record from a stranger must look like, said in a few words and checked in one place.

A check takes a value and the place where it stands, and raises `BundleError` where the value is
something else. Checks are built from one another: `record({"side": whole(1, 4096)})`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from geomag_edge.errors import BundleError

Check = Callable[[Any, str], None]

SHOWN = 60
"""Characters of a wrong value that an error shows."""


def refuse(value: Any, place: str, wanted: str) -> None:
    """Raises the error of a value that is not what is wanted.

    Raises:
        BundleError: always.
    """
    shown = _kind(value) if isinstance(value, list | dict) else repr(value)[:SHOWN]
    raise BundleError(f"{place[:120]} is damaged: {shown} where {wanted} should be; get it again")


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a record"


def anything(value: Any, place: str) -> None:
    """No check: nothing is done with the value but to keep and show it."""


def flag(value: Any, place: str) -> None:
    """true or false."""
    if not isinstance(value, bool):
        refuse(value, place, "true or false")


def whole(least: int, most: int) -> Check:
    """A whole number of `least` to `most`."""

    def check(value: Any, place: str) -> None:
        if type(value) is not int or not least <= value <= most:
            refuse(value, place, f"a whole number of {least} to {most}")

    return check


def real(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number of `least` to `most`."""

    def check(value: Any, place: str) -> None:
        if (
            type(value) not in (int, float)
            or not math.isfinite(value)
            or not least <= value <= most
        ):
            limits = "" if math.isinf(most) else f" of {least:g} to {most:g}"
            refuse(value, place, f"a number{limits}")

    return check


def text(most: int = 200, form: str = ".*", wanted: str = "") -> Check:
    """Text of at most so many characters, all of a form (a regular expression)."""
    pattern = re.compile(form, re.DOTALL)

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or len(value) > most or not pattern.fullmatch(value):
            refuse(value, place, wanted or f"text of at most {most} characters")

    return check


def one_of(*values: str) -> Check:
    """One of a few words."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or value not in values:
            refuse(value, place, f"one of {', '.join(values)}")

    return check


def maybe(inner: Check) -> Check:
    """null, or what `inner` says."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def listed(inner: Check, most: int, least: int = 0) -> Check:
    """A list of `least` to `most` values."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            many = f"{least}" if least == most else f"{least} to {most}"
            refuse(value, place, f"a list of {many} values")
        for i, item in enumerate(value):
            inner(item, f"{place}[{i}]")

    return check


_NAME = text()


def table(inner: Check, most: int, names: Check = _NAME) -> Check:
    """A record with names of its own, at most so many."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            refuse(value, place, "a record")
        if len(value) > most:
            raise BundleError(
                f"{place[:120]} lists {len(value)} entries, more than the {most} that are read"
            )
        for name, item in value.items():
            names(name, f"a name in {place}")
            inner(item, f"{place}.{name[:SHOWN]}")

    return check


def record(needed: Mapping[str, Check], perhaps: Mapping[str, Check] | None = None) -> Check:
    """A record that has the `needed` fields and may have others, of which `perhaps` are known."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            refuse(value, place, "a record")
        for name, inner in needed.items():
            if name not in value:
                raise BundleError(f"{place[:120]} is damaged: {name} is missing; get it again")
            inner(value[name], f"{place}.{name}")
        for name, inner in (perhaps or {}).items():
            if name in value:
                inner(value[name], f"{place}.{name}")

    return check


named = table(anything, 10_000)
"""A record of anything."""
