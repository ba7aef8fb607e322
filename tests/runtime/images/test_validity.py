"""Which pixels hold data: the same from memory and from a file read by windows, and what follows
for views, boxes and masks."""

import copy
import pickle
import threading

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp, Resampling

from geomag_edge.errors import ImageError
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.images import scene as scene_module
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.images.validity import BLOCK_PX, Validity

SHAPE = (700, 900)


def collar(height=SHAPE[0], width=SHAPE[1], hole=True):
    """A tilted square of data in an image, with a hole in it and an island beside it."""
    y, x = np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2 + 0.5
    valid = abs(0.9 * x + 0.4 * y) + abs(0.9 * y - 0.4 * x) < 0.45 * min(height, width)
    if hole:
        valid[height // 2 : height // 2 + 40, width // 2 : width // 2 + 25] = False
        valid[3:9, width - 60 : width - 41] = True
    return valid


VALID = collar()
PIXELS = np.random.default_rng(0).integers(1, 256, (*SHAPE, 3)).astype(np.uint8)


RGB = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]


def tiff(path, bands, valid=None, overviews=(), interp=None, **options):
    """Bands [H,W,C] as a tiled GeoTIFF; `valid` becomes a mask beside or inside it."""
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[0], width=bands.shape[1],
        count=bands.shape[2], dtype=bands.dtype, tiled=True, blockxsize=128, blockysize=128,
        **options,
    ) as out:  # fmt: skip
        out.write(np.moveaxis(bands, -1, 0))
        if bands.shape[2] >= 4:
            out.colorinterp = interp or [*RGB, ColorInterp.alpha]
        if valid is not None:
            out.write_mask(valid)
    if overviews:
        with rasterio.open(path, "r+") as out:
            out.build_overviews(list(overviews), Resampling.nearest)
    return path


def holed(value, dtype=np.uint8):
    return np.where(VALID[..., None], PIXELS, value).astype(dtype)


def thirds():
    """The pixels without data in three parts, each for another way of saying so."""
    part = np.random.default_rng(2).integers(0, 3, SHAPE)
    return [VALID | (part != i) for i in range(3)]


def by_all_means(path, alpha, overviews=()):
    """A third each is invalid by a mask, by nodata and by alpha (or by the mask too)."""
    mask, data, opaque = thirds()
    bands = [np.where(data[..., None], PIXELS, 0)]
    if alpha:
        bands.append(opaque * np.uint8(255))
    bands = np.dstack(bands).astype(np.uint8)
    return tiff(path, bands, mask if alpha else mask & opaque, overviews, nodata=0)


def nodata_and_alpha(path):
    opaque, data = thirds()[0], thirds()[1] & thirds()[2]
    bands = np.dstack([np.where(data[..., None], PIXELS, 0), opaque * np.uint8(255)])
    return tiff(path, bands.astype(np.uint8), nodata=0)


FILES = {
    "nodata": lambda p: tiff(p, holed(0), nodata=0),
    "a mask beside it": lambda p: tiff(p, PIXELS, VALID),
    "alpha": lambda p: tiff(p, np.dstack([PIXELS, VALID * np.uint8(255)])),
    "NaN": lambda p: tiff(p, holed(np.nan, np.float32)),
    "nodata, with overviews": lambda p: tiff(p, holed(0), overviews=(2, 4), nodata=0),
    "alpha, a band beside it": lambda p: tiff(
        p, np.dstack([PIXELS, PIXELS[..., 0], VALID * np.uint8(255)]), overviews=(2, 4),
        interp=[*RGB, ColorInterp.undefined, ColorInterp.alpha],
    ),
    "alpha first": lambda p: tiff(
        p, np.dstack([VALID * np.uint8(255), PIXELS]), interp=[ColorInterp.alpha, *RGB]
    ),
    "alpha of floats": lambda p: tiff(p, np.dstack([PIXELS, VALID]).astype(np.float32)),
    "alpha of signed integers": lambda p: tiff(p, np.dstack([PIXELS, VALID]).astype(np.int16)),
    "mask and nodata": lambda p: by_all_means(p, alpha=False),
    "mask, nodata and alpha, with overviews": lambda p: by_all_means(p, True, (2, 4)),
    "nodata and alpha": nodata_and_alpha,
}  # fmt: skip
ARRAYS = {
    "masked array": lambda: np.ma.MaskedArray(PIXELS, np.repeat(~VALID[..., None], 3, 2)),
    "array with NaN": lambda: holed(np.nan, np.float64),
    "Pillow image with alpha": lambda: Image.fromarray(
        np.dstack([PIXELS, VALID * np.uint8(255)]), "RGBA"
    ),
}


@pytest.fixture(scope="module", params=[*FILES, *ARRAYS])
def source(request, tmp_path_factory):
    if request.param in ARRAYS:
        return ARRAYS[request.param]()
    return FILES[request.param](tmp_path_factory.mktemp("images") / "a.tif")


@pytest.fixture
def by_windows(monkeypatch):
    """Every file is too large for memory, and its coarse look is coarse."""
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_PX", 0)
    monkeypatch.setattr(scene_module, "VALIDITY_PX", 200)


def held(validity, row0, col0, row1, col1):
    part = validity.window(row0, col0, row1, col1)
    return np.ones((row1 - row0, col1 - col0), bool) if part is None else part


def test_every_window_says_which_pixels_hold_data(source, by_windows):
    with Scene.open(source) as scene:
        validity = scene.validity
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(held(validity, 0, 0, *SHAPE), VALID)
    for _ in range(20):
        r0, r1 = sorted(rng.integers(0, SHAPE[0] + 1, 2))
        c0, c1 = sorted(rng.integers(0, SHAPE[1] + 1, 2))
        np.testing.assert_array_equal(held(validity, r0, c0, r1, c1), VALID[r0:r1, c0:c1])


def test_shares_of_patches_are_right_to_a_few_hundredths_however_they_are_read(source, by_windows):
    exact = Validity(SHAPE, VALID)
    rng = np.random.default_rng(2)
    with Scene.open(source) as scene:
        for side in (40, 300, 900):
            x0, y0 = rng.integers(-50, 600, 2)
            box = np.array([x0, y0, x0 + side, y0 + side], np.float32)
            got, expected = (v.shares(box, 8) for v in (scene.validity, exact))
            if expected is None:
                assert got is None or (got[got > 0] == 1).all()
                continue
            assert np.abs((1 if got is None else got) - expected).mean() < 0.06


def test_a_box_is_cut_to_the_data_in_it(source, by_windows):
    with Scene.open(source) as scene:
        rng = np.random.default_rng(3)
        for _ in range(40):
            x0, y0 = rng.integers(-30, [SHAPE[1], SHAPE[0]])
            x1, y1 = np.array([x0, y0]) + rng.integers(1, 400, 2)
            inside = VALID[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
            got = scene.validity.box_of_data([x0, y0, x1, y1])
            assert scene.validity.has_data(np.array([[x0, y0, x1, y1]], np.float32)) == inside.any()
            if not inside.any():
                assert got is None
                continue
            rows, cols = np.nonzero(inside)
            expected = np.array([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
            np.testing.assert_array_equal(got, expected + np.maximum([x0, y0, x0, y0], 0))


def random_mask(validity, shape=SHAPE, seed=0, extent=900):
    rng = np.random.default_rng(seed)
    boxes = [[-50, -50, extent, extent], [300, 200, 620, 520], [390.5, 300.25, 490.5, 400.25]]
    logits = rng.normal(size=(3, 9, 9)) + 1
    return Mask(shape, boxes, logits, np.ones(3), 0.5, validity)


def test_a_mask_holds_exactly_its_pixels_that_hold_data(source, by_windows):
    with Scene.open(source) as scene:
        mask = random_mask(scene.validity)
    expected = np.asarray(random_mask(None)) & VALID  # the scene is closed
    np.testing.assert_array_equal(np.asarray(mask), expected)
    rows, cols = np.nonzero(expected)
    assert mask.area_px == expected.sum()
    assert mask.bbox == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    y, x = np.arange(3, 700, 7.3), np.arange(1, 900, 5.1)
    seen = mask.at(y, x)
    data = VALID[np.ix_(y.astype(int), x.astype(int))]
    np.testing.assert_array_equal(seen, random_mask(None).at(y, x) & data)
    np.testing.assert_array_equal(mask.logits_at(y, x) > 0, seen)
    painted = np.zeros(SHAPE, bool)
    for r0, c0, r1, c1 in mask.blocks():
        painted[r0:r1, c0:c1] = mask.window(r0, c0, r1, c1)
    np.testing.assert_array_equal(painted, expected)


def test_a_mask_on_no_data_is_empty():
    corner = np.zeros(SHAPE, bool)
    corner[0, 0] = True
    mask = Mask(
        SHAPE, [[100, 100, 800, 600]], np.ones((1, 4, 4)), np.ones(1), 0.9, Validity(SHAPE, corner)
    )
    assert (mask.area_px, mask.bbox) == (0, None)
    assert not np.asarray(mask).any()


def test_a_mask_travels_to_another_process_with_its_pixels(source, by_windows):
    with Scene.open(source) as scene:
        mask = random_mask(scene.validity)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mask)), np.asarray(mask))


def test_masks_are_looked_at_from_several_threads_while_their_scene_is_read(tmp_path, by_windows):
    with Scene.open(FILES["nodata"](tmp_path / "a.tif")) as scene:
        masks, found = [random_mask(scene.validity, seed=i) for i in range(4)], {}
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: np.asarray(masks[i])}))
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        box = np.array([[0, 0, 700, 700]], np.float32)
        mean_std = np.array([[0.5] * 3, [0.25] * 3], np.float32)
        views = [scene.crop(box, mean_std, 32) for _ in range(5)]
        for thread in threads:
            thread.join()
    for i in range(4):
        np.testing.assert_array_equal(found[i], np.asarray(random_mask(None, seed=i)) & VALID)
    np.testing.assert_array_equal(views[0], views[4])


def test_a_mask_outlives_its_file_while_it_has_it_open(tmp_path, by_windows):
    path = FILES["nodata"](tmp_path / "a.tif")
    with Scene.open(path) as scene:
        mask = random_mask(scene.validity)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(mask), np.asarray(random_mask(None)) & VALID)


def test_a_mask_whose_file_is_gone_says_so_in_another_process(tmp_path, by_windows):
    path = FILES["nodata"](tmp_path / "a.tif")
    with Scene.open(path) as scene:
        stored = pickle.dumps(random_mask(scene.validity))
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.tif"):
        pickle.loads(stored)


def test_a_small_mask_in_a_large_file_reads_only_what_it_lies_on(tmp_path, by_windows):
    path = tmp_path / "big.tif"
    bands = np.zeros((6 * BLOCK_PX, 6 * BLOCK_PX, 1), np.uint8)
    bands[: 3 * BLOCK_PX] = 7
    with Scene.open(tiff(path, bands, nodata=0)) as scene:
        mask = Mask(
            bands.shape[:2], [[600, 1500, 700, 1600]], np.ones((1, 4, 4)), [1.0], 1, scene.validity
        )
        read = []
        raster = scene.validity._raster
        real = raster.read
        raster.read = lambda level, window, factor=1: read.append(window) or real(level, window)
        assert mask.area_px == 100 * (3 * BLOCK_PX - 1500)
        assert len(read) == 2


def test_an_image_in_which_all_holds_data_has_no_validity(tmp_path, by_windows):
    assert Scene.open(PIXELS).validity is None
    assert Scene.open(tiff(tmp_path / "a.tif", PIXELS)).validity is None


def test_a_file_that_could_have_holes_and_has_none_answers_as_if_it_could_not(tmp_path, by_windows):
    with Scene.open(tiff(tmp_path / "a.tif", PIXELS, nodata=0)) as scene:
        validity = scene.validity
        assert validity.shares(np.array([0, 0, 900, 900], np.float32), 8) is None
        assert validity.box_of_data([3.5, 4.25, 100, 90]) == [3.5, 4.25, 100, 90]
    np.testing.assert_array_equal(random_mask(validity), np.asarray(random_mask(None)))


@settings(max_examples=40)
@given(st.integers(1, 1200), st.integers(1, 1200), st.integers(0, 10**6))
def test_bits_of_any_size_come_back_as_they_were(height, width, seed):
    rng = np.random.default_rng(seed)
    valid = rng.random((height, width)) < rng.choice([0, 0.001, 0.5, 0.999, 1])
    validity = copy.deepcopy(Validity(valid.shape, valid))
    np.testing.assert_array_equal(held(validity, 0, 0, height, width), valid)
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    np.testing.assert_array_equal(validity.at(y, x), valid)
    inside = rng.random((height, width)) < 0.5
    expected = inside & valid
    validity.clear(inside, y, x)
    np.testing.assert_array_equal(inside, expected)


def test_the_same_pixels_hold_data_in_memory(source):
    with Scene.open(source) as scene:
        np.testing.assert_array_equal(held(scene.validity, 0, 0, *SHAPE), VALID)


@pytest.mark.parametrize("where", [np.s_[5:8, 5:8], np.s_[:, 9::16]])
def test_data_that_the_overviews_miss_is_data(tmp_path, monkeypatch, where):
    monkeypatch.setattr(scene_module, "WHOLE_IMAGE_WITH_OVERVIEWS_PX", 0)
    monkeypatch.setattr(scene_module, "VALIDITY_PX", 40)
    values = np.zeros((704, 896, 3), np.uint8)
    values[where] = 200
    path = tiff(tmp_path / "a.tif", values, overviews=(16, 32), nodata=0)
    with Scene.open(path) as scene:
        assert scene.validity.box_of_data([0, 0, 896, 704]) is not None
    path = tiff(tmp_path / "b.tif", values * 0, overviews=(16, 32), nodata=0)
    with pytest.raises(ImageError, match="no valid pixel"):
        Scene.open(path)
