"""Fill: declared by the caller, impossible, or suspected; and each band's own value range."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import Resampling

from geomag_edge.cli.arguments import number
from geomag_edge.errors import ImageError
from geomag_edge.runtime.images import scene as scene_module
from geomag_edge.runtime.images.scene import NO_DATA_GREY, Scene

pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "error::RuntimeWarning"
)


def land(dtype, low=300, high=3300, shape=(100, 120, 3), seed=0):
    """Smooth values between two limits."""
    noise = np.random.default_rng(seed).integers(0, 255, (9, 9, shape[2]), dtype=np.uint8)
    planes = [
        np.asarray(Image.fromarray(p).resize(shape[1::-1], Image.Resampling.BICUBIC), float)
        for p in np.moveaxis(noise, -1, 0)
    ]
    values = np.stack(planes, -1) / 255 * (high - low) + low
    return values.astype(dtype)


def as_file(path, values, **profile):
    with rasterio.open(
        path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1],
        count=values.shape[2], dtype=values.dtype, photometric="MINISBLACK", **profile,
    ) as ds:  # fmt: skip
        ds.write(np.moveaxis(values, -1, 0))
    return path


def opened(kind, folder, values, **options):
    """The picture u8[h,w,3] and the notes, from an array or from a file read whole."""
    source = values if kind == "array" else as_file(folder / "a.tif", values)
    with Scene.open(source, **options) as scene:
        return scene.thumbnail(10_000)[0], scene.notes


both_kinds = pytest.mark.parametrize("kind", ["array", "file"])


def without(values, where, value):
    filled = values.copy()
    filled[where] = value
    return filled


TOP, STRAY = np.s_[:40], np.s_[::10, ::4]  # two fifths in one piece; one pixel in 40, everywhere
EXTREMES = [3.4028235e38, -3.4028235e38, 9.96921e36, 1e20, 9.999e20, -1e30, 1.7e38]


@both_kinds
@pytest.mark.parametrize(("where", "share"), [(TOP, 40.0), (STRAY, 2.5)], ids=["piece", "stray"])
@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_beyond_all_measurement_are_no_data(tmp_path, kind, where, share, value, dtype):
    values = land(dtype, 0.01, 0.4)
    picture, notes = opened(kind, tmp_path, without(values, where, value))
    assert (picture[where] == NO_DATA_GREY).all()
    assert picture[41:].std() > 50
    assert notes[0].startswith(f"{share}% of the pixels hold values such as ")


@both_kinds
def test_the_greatest_double_is_no_data(tmp_path, kind):
    values = without(land("float64", 0.01, 0.4), TOP, np.finfo(float).max)
    assert (opened(kind, tmp_path, values)[0][TOP] == NO_DATA_GREY).all()


SUSPECTS = [
    ("float32", 0.01, 0.4, -9999), ("float32", -25, 0, -32768), ("uint16", 300, 3300, 65535),
    ("uint16", 300, 3300, 0), ("uint16", 5900, 9000, 0), ("int16", -200, 3000, -32768),
    ("int16", 100, 3000, -9999), ("int32", 0, 900, -2147483648),
]  # fmt: skip


@both_kinds
@pytest.mark.parametrize(("dtype", "low", "high", "value"), SUSPECTS)
def test_a_large_piece_of_one_value_at_the_end_is_left_out_of_the_range(
    tmp_path, kind, dtype, low, high, value
):
    values = land(dtype, low, high)
    picture, notes = opened(kind, tmp_path, without(values, TOP, value))
    np.testing.assert_array_equal(picture[40:], opened(kind, tmp_path, values[40:])[0])
    note = notes[-1]
    assert f"40.0% of the pixels are exactly {value}, which looks like undeclared fill" in note
    option = note.partition("; ")[2].split()[0]
    assert option == f"--nodata={value}"
    declared, notes = opened(kind, tmp_path, without(values, TOP, value), nodata=value)
    assert (declared[TOP] == NO_DATA_GREY).all()
    np.testing.assert_array_equal(declared[40:], picture[40:])
    assert not any("undeclared" in n for n in notes)


@pytest.mark.parametrize(("dtype", "low", "high", "value"), SUSPECTS[:3] + SUSPECTS[4:])
def test_a_few_stray_pixels_far_from_all_others_are_left_out_of_the_range(dtype, low, high, value):
    values = without(land(dtype, low, high), STRAY, value)
    picture, notes = opened("array", None, values)
    assert picture[5].std() > 30
    assert "2.5% of the pixels are exactly" in notes[-1]


def test_a_narrow_border_of_one_value_is_suspected():
    values = np.pad(land("uint16"), ((2, 2), (2, 2), (0, 0)))
    picture, notes = opened("array", None, values)
    assert "of the pixels are exactly 0, which looks like undeclared fill" in notes[-1]
    np.testing.assert_array_equal(picture[2:-2, 2:-2], opened("array", None, land("uint16"))[0])


def test_two_kinds_of_fill_are_both_found():
    values = land("int16")
    values[:20], values[20:40] = -32768, -9999
    picture, notes = opened("array", None, values)
    assert ["-32768" in notes[-2], "-9999" in notes[-1]] == [True, True]
    np.testing.assert_array_equal(picture[40:], opened("array", None, land("int16")[40:])[0])


CLASSES = np.random.default_rng(1).integers(0, 9, (60, 60, 1))
PLAIN = {
    "a black sea of bytes": without(land("uint8", 20, 230), TOP, 0),
    "white roofs of bytes": without(land("uint8", 20, 230), TOP, 255),
    "classes": np.where(CLASSES > 4, CLASSES, 0).astype(np.uint16),
    "one value": np.full((50, 50, 3), 700, np.uint16),
    "two values": np.where(CLASSES > 4, 65535, 0).astype(np.uint16),
    "smooth values": land("float32", 0, 1),
}


@both_kinds
@pytest.mark.parametrize("name", PLAIN)
def test_what_is_no_fill_is_not_taken_for_it(tmp_path, kind, name):
    values = PLAIN[name]
    picture, notes = opened(kind, tmp_path, values)
    assert not any("fill" in note for note in notes)
    if values.dtype == np.uint8:
        np.testing.assert_array_equal(picture, values)
    else:
        low, high = np.percentile(values[..., 0], [2, 98])
        shown = np.clip((values[..., 0] - low) / max(high - low, 1e-9) * 255, 0, 255)
        assert high == low or np.abs(picture[..., 0] - shown).max() <= 0.51


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99), fill=st.sampled_from([-9999.0, -32768.0, 1e20, -3.4e38, 0.0]),
    rows=st.integers(0, 60), low=st.floats(1, 1e4), spread=st.floats(0.1, 1e4),
)  # fmt: skip
def test_fill_never_costs_the_rest_its_contrast(seed, fill, rows, low, spread):
    values = land("float32", low, low + spread, (80, 60, 1), seed)
    picture, _ = opened("array", None, without(values, np.s_[:rows], fill))
    alone, _ = opened("array", None, values[rows:])
    # A few rows of zeros close to the data may pass for data.
    close = fill == 0 and rows <= 8
    assert picture[rows:].std() > alone.std() * (0.3 if close else 0.9)


# Declared by the caller


@both_kinds
def test_a_pixel_is_without_data_where_all_bands_hold_the_given_value(tmp_path, kind):
    values = land("uint8", 20, 230)
    values[3, 4] = (7, 9, 7)
    values[TOP] = 7
    values[5, 6] = (7, 8, 7)
    picture, notes = opened(kind, tmp_path, values, nodata=7)
    assert picture[5, 6].tolist() == [7, 8, 7]
    grey = (picture == NO_DATA_GREY).all(-1)
    assert grey.sum() == 40 * 120 - 1
    assert notes == ()


@both_kinds
@pytest.mark.parametrize("nodata", [-9999, 0.5, 1e300, float("nan"), float("inf")])
def test_a_value_that_the_type_cannot_hold_marks_nothing(tmp_path, kind, nodata):
    values = land("uint8", 20, 230)
    np.testing.assert_array_equal(opened(kind, tmp_path, values, nodata=nodata)[0], values)


def test_a_given_value_counts_in_windows_and_for_an_image_of_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    path = as_file(tmp_path / "a.tif", without(land("int16"), TOP, -1))
    with Scene.open(path, nodata=-1) as scene:
        assert (scene.thumbnail(1000)[0][:39] == NO_DATA_GREY).all()
    empty = as_file(tmp_path / "b.tif", np.full((20, 20, 3), 5, np.uint8))
    with pytest.raises(ImageError, match="has no valid pixel"):
        Scene.open(empty, nodata=5)
    with pytest.raises(ImageError, match="nodata 'x' is not usable: give one number"):
        Scene.open(empty, nodata="x")


@pytest.mark.parametrize("way", [Resampling.average, Resampling.cubic, Resampling.gauss])
@pytest.mark.parametrize("nodata", [-9999, -12345.678, 0, 3.4028235e38])
def test_a_given_value_counts_in_overviews_of_any_kind(tmp_path, monkeypatch, way, nodata):
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    values = without(land("float32", 1, 2, (320, 320, 1)), np.s_[:160], np.float32(nodata))
    path = as_file(tmp_path / "a.tif", values)
    with rasterio.open(path, "r+") as ds:
        ds.build_overviews([2, 4, 8], way)
    with Scene.open(path, nodata=nodata) as scene:
        for px in (40, 80, 160):
            picture = scene.thumbnail(px)[0]
            assert (picture[: px // 2 - 6] == NO_DATA_GREY).all()
            assert (picture[px // 2 + 6 :] != NO_DATA_GREY).any()


def test_nodata_of_one_band_alone_does_not_count_for_its_range(tmp_path):
    values = land("int16")
    edge = without(values, np.s_[:10, :, 0], -9999)  # bands that do not end at the same row
    path = as_file(tmp_path / "a.tif", edge, nodata=-9999)
    with Scene.open(path) as scene:
        picture = scene.thumbnail(1000)[0]
    expected = opened("array", None, values[10:])[0]
    assert np.abs(picture[10:, :, 0].astype(int) - expected[..., 0]).max() < 3


# Ranges


@both_kinds
def test_each_band_has_its_own_range(tmp_path, kind):
    values = land("uint16") + np.array([0, 5000, 20000], np.uint16)
    picture, notes = opened(kind, tmp_path, values)
    for band in range(3):
        low, high = np.percentile(values[..., band], [2, 98])
        expected = np.clip((values[..., band] - low) / (high - low) * 255, 0, 255)
        assert np.abs(picture[..., band] - expected).max() <= 0.51
    (note,) = notes
    assert note.startswith("scaled uint16 by 2-98 percentiles of each band ")
    assert note.count("..") == 3


@both_kinds
@pytest.mark.parametrize("form", [(0, 100, 0, 200, 100, 200), ((0, 100), (0, 200), (100, 200))])
def test_each_colour_can_be_given_its_range(tmp_path, kind, form):
    values = np.full((4, 5, 3), 150, np.float32)
    picture, notes = opened(kind, tmp_path, values, value_range=form)
    assert picture[0, 0].tolist() == [255, 191, 128]
    assert notes == ("values 0..100, 0..200, 100..200 scaled to 0..255",)


def test_a_grey_band_with_three_ranges_is_coloured_by_them():
    values = np.full((4, 5), 150, np.float32)
    picture, _ = opened("array", None, values, value_range=(0, 100, 0, 200, 100, 200))
    assert picture[0, 0].tolist() == [255, 191, 128]


@both_kinds
@pytest.mark.parametrize(
    ("dtype", "value", "other"),
    [
        ("int64", 2**62, 100), ("uint64", 2**63, 7), ("int64", -(2**62), 3), ("int64", 10**17, 0),
        ("float64", 1e17, 0), ("float32", 1e10, 0), ("float32", -1e19, 0), ("float32", 2e7, 0),
    ],
)  # fmt: skip
def test_a_picture_whose_range_is_below_its_types_step_is_grey(tmp_path, kind, dtype, value, other):
    values = np.full((8, 8, 1), value, dtype)
    values[:, 4:] += np.array(other, dtype)
    shown, _ = opened(kind, tmp_path, values)
    assert (abs(shown.astype(int) - 128) <= 20).all()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("float32", 1e10, 1e10 + 8192), ("float32", 0, 1e-39), ("float64", 1e17, 1e17 + 1024)],
)
def test_a_narrow_range_far_from_zero_keeps_its_contrast(dtype, low, high):
    values = np.array([low, high], dtype).repeat(32).reshape(8, 8, 1)
    shown, _ = opened("array", None, values)
    assert (shown.min(), shown.max()) == (0, 255)


@both_kinds
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint64", 2**64 - 1), ("int64", -(2**63)), ("int64", 2**53 + 1), ("int64", -(2**60) - 7)],
)
def test_a_given_integer_keeps_all_its_digits(tmp_path, kind, dtype, nodata):
    values = np.full((8, 8, 1), nodata, dtype)
    values[:4] = nodata - 1 if nodata > 0 else nodata + 1  # the same number as a float
    picture, _ = opened(kind, tmp_path, values, nodata=nodata)
    assert (picture[4:] == NO_DATA_GREY).all()
    assert (picture[:4] != NO_DATA_GREY).all()
    assert number(str(nodata)) == nodata


@pytest.mark.parametrize("nodata", ["x", 10**400, [1, 2]])
def test_a_nodata_that_is_no_number_is_one_line(nodata):
    with pytest.raises(ImageError, match="give one number"):
        Scene.open(land("uint8"), nodata=nodata)
