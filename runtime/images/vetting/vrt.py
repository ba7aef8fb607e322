"""Virtual rasters (VRT): those that only put together files that lie beside them.

A VRT is a text that tells GDAL what to open, and could tell it to open anything: a file of the
machine as raw bytes, an address, a pipe. So its vocabulary is that of `gdalbuildvrt` and of
`gdal_translate -of VRT`, and every source is looked at before GDAL sees the text.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.parsers.expat import ExpatError, ParserCreate

from geomag_edge.errors import ImageError

from .formats import check_beside, check_nested

MARK = b"<VRTDataset"
MOST_BYTES = 64_000_000
MOST_SOURCES = 20_000
MOST_DEEP = 3
"""A VRT of VRTs of VRTs of images."""
MOST_LAYERS = 64.0
"""How often, on average, each pixel may be covered by sources."""

_SOURCES = {"simplesource", "complexsource", "averagedsource", "kernelfilteredsource"}
_WORDS = _SOURCES | set(
    re.findall(
        r"\S+",
        """
    vrtdataset rasterxsize rasterysize srs dataaxistosrsaxismapping coordinateepoch geotransform
    gcplist gcp projection id info pixel line x y z metadata domain mdi key
    vrtrasterband datatype band subclass blockxsize blockysize description nodatavalue
    hidenodatavalue colorinterp colortable entry c1 c2 c3 c4 unittype offset scale categorynames
    category histograms histitem histmin histmax bucketcount includeoutofrange approximate
    histcounts
    resampling sourcefilename relativetovrt shared sourceband sourceproperties srcrect dstrect xoff
    yoff xsize ysize nodata scaleratio scaleoffset exponent srcmin srcmax dstmin dstmax clamp lut
    usemaskband colortablecomponent kernel size coefs normalized maskband overview overviewlist
        """,
    )
)
_PREFIX = re.compile(r"[A-Za-z0-9_+.-]+:")


@dataclass
class _Element:
    """An element and what it holds. GDAL takes attributes and elements for the same, and small
    letters for capitals."""

    word: str
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def all(self, word: str) -> list[_Element]:
        return [c for c in self.children if c.word == word]

    def value(self, word: str, default: str = "") -> str:
        found = self.all(word)
        return found[0].text.strip() if found else default


def check_vrt(path: str, deep: int = 1) -> float:
    """Looks through a VRT; returns how often a pixel of it is covered by plain files.

    Raises:
        ImageError: it is more than files beside it put together.
    """
    root = _parsed(path)
    if root.word != "vrtdataset":
        raise _refused(path, f"begins with {root.word[:40]!r}")
    folder = os.path.dirname(os.path.realpath(path))
    height, width = (_number(path, root.value(f"raster{side}size")) for side in "yx")
    covers: dict[str, float] = {}
    layers = 0.0
    for element in _below(root):
        names = element.all("sourcefilename")
        if not names and element.word in _SOURCES:
            raise _refused(path, "has a source without a file")
        for name in names:
            source = _source(path, folder, name)
            if source not in covers:
                if len(covers) == MOST_SOURCES:
                    raise _refused(path, f"has more than {MOST_SOURCES} sources")
                covers[source] = _checked(path, source, deep)
            areas = [_area(path, element, rect) for rect in ("srcrect", "dstrect")]
            area = max([a for a in areas if a is not None], default=height * width)
            layers += area * covers[source]
    check_beside(covers)
    bands = sum(e.word == "vrtrasterband" for e in _below(root))
    layers /= max(height * width * bands, 1)
    if not layers <= MOST_LAYERS:
        raise _refused(path, f"lays {layers:.0f} sources over each pixel ({MOST_LAYERS:.0f} may)")
    return layers


def _refused(path: str, why: str) -> ImageError:
    return ImageError(
        f"{path} {why}: of VRTs only those are opened that put together image files beside them; "
        "make a GeoTIFF of it (gdal_translate IN.vrt OUT.tif)"
    )


def _checked(path: str, source: str, deep: int) -> float:
    with open(source, "rb") as file:
        is_vrt = MARK in file.read(1024)
    if not is_vrt:
        check_nested(source)
        return 1.0
    if not source.lower().endswith(".vrt"):
        raise _refused(path, f"has a VRT under another name, {os.path.basename(source)[:80]!r}")
    if deep == MOST_DEEP:
        raise _refused(path, f"is one of VRTs more than {MOST_DEEP} deep")
    return check_vrt(source, deep + 1)


def _source(path: str, folder: str, element: _Element) -> str:
    """The file that a source names, in or below the VRT's own folder."""
    name = element.text
    shown = repr(name[:80])
    if name != name.strip() or not name.isprintable():
        raise _refused(path, f"names the source {shown}, which holds white space at its ends")
    if not os.path.isabs(name):
        if element.value("relativetovrt") != "1" or _PREFIX.match(name):
            raise _refused(path, f"names the source {shown}, which is no path from where it lies")
        name = os.path.join(folder, name)
    real = os.path.realpath(name)
    if os.path.commonpath([folder, real]) != folder or ".." in element.text.split("/"):
        raise _refused(path, f"names the source {shown}, which lies outside its own folder")
    if not os.path.exists(real):
        raise ImageError(f"cannot read {path}: its source {shown} is not there")
    if not os.path.isfile(real):
        raise _refused(path, f"names the source {shown}, which is no file")
    return real


def _area(path: str, element: _Element, rect: str) -> float | None:
    found = element.all(rect)
    if not found:
        return None
    return abs(math.prod(_number(path, found[0].value(side)) for side in ("xsize", "ysize")))


def _number(path: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _refused(path, f"has {text[:40]!r} where a number is needed")
    return number


def _below(root: _Element) -> Iterable[_Element]:
    waiting = [root]
    while waiting:
        element = waiting.pop()
        yield element
        waiting += element.children


def _parsed(path: str) -> _Element:
    """The text as a tree of known words."""
    if os.path.getsize(path) > MOST_BYTES:
        raise _refused(path, f"is larger than {MOST_BYTES // 1_000_000} MB")
    with open(path, "rb") as file:
        data = file.read()
    stack = [_Element("")]

    def start(name: str, attributes: dict[str, str]) -> None:
        element = _Element(_known(path, name))
        for key, value in attributes.items():
            element.children.append(_Element(_known(path, key), value))
        if "sourcefilename" in (stack[-1].word, *(c.word for c in element.children)):
            strange()
        if element.value("subclass", "VRTSourcedRasterBand").lower() != "vrtsourcedrasterband" or (
            element.word == "vrtdataset" and element.all("subclass")
        ):
            raise _refused(path, f"is a {element.value('subclass')[:40]}")
        stack[-1].children.append(element)
        stack.append(element)

    def text(part: str) -> None:
        stack[-1].text += part

    def strange(*_: object) -> None:
        raise _refused(path, "is written as GDAL itself never writes it")

    def comment(_: str) -> None:
        if stack[-1].word == "sourcefilename":  # GDAL's name would end here
            strange()

    # A declaration of another encoding is overruled: GDAL reads the bytes as they are.
    parser = ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CommentHandler, parser.StartCdataSectionHandler = comment, strange
    parser.ProcessingInstructionHandler = parser.StartDoctypeDeclHandler = strange
    try:
        parser.Parse(data, True)
    except ExpatError as e:
        raise ImageError(f"cannot read {path}: it is no VRT in UTF-8 ({e})") from e
    return stack[0].children[0]


def _known(path: str, name: str) -> str:
    word = name.casefold()
    if word not in _WORDS:
        raise _refused(path, f"says {name[:40]!r}")
    return word
