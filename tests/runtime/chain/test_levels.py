"""Validity at every level: what a file says of its pixels holds in all its overviews and views."""

from contextlib import ExitStack

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp, Resampling

from geomag_edge.runtime.images import pixels, raster
from geomag_edge.runtime.images import scene as scene_module
from geomag_edge.runtime.images.scene import NO_DATA_GREY, Scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SIDE = 256
RGBA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
MEAN_STD = np.array([[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]], np.float32)
MEAN = 128 / 255 * 4 - 2
"""The mean as a byte, normalised: what a view shows where there is no data."""


def picture(valid, fill=0):
    """Bright everywhere but for the fill: [4,h,w], the last an alpha band."""
    rgb = np.random.default_rng(0).integers(170, 250, (3, *valid.shape), dtype=np.uint8)
    return np.concatenate([np.where(valid, rgb, fill), valid[None] * np.uint8(255)]).astype("uint8")


def write(path, bands, valid=None, internal=True, **profile):
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(
            path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2],
            count=len(bands), dtype=bands.dtype, tiled=True, blockxsize=64, blockysize=64,
            **profile,
        ) as ds,
    ):  # fmt: skip
        if len(bands) == 4:
            ds.colorinterp = RGBA
        ds.write(bands)
        if valid is not None:
            ds.write_mask(valid)
    return path


def overviews(path, external, kind=Resampling.average):
    with rasterio.Env(TIFF_USE_OVR=external), rasterio.open(path, "r+") as ds:
        ds.build_overviews([2, 4, 8], kind)
    return path


def vrt(path, source):
    rasterio.shutil.copy(str(source), str(path), driver="VRT")
    return path


def late(path, change):
    """Overviews that were made before anything was known of validity."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as ds:
        change(ds)
    return path


def of_another_nodata(folder, valid):
    overviews(write(folder / "a.tif", picture(valid, 255)[:3], nodata=255), True)
    return write(folder / "a.tif", picture(valid)[:3], nodata=0)


def png(path, valid):
    Image.fromarray(np.moveaxis(picture(valid), 0, 2)).save(path)
    return path


FILES = {
    "mask inside, overviews inside": lambda p, v: overviews(
        write(p / "a.tif", picture(v)[:3], v), False
    ),
    "mask inside, overviews outside": lambda p, v: overviews(
        write(p / "a.tif", picture(v)[:3], v), True
    ),
    "mask outside, overviews inside": lambda p, v: overviews(
        write(p / "a.tif", picture(v)[:3], v, False), False
    ),
    "mask outside, overviews outside": lambda p, v: overviews(
        write(p / "a.tif", picture(v)[:3], v, False), True
    ),
    "mask later than the overviews": lambda p, v: late(
        overviews(write(p / "a.tif", picture(v)[:3]), True), lambda ds: ds.write_mask(v)
    ),
    "nodata": lambda p, v: overviews(write(p / "a.tif", picture(v)[:3], nodata=0), True),
    "nodata later than the overviews": lambda p, v: late(
        overviews(write(p / "a.tif", picture(v)[:3]), True), lambda ds: setattr(ds, "nodata", 0)
    ),
    "overviews of another nodata": of_another_nodata,
    "alpha": lambda p, v: overviews(write(p / "a.tif", picture(v)), True),
    "alpha of 1": lambda p, v: overviews(
        write(p / "a.tif", np.concatenate([picture(v)[:3], v[None] * np.uint8(1)])), True,
        Resampling.nearest,
    ),
    "PNG with alpha": lambda p, v: overviews(png(p / "a.png", v), True),
    "VRT with a mask": lambda p, v: overviews(
        vrt(p / "a.vrt", write(p / "a.tif", picture(v)[:3], v)), True
    ),
    "VRT with nodata": lambda p, v: overviews(
        vrt(p / "a.vrt", write(p / "a.tif", picture(v)[:3], nodata=0)), True
    ),
    "VRT with alpha": lambda p, v: overviews(
        vrt(p / "a.vrt", write(p / "a.tif", picture(v))), True
    ),
    "VRT of a file with overviews": lambda p, v: vrt(
        p / "a.vrt", overviews(write(p / "a.tif", picture(v)[:3], v), False)
    ),
    "no overviews": lambda p, v: write(p / "a.tif", picture(v)[:3], v),
}  # fmt: skip


def holes(height=SIDE, width=SIDE):
    """Half of the image, an island in it and a hole in the other half."""
    valid = np.ones((height, width), bool)
    valid[:, : width // 2] = False
    valid[40:80, 40:80] = True
    valid[150:200, 180:230] = False
    return valid


def small_memory():
    """Reads that are chunked and averaged as those of huge files are."""
    patch = pytest.MonkeyPatch()
    for module in (pixels, raster, scene_module):
        for name, value in {"TILE_PX": 9_000, "CHUNK_PX": 3_000, "SAMPLE_PX": 3_000}.items():
            if hasattr(module, name):
                patch.setattr(module, name, value)
    patch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    return patch


def deep_inside(area, reach):
    """Pixels of an area all of whose neighbours up to `reach` px away lie in it too."""
    padded = np.pad(area, reach, constant_values=True)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis)
        padded = windows.all(-1)
    return padded


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Each of FILES, open by windows."""
    with ExitStack() as stack:
        patch = small_memory()
        stack.callback(patch.undo)
        opened = {}
        for number, (kind, make) in enumerate(FILES.items()):
            folder = tmp_path_factory.mktemp(f"levels{number}")
            opened[kind] = stack.enter_context(Scene.open(make(folder, holes())))
        yield opened


@settings(max_examples=150)
@given(
    kind=st.sampled_from(sorted(FILES)), size=st.sampled_from([8, 16, 24, 32]),
    x=st.integers(-100, SIDE), y=st.integers(-100, SIDE), side=st.integers(24, 400),
)  # fmt: skip
def test_a_neighbourhood_without_data_is_never_data_in_a_view(scenes, kind, size, x, y, side):
    box = np.array([[x, y, x + side, y + side]], np.float32)
    view = scenes[kind].crop(box, MEAN_STD, size)[0]
    step = side / size
    at = lambda start: np.floor(start + (np.arange(size) + 0.5) * step).astype(int)  # noqa: E731
    rows, cols = at(y), at(x)
    inside = np.logical_and.outer((rows >= 0) & (rows < SIDE), (cols >= 0) & (cols < SIDE))
    reach = int(2 * step) + 3  # of the view's filter and of a level's pixel
    middle = np.s_[rows.clip(0, SIDE - 1)[:, None], cols.clip(0, SIDE - 1)]
    nothing = deep_inside(~holes(), reach)[middle] & inside
    darkest = 170 / 255 * 4 - 2 - 0.02
    shown = view[:, nothing]  # continued from the data of the view, or the mean where it has none
    assert ((np.abs(shown - MEAN) < 0.02) | (shown > darkest)).all()
    data = deep_inside(holes(), reach)[middle] & inside
    assert view[:, data].min(initial=9) > darkest


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("px", [20, 64, 130, 256])
def test_thumbnails_are_grey_where_there_is_no_data_and_only_there(scenes, kind, px):
    thumbnail, scale = scenes[kind].thumbnail(px)
    at = np.floor((np.arange(px) + 0.5) / scale).astype(int)
    nothing = deep_inside(~holes(), int(2 / scale) + 3)[np.ix_(at, at)]
    assert (np.abs(thumbnail[nothing].astype(int) - NO_DATA_GREY) <= 1).all()
    data = deep_inside(holes(), int(2 / scale) + 3)[np.ix_(at, at)]
    assert (thumbnail[data] >= 169).all()
    assert nothing.any() or px == 20


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("size", [(300, 211), (257, 256), (255, 129)])
def test_levels_of_odd_sizes_stay_in_step_with_the_mask(tmp_path, external, size):
    valid = np.ones(size, bool)
    valid[:, : size[1] // 2] = False
    path = overviews(write(tmp_path / "a.tif", picture(valid)[:3], valid), external)
    patch = small_memory()
    with Scene.open(path) as scene:
        thumbnail, scale = scene.thumbnail(40)
    patch.undo()
    edge = size[1] // 2 * scale
    assert (thumbnail[:, : int(edge) - 2] == NO_DATA_GREY).all()
    assert (thumbnail[:, int(edge) + 3 :] != NO_DATA_GREY).any(-1).all()


@pytest.mark.parametrize("internal", [False, True])
def test_the_value_range_is_that_of_the_data_whatever_the_overviews_say(
    tmp_path, monkeypatch, internal
):
    monkeypatch.setattr(raster, "SAMPLE_PX", 1_000_000)  # as outside of this file
    valid = holes(1400, 1400)
    bands = np.where(valid, np.linspace(1000, 2000, 1400 * 1400).reshape(1400, 1400), 60_000)
    path = write(tmp_path / "a.tif", bands.astype(np.uint16)[None], valid, internal)
    with Scene.open(overviews(path, external=True)) as scene:
        (note,) = scene.notes
    low, high = (float(v) for v in note.split()[-1].split(".."))
    assert low == pytest.approx(1020, abs=15)
    assert high == pytest.approx(1980, abs=15)


def test_bytes_with_overviews_read_as_they_did_without_looking_for_fill(tmp_path):
    """A plain picture is read byte for byte."""
    valid = np.ones((SIDE, SIDE), bool)
    path = overviews(write(tmp_path / "a.tif", picture(valid)[:3]), False)
    patch = small_memory()
    with Scene.open(path) as scene, rasterio.open(path, overview_level=1) as level:
        found = scene._raster.read(scene._raster.levels[2], (0, 0, level.height, level.width))
        np.testing.assert_array_equal(found[0], np.moveaxis(level.read(), 0, 2))
        assert found[1] is None
        assert scene.notes == ()
    patch.undo()
