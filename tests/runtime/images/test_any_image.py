"""Whatever an image holds: an answer or one line, and not a word on stderr."""

import contextlib
import json
import logging
import math
import signal
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import Affine

from geomag_edge.errors import ImageError
from geomag_edge.runtime.answers.geojson import feature_collection
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.images.georef import Georef
from geomag_edge.runtime.images.reading import reading
from geomag_edge.runtime.images.scene import Scene

MEAN_STD = np.array([[0.5] * 3, [0.2] * 3], np.float32)
PICTURE = np.random.default_rng(3).integers(0, 250, (60, 80, 3), dtype=np.uint8)


def bases():
    """Small images of many formats, as bytes."""
    made = {}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        path = Path(folder, "a.tif")
        with rasterio.open(
            path, "w", driver="GTiff", height=60, width=80, count=3, dtype="uint8", tiled=True,
            blockxsize=16, blockysize=16, nodata=0, compress="deflate", crs="EPSG:32633",
            transform=Affine(1, 0, 5e5, 0, -1, 5e6),
        ) as ds:  # fmt: skip
            ds.write(np.moveaxis(PICTURE, -1, 0))
            ds.update_tags(a="b")
        with rasterio.open(path, "r+") as ds:
            ds.build_overviews([2, 4])
        made["tif"] = path.read_bytes()
        for driver in ("HFA", "BMP", "PNG", "NITF", "GPKG"):
            copy = Path(folder, f"b.{driver}")
            rasterio.shutil.copy(str(path), str(copy), driver=driver)
            made[driver] = copy.read_bytes()
        grey = Path(folder, "grey.tif")
        with rasterio.open(path) as ds, rasterio.open(grey, "w", **ds.profile | {"count": 1}) as to:
            to.write(ds.read(1), 1)
        for kind in ("NC", "NC2", "NC4"):
            copy = Path(folder, f"b.{kind}")
            rasterio.shutil.copy(str(grey), str(copy), driver="netCDF", FORMAT=kind)
            made[kind] = copy.read_bytes()
        for kind in ("JPEG", "JPEG2000", "WEBP", "GIF"):
            copy = Path(folder, f"c.{kind}")
            Image.fromarray(PICTURE).save(copy, kind)
            made[kind] = copy.read_bytes()
    made["VRT"] = (
        b'<VRTDataset rasterXSize="80" rasterYSize="60"><VRTRasterBand dataType="Byte" band="1">'
        b'<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename><SrcRect xOff="0" '
        b'yOff="0" xSize="80" ySize="60"/></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    return made


BASES = bases()


@st.composite
def harmed(draw):
    """A file of some format with bytes changed, left out and put in, and the name's ending."""
    kind = draw(st.sampled_from(sorted(BASES)))
    data = bytearray(BASES[kind])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([64, 1024, 10**6])))))
        new = draw(st.binary(min_size=0, max_size=4))
        data[at : at + draw(st.integers(0, 4))] = new
    return bytes(data), draw(st.sampled_from(["tif", "png", "vrt", "nc"]))


def look_at(source, **options):
    """Opens an image and does with it what a question does; None where it is refused."""
    try:
        with Scene.open(source, **options) as scene:
            scene.thumbnail(50)
            boxes = np.array([[0, 0, scene.width, scene.height]], np.float32)
            if scene.validity is not None:
                scene.validity.box_of_data(boxes[0])
            views = scene.crop(boxes, MEAN_STD, 16)
            assert np.isfinite(views).all()
            assert all("\n" not in note and len(note) < 300 for note in scene.notes)
            return views
    except ImageError as e:
        refusal = str(e)
    assert "\n" not in refusal
    assert len(refusal) <= 300
    return None


@settings(max_examples=150)
@given(harmed())
@example((b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40, "tif"))
@example((BASES["VRT"].replace(b"a.tif", b"r\xe9.tif"), "vrt"))
@example((b"DatasetHeader Begin\n\xe9\xff\n", "ers"))
@example((b"<MRF_META>\xe9</MRF_META>", "mrf"))
@pytest.mark.filterwarnings("error")
def test_a_harmed_image_is_read_or_refused(made):
    data, ending = made
    heard = []
    before, sys.unraisablehook = sys.unraisablehook, heard.append
    try:
        with TemporaryDirectory() as folder:
            Path(folder, "a.tif").write_bytes(BASES["tif"])
            Path(folder, f"b.{ending}").write_bytes(data)
            look_at(Path(folder, f"b.{ending}"))
    finally:
        sys.unraisablehook = before
    assert not heard


FLOATS = st.floats() | st.sampled_from([1e-320, 5e-324, 1.7e308, -1.7e308, 3.4e38, 1e20, 65504.0])


@settings(max_examples=150)
@given(
    st.lists(FLOATS, min_size=1, max_size=4),
    st.sampled_from(["float16", "float32", "float64", "int64", "uint64", "int8"]),
    st.none() | st.tuples(FLOATS, FLOATS),
    st.none() | FLOATS,
)
@example([1e300], "float64", None, None)
@example([3.4e38, -3.4e38, 1.0], "float32", None, None)
@example([1.0, 2.0], "float64", (0, 1e-320), None)
@example([1.0, -1.7e308], "float64", (-1.7e308, 1.7e308), None)
@pytest.mark.filterwarnings("error")
def test_any_values_and_ranges_make_a_picture_or_one_line(values, dtype, value_range, nodata):
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = np.resize(np.array(values), (12, 9)).astype(dtype)
    look_at(picture, value_range=value_range, nodata=nodata)


def test_a_tiny_range_is_as_good_as_any(tmp_path):
    values = np.linspace(0, 1e-310, 256).reshape(16, 16)
    rgb = Scene.open(values, value_range=(0, 1e-310)).thumbnail(16)[0]
    np.testing.assert_array_equal(rgb[..., 0].reshape(-1), np.arange(256))


SIZES = st.builds(math.ldexp, st.sampled_from([-1.0, 1.0]), st.integers(-50, 50))
NUMBERS = FLOATS | st.floats(-1e7, 1e7) | SIZES
SYSTEMS = [
    None, "EPSG:4326", "EPSG:32633", "EPSG:3031", "EPSG:3857", "ESRI:54009",
    "+proj=geos +h=35785831", "+proj=merc +over", "+proj=eqc", "+proj=igh", "+proj=healpix",
]  # fmt: skip


def placed_in(georef):
    """The mask of a block of pixels on the ground; its outline has as few points as any map's."""
    mask = Mask((40, 50), [[8, 5, 30, 20]], np.ones((1, 4, 4), np.float32), np.ones(1), 1.0)
    made = feature_collection([mask], ["a"], georef)
    assert len(json.dumps(made)) < 50_000_000  # MOST_BENDS points
    return made["geomag_coordinates"]


@settings(max_examples=100)
@given(st.sampled_from(SYSTEMS), st.tuples(*[NUMBERS] * 6), st.booleans())
@example("EPSG:4326", (1e300, 0, 0, 0, -1e300, 0), False)
@example("EPSG:32633", (1e300, -1e300, 1, 1e300, 1, 1), True)
@example("EPSG:32633", (math.inf, 0, 0, 0, math.nan, 0), False)
@example("EPSG:4326", (1e7, 0, 0, 0, 1e7, 0), False)  # hundreds of turns round the Earth a pixel
@example("EPSG:3857", (1e12, 0, 0, 0, 1e12, 0), False)
@example("EPSG:3857", (3e14, 0, 0, 0, 3e14, 0), False)  # PROJ counts the turns one by one
@example("EPSG:4326", (0, 0, 1e7, 3e6, 2e6, -1e7), True)
@example("EPSG:32633", (-1e14, 0, 0, 0, 1301542, 1), True)  # metres do not go round at 360
@pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning")
def test_any_place_is_coordinates_or_pixels_with_a_note(crs, numbers, as_points):
    crs = None if crs is None else CRS.from_string(crs)
    if as_points:
        x, y, *more = numbers
        corners = [(0, 0, x, y), (9, 0, more[0], more[1]), (0, 9, more[2], more[3])]
        georef = Georef(crs, None, tuple(GroundControlPoint(*c) for c in corners))
    else:
        georef = Georef(crs, Affine(*numbers))
    assert placed_in(georef) in ("wgs84", "native", "pixel")


KINDS = ("height", "lat", "long", "line", "samp")
FOUR = ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff")


@settings(max_examples=60)
@given(st.lists(NUMBERS, min_size=10, max_size=10), st.lists(SIZES, min_size=80, max_size=80))
@example([0, 0, 0, 20, 25, 500, 90, 180, 20, 25], [1.0, 8.0, -3.0, 0.5] * 20)
@pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning")
def test_any_polynomials_are_coordinates_or_pixels_with_a_note(offsets, factors):
    names = [f"{kind}_{what}" for what in ("off", "scale") for kind in KINDS]
    four = dict(zip(FOUR, np.split(np.array(factors), 4), strict=True))
    georef = Georef(None, None, (), RPC(**dict(zip(names, offsets, strict=True)), **four))
    assert placed_in(georef) in ("wgs84", "pixel")


@pytest.mark.parametrize(
    ("crs", "px"),
    [("EPSG:4326", 719 / 50), ("EPSG:4326", 720 / 50), ("EPSG:3857", 2 * 40_075_016.7 / 50)],
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_an_image_that_goes_round_twice_is_in_pixels(crs, px):
    georef = Georef(CRS.from_string(crs), Affine(px, 0, -25 * px, 0, -px / 100, px / 4))
    mask = Mask((40, 50), [[0, 0, 50, 40]], np.ones((1, 4, 4), np.float32), np.ones(1), 1.0)
    made = feature_collection([mask], ["a"], georef)
    assert made["geomag_coordinates"] == "pixel"
    assert "goes round the Earth more than once" in made["geomag_notes"][0]


def test_the_name_of_a_system_is_one_short_word_of_a_note():
    name = "a\n\x1b[31m\u202e" + "n" * 9000
    local = CRS.from_wkt(f'LOCAL_CS["{name}",UNIT["metre",1]]')
    mask = Mask((40, 50), [[8, 5, 30, 20]], np.ones((1, 4, 4), np.float32), np.ones(1), 1.0)
    made = feature_collection([mask], ["a"], Georef(local, Affine(1, 0, 5, 0, -1, 5)))
    assert made["geomag_coordinates"] == "native"
    assert all(note.isprintable() and len(note) < 300 for note in made["geomag_notes"])


def test_edges_without_end_leave_the_image_in_pixels(monkeypatch):
    monkeypatch.setattr("geomag_edge.runtime.answers.curves.MOST_BENDS", 10)
    georef = Georef(CRS.from_epsg(32633), Affine(1e4, 0, 4e5, 0, -1e4, 5e6))
    assert placed_in(georef) == "pixel"


def fail_twice():
    """rasterio hears of one failure in its callback; nothing is raised for it there."""
    with reading("a.tif"):
        for name in ("no such file", "nor this"):
            with contextlib.suppress(rasterio.errors.RasterioError):
                rasterio.open(name)


def test_an_interrupt_that_rasterios_callback_loses_is_not_lost():
    class Log(logging.Handler):
        def emit(self, record):
            signal.raise_signal(signal.SIGINT)

    log, handler = logging.getLogger("rasterio"), Log(logging.WARNING)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.DEBUG)
    handler.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            fail_twice()
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        signal.signal(signal.SIGINT, before)
