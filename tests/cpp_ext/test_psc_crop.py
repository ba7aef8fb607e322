"""What PscCrop computes: Pillow's windows, exactly, wherever the box lies."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge.cpp_ext import crop, psc_crop
from geomag_edge.cpp_ext.native import cpu_instruction_set, cpu_library, run_cpu
from geomag_edge.cpp_ext.twin import axis_weights, psc_crop_numpy

TOLERANCE = 1e-4  # in units of the standard deviation
NO_KERNEL = "no compiled kernel in this install"


def float32s(low, high):
    return st.floats(low, high, width=32)


@st.composite
def boxes_inside(draw, width=211, height=149):
    """A float box inside the image, from far below a pixel up to all of it."""
    x0 = draw(float32s(0, width - 1))
    y0 = draw(float32s(0, height - 1))
    x1 = draw(float32s(x0, width).filter(lambda x1: x1 - x0 > 2**-7))
    y1 = draw(float32s(y0, height).filter(lambda y1: y1 - y0 > 2**-7))
    return np.array([[x0, y0, x1, y1]], np.float32)


@st.composite
def boxes_anywhere(draw, reach=500, grid=64):
    """A box on a fine grid that may stick out of the image or miss it."""
    coordinate = st.integers(-reach * grid, reach * grid)
    x0, y0 = draw(coordinate), draw(coordinate)
    side = st.integers(1, 2 * reach * grid)
    corners = np.array([[x0, y0, x0 + draw(side), y0 + draw(side)]])
    return (corners / grid).astype(np.float32)


@given(box=boxes_inside(), size=st.integers(1, 70))
@settings(max_examples=150)
def test_a_window_inside_the_image_is_what_pillow_makes(box, size, scene, mean_std, from_pillow):
    views = psc_crop(scene, box, mean_std, size)
    assert np.abs(views - from_pillow(scene, box, size)).max() <= TOLERANCE


@given(box=boxes_anywhere(), size=st.integers(1, 48))
@settings(max_examples=80)
def test_a_window_that_sticks_out_renormalises_and_is_zero_outside(
    box, size, scene, mean_std, from_pillow
):
    views = psc_crop(scene, box, mean_std, size)
    assert np.abs(views - from_pillow(scene, box, size)).max() <= TOLERANCE


@given(box=boxes_anywhere(), size=st.integers(1, 48))
@settings(max_examples=60)
def test_the_kernel_and_its_numpy_twin_agree(box, size, scene, mean_std):
    views = psc_crop(scene, box, mean_std, size)
    assert np.abs(views - psc_crop_numpy(scene, box, mean_std, size)).max() <= 1e-5


@pytest.mark.parametrize("size", [1, 33, 64])
def test_every_telling_position_matches_the_twin(size, scene, mean_std, telling_boxes):
    views = psc_crop(scene, telling_boxes, mean_std, size)
    assert np.abs(views - psc_crop_numpy(scene, telling_boxes, mean_std, size)).max() <= 1e-5


def test_the_whole_image_at_its_own_size_is_only_normalised(mean_std):
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    view = psc_crop(image, [[0, 0, 40, 40]], mean_std, 40)[0]
    expected = (image.transpose(2, 0, 1) / 255 - mean_std[0][:, None, None]) / mean_std[1][
        :, None, None
    ]
    assert np.abs(view - expected).max() <= 1e-5


def test_a_constant_image_stays_constant_under_every_filter(mean_std):
    image = np.full((3000, 50, 3), 201, np.uint8)
    boxes = [[0, 0, 50, 3000], [0.3, 0.7, 50, 2999.1], [10, 100, 10.5, 100.25]]
    views = psc_crop(image, boxes, mean_std, 3)
    expected = (201 / 255 - mean_std[0]) / mean_std[1]
    assert np.abs(views - expected[None, :, None, None]).max() <= 1e-5


def test_the_padded_global_view_is_zero_beside_the_image(scene, mean_std):
    height, width, _ = scene.shape
    margin = (width - height) / 2
    view = psc_crop(scene, [[0, -margin, width, height + margin]], mean_std, width)[0]
    blank = int(margin)
    assert not view[:, :blank].any()
    assert not view[:, -blank:].any()
    assert view[:, blank:-blank].any(axis=0).all()


def test_windows_do_not_influence_each_other(scene, mean_std, telling_boxes):
    together = psc_crop(scene, telling_boxes, mean_std, 40)
    alone = [psc_crop(scene, box[None], mean_std, 40)[0] for box in telling_boxes]
    assert np.array_equal(together, np.stack(alone))


def test_no_boxes_give_no_views(scene, mean_std):
    views = psc_crop(scene, np.zeros((0, 4), np.float32), mean_std, 17)
    assert views.shape == (0, 3, 17, 17)
    assert views.dtype == np.float32


def test_float16_is_the_float32_result_rounded(scene, mean_std, telling_boxes):
    wide = psc_crop(scene, telling_boxes, mean_std, 50)
    half = psc_crop(scene, telling_boxes, mean_std, 50, dtype="float16")
    assert half.dtype == np.float16
    assert np.array_equal(half, wide.astype(np.float16))


def test_float16_rounds_as_numpy_at_both_ends_of_its_range(scene):
    # A tiny deviation overflows, a huge one gives subnormal halves.
    for deviation in (1e-6, 3e-5, 1e3, 3e6, 1e7):
        mean_std = np.array([[0.5] * 3, [deviation] * 3], np.float32)
        wide = psc_crop(scene, [[3, 4, 130, 140]], mean_std, 64)
        half = psc_crop(scene, [[3, 4, 130, 140]], mean_std, 64, dtype=np.float16)
        with np.errstate(over="ignore"):
            assert np.array_equal(half, wide.astype(np.float16))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_result_does_not_depend_on_the_number_of_threads(dtype, scene, mean_std, telling_boxes):
    one = psc_crop(scene, telling_boxes, mean_std, 96, dtype, threads=1)
    for threads in (2, 3, 7, 16):
        many = psc_crop(scene, telling_boxes, mean_std, 96, dtype, threads=threads)
        assert np.array_equal(one, many)


@pytest.mark.skipif(cpu_library() is None, reason=NO_KERNEL)
@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees_with_the_twin(name, scene, mean_std, telling_boxes):
    best = cpu_instruction_set()
    order = ["baseline", "avx2", "avx512"]
    if order.index(name) > order.index(best):
        pytest.skip(f"this CPU has no {name}")
    for image in (scene, np.dstack([scene, scene])[..., :3], scene[::-1, ::3]):
        out = np.empty((len(telling_boxes), 3, 60, 60), np.float32)
        run_cpu(cpu_library(), image, telling_boxes, mean_std, out, 2, name)
        expected = psc_crop_numpy(image, telling_boxes, mean_std, 60)
        assert np.abs(out - expected).max() <= 1e-5


def test_filters_wider_than_the_scratch_still_agree(mean_std):
    # One output pixel reads 40000 columns: more than the kernel's row buffers hold.
    row = np.random.default_rng(3).integers(0, 256, (3, 40_000, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 40_000, 3], [-100_000, -3, 150_000, 5]], np.float32)
    for size in (1, 2, 5):
        views = psc_crop(row, boxes, mean_std, size)
        assert np.abs(views - psc_crop_numpy(row, boxes, mean_std, size)).max() <= 1e-4


def test_without_a_compiled_kernel_the_twin_runs_and_warns_once(
    monkeypatch, scene, mean_std, telling_boxes
):
    expected = psc_crop(scene, telling_boxes, mean_std, 20)
    monkeypatch.setattr(crop, "cpu_library", lambda: None)
    crop._warn_about_the_twin.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"numpy form.*reinstall") as warned:
        views = [psc_crop(scene, telling_boxes, mean_std, 20) for _ in range(2)]
    assert len(warned) == 1
    assert np.abs(views - expected[None]).max() <= 1e-5


def test_the_twins_weights_sum_to_one_inside_and_zero_outside():
    weights = axis_weights(np.float32(-10), np.float32(40), 25, 30)
    sums = weights.sum(axis=1)
    centres = -10 + (np.arange(25) + 0.5) * 2
    assert np.allclose(sums, (centres >= 0) & (centres < 30))


def test_importing_the_package_needs_neither_torch_nor_onnx():
    code = (
        "import sys, geomag_edge.cpp_ext\n"
        "heavy = {'torch', 'onnx', 'onnxscript', 'cuda', 'tensorrt'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
