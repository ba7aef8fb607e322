"""What a caller of the Python API may give, checked at the door and refused in one line.

Numpy's numbers are numbers; True and False are none, as where they are given for one it is a slip.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np

from geomag_edge.errors import InputError

SHOWN_BELOW = 10**12
"""Whole numbers up to this are shown in errors; others may have millions of digits."""


def whole(
    value: Any, what: str, least: int, most: int | None = None, error: type[InputError] = InputError
) -> int:
    """A whole number of at least `least`, and at most `most` where that is given.

    Raises:
        InputError, or the kind of it that is given: it is something else.
    """
    wanted = f"from {least} to {most}" if most is not None else f"of at least {least}"
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise error(f"{what} is {told(value)}: give a whole number {wanted}")
    return number


def real(value: Any, what: str, error: type[InputError] = InputError) -> float:
    """A finite number.

    Raises:
        InputError, or the kind of it that is given: it is something else.
    """
    number = math.nan
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, TypeError):
            number = float(value)
    if not math.isfinite(number):
        raise error(f"{what} is {told(value)}: give a finite number")
    return number


def text(value: Any, what: str, error: type[InputError] = InputError) -> str:
    """A text.

    Raises:
        InputError, or the kind of it that is given: it is something else.
    """
    if not isinstance(value, str):
        raise error(f"{what} is {told(value)}: give text")
    return value


def path(value: Any, what: str, error: type[InputError] = InputError) -> Path:
    """A path, from text or what `os` takes for one.

    Raises:
        InputError, or the kind of it that is given: it is something else.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise error(f"{what} is {told(value)}: give a path")
    return Path(os.fsdecode(value))


def called(value: Any, what: str) -> None:
    """A function, or None.

    Raises:
        InputError: it is something else.
    """
    if value is not None and not callable(value):
        raise InputError(f"{what} is {told(value)}: give a function, or None")


def told(value: Any) -> str:
    """A wrong value in a few words: small numbers as they are, else what it is."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, int):
        return str(value) if abs(value) < SHOWN_BELOW else "a number of many digits"
    if isinstance(value, (float, np.number)):
        return str(value)[:40]
    return f"of type {type(value).__name__}"
