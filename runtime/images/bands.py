"""Which bands serve as red, green and blue: the caller's, else what the file says of its bands.

A file can say it by colour interpretation, by its bands' names (colours in words, or the numbers of
Sentinel-2 and Landsat), or by their wavelengths. All three colours must be told in the same way: a
file that names its red alone is shown as if it named nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rasterio.enums import ColorInterp

from geomag_edge.arguments import told, whole
from geomag_edge.errors import ImageError

Rgb = tuple[int, int, int]

COLOURS = ("red", "green", "blue")
WAVELENGTHS_NM = {"red": (615.0, 660.0, 690.0), "green": (520.0, 560.0, 600.0),
                  "blue": (445.0, 485.0, 515.0)}  # fmt: skip
"""The least, the best and the greatest centre of a band that is shown as this colour."""

_WORDS = re.compile(r"[a-z]+|\d+")
_OTHERS = {"edge", "rededge", "infra", "infrared", "nir", "swir", "coastal", "deep", "yellow",
           "pan", "qa", "mask", "ratio", "index", "minus", "over"}  # fmt: skip
"""Words that make of a colour's name another band's: red edge, coastal blue, red/blue ratio."""
_NUMBER = re.compile(r"(?<![a-z0-9])(sr_?)?b(and)?(_?)(\d{1,2})(?![a-z0-9])", re.I)
_VALUE = r"(\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)"
_NM = re.compile(_VALUE + r"\s*(nm|nanomet\w+|um|µm|μm|micromet\w+|micron\w*)\b", re.I)
_NUMBERED = (
    (
        re.compile(r"\bL[TE]0?[457](?!\d)|\blandsat[ -]?[4-7]\b|\bst ?b6\b|\bb6 vcid", re.I),
        (3, 2, 1),
    ),
    (re.compile(r"\bsur refl\b|\bMODIS\b|\bM[OY]D09|\bMCD43", re.I), (1, 4, 3)),
    (re.compile(r"\b(ASTER|VIIRS|AVHRR|MSS)\b", re.I), None),
)
"""The numbers of red, green and blue of sensors that count otherwise than Sentinel-2, Landsat 8
and 9 (4, 3, 2), by words in what a file says of itself; None: they have no such bands."""


@dataclass(frozen=True)
class BandInfo:
    """What a file says of its bands; all sequences have an entry a band."""

    interpretation: Sequence[ColorInterp]
    names: Sequence[str | None]
    tags: Sequence[Mapping[str, str]] = ()
    about: str = ""
    """What the file says of itself, in which its sensor may be named."""
    colours: Sequence[int] = field(default=())
    """The bands (1-based) that hold data, not alpha."""


def chosen_bands(asked: Sequence[int] | None, info: BandInfo) -> tuple[Rgb, str | None]:
    """The bands (1-based) that serve as red, green and blue, and a note where there was a choice.

    Args:
        asked: the caller's choice, one band or three; None for what the file says.
        info: of the file or the array.

    Raises:
        ImageError: a band that does not exist, or neither one band nor three.
    """
    if asked is not None:
        chosen = _asked(asked, info.colours)
        return chosen, _note(chosen, info)
    readings = [(why, tell(info)) for why, tell in _WAYS]
    told = [(why, bands) for why, bands in readings if bands is not None]
    if not told:
        first = list(info.colours[:3])
        first += [first[-1]] * (3 - len(first))
        chosen = first[0], first[1], first[2]
        because = ", the first of them, as nothing names all three colours"
        return chosen, _note(chosen, info, because)
    why, chosen = told[0]
    for other, bands in told[1:]:
        if bands != chosen:
            numbers = ",".join(map(str, bands))
            doubt = f"; their {other} say {numbers}, which --bands {numbers} takes"
            return chosen, _note(chosen, info, f", by their {why}", doubt)
    return chosen, _note(chosen, info, f", by their {why}")


def _asked(asked: Sequence[int], colours: Sequence[int]) -> Rgb:
    try:
        listed = [] if isinstance(asked, (str, bytes)) else list(asked)
    except TypeError:
        listed = []
    if not listed:
        raise ImageError(f"bands is {told(asked)}: give band numbers, such as [3, 2, 1]")
    bands = [whole(band, "a band", 1, error=ImageError) for band in listed]
    if len(bands) not in (1, 3):
        raise ImageError(
            f"{len(bands)} band numbers given: give one (shown as grey) or three (red, green, blue)"
        )
    if wrong := [b for b in bands if b not in colours]:
        have = f"bands 1 to {len(colours)}" if len(colours) > 1 else f"only band {colours[0]}"
        if len(colours) > 1 and max(colours) > len(colours):  # alpha is not the last one
            have = "bands " + ", ".join(map(str, colours))
        raise ImageError(f"no band {wrong[0]} in this image: it has {have} (counted from 1)")
    if len(bands) == 1:
        bands *= 3
    return bands[0], bands[1], bands[2]


def _note(bands: Rgb, info: BandInfo, because: str = "", doubt: str = "") -> str | None:
    """A remark on the bands in use; none where they are the only ones, in their order."""
    count = len(info.names)
    if len(set(bands)) == 1:
        return f"band {bands[0]} of {count} shown as grey" if len(info.colours) > 1 else None
    if bands == tuple(info.colours) and not doubt:
        return None
    numbers = ",".join(map(str, bands))
    return f"bands {numbers} of {count} taken as red, green, blue{because}{doubt}"


def _complete(found: Mapping[str, int | None]) -> Rgb | None:
    red, green, blue = (found.get(colour) for colour in COLOURS)
    if red is None or green is None or blue is None or len({red, green, blue}) < 3:
        return None
    return red, green, blue


def _by_interpretation(info: BandInfo) -> Rgb | None:
    kinds = list(info.interpretation)
    wanted = {c: getattr(ColorInterp, c) for c in COLOURS}
    return _complete({c: kinds.index(k) + 1 for c, k in wanted.items() if k in kinds})


def _by_colour_words(info: BandInfo) -> Rgb | None:
    """`red`, `R`, `Band 3: Red`, `B4 (red)`: the plainest name of each colour, else the first."""
    found: dict[str, tuple[int, int]] = {}
    for band in info.colours:
        words = _WORDS.findall((_name(info, band)).lower())
        said = [c for c in COLOURS if c in words or words == [c[0]]]
        if len(said) == 1 and not _OTHERS & set(words):
            rank = len(words), band
            found[said[0]] = min(found.get(said[0], rank), rank)
    return _complete({colour: band for colour, (_, band) in found.items()})


def _by_wavelength(info: BandInfo) -> Rgb | None:
    centres = {band: nm for band in info.colours if (nm := _centre_nm(info, band)) is not None}
    found: dict[str, int | None] = {}
    for colour, (least, best, most) in WAVELENGTHS_NM.items():
        near = [(abs(nm - best), band) for band, nm in centres.items() if least <= nm <= most]
        found[colour] = min(near)[1] if near else None
    return _complete(found)


def _by_number(info: BandInfo) -> Rgb | None:
    """The bands that Sentinel-2, Landsat and MODIS number so."""
    matches = {band: _NUMBER.search(_name(info, band)) for band in info.colours}
    numbers = {int(m[4]): band for band, m in reversed(matches.items()) if m}
    text = " ".join([info.about, *(_name(info, band) for band in info.colours)]).replace("_", " ")
    order: Rgb | None = (4, 3, 2)
    if {1, 2, 3, 4, 5, 7} == set(numbers) & set(range(1, 9)):
        order = (3, 2, 1)  # the reflective bands of Landsat 4-7, whose 6th is thermal
    for pattern, other in _NUMBERED:
        if pattern.search(text):
            order = other
            break
    else:
        # B1, B2, B3, B4 may do no more than count the bands of any sensor.
        if all(m and m[4] == str(band) and not m[1] for band, m in matches.items()) and (
            len(matches) < 7 or any(m and m[2] for m in matches.values())
        ):
            return None
    if order is None:
        return None
    return _complete(dict(zip(COLOURS, map(numbers.get, order), strict=True)))


_WAYS: tuple[tuple[str, Callable[[BandInfo], Rgb | None]], ...] = (
    ("colour interpretation", _by_interpretation),
    ("names", _by_colour_words),
    ("wavelengths", _by_wavelength),
    ("names, as their satellite numbers them", _by_number),
)


def _name(info: BandInfo, band: int) -> str:
    """A band's own name, else the one that its tags hold."""
    if name := info.names[band - 1]:
        return name
    tags = {k.lower().replace("_", ""): v for k, v in _tags(info, band).items()}
    return next((tags[k] for k in ("bandname", "name", "longname") if tags.get(k)), "")


def _tags(info: BandInfo, band: int) -> Mapping[str, str]:
    return info.tags[band - 1] if info.tags else {}


def _centre_nm(info: BandInfo, band: int) -> float | None:
    """A band's central wavelength, from its tags or its name."""
    tags = {k.lower(): v for k, v in _tags(info, band).items()}
    unit = next((tags[k] for k in ("wavelength_unit", "wavelength_units") if k in tags), "")
    said: list[Any] = []
    if "central_wavelength_um" in tags:
        said.append(f"{tags['central_wavelength_um']} um")
    if "wavelength" in tags:
        said.append(f"{tags['wavelength']} {unit}")
    said.append(info.names[band - 1] or "")
    for text in said:
        if match := _NM.search(text):
            return _number(match[1]) * (1 if match[2].lower().startswith("n") else 1000)
    if "wavelength" in tags and (
        match := re.fullmatch(rf"\s*{_VALUE}\s*", tags["wavelength"], re.I)
    ):
        value = _number(match[1])  # no unit: micrometres of visible light are below 1
        return value if value > 100 else value * 1000
    return None


def _number(text: str) -> float:
    """A number with a decimal point or, as much of the world writes it, a comma."""
    return float(text.replace(",", "."))
