"""The CUDA kernel's body, run on the CPU: threads and a barrier in place of a block."""

import numpy as np
import pytest

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.cpp_ext.layout import device_layout, tile_columns

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def emulate(emulation):
    """(image, boxes, mean_std, size, dtype) -> views, through the kernel's body."""

    def run(image, boxes, mean_std, size, dtype="float32", columns=None):
        boxes = np.ascontiguousarray(boxes, np.float32)
        layout = device_layout(image.shape, image.strides)
        out = np.full((len(boxes), 3, size, size), 77, dtype)
        emulation(
            *(image.ctypes.data, *layout),
            *(boxes.ctypes.data, len(boxes), mean_std.ctypes.data),
            *(size, columns or tile_columns(size), out.ctypes.data, dtype == "float16"),
        )
        return out

    return run


@pytest.mark.parametrize("size", [7, 24])
def test_the_body_makes_the_cpu_kernels_views(size, emulate, scene, telling_boxes, mean_std):
    views = emulate(scene, telling_boxes, mean_std, size)
    assert np.abs(views - psc_crop(scene, telling_boxes, mean_std, size)).max() <= TOLERANCE


def test_tiles_meet_without_a_seam(emulate, scene, mean_std):
    boxes = [[3.25, 2.5, 190.75, 140.5], [-40, -40, 250, 250], [9, 9, 30, 30]]
    views = emulate(scene, boxes, mean_std, 21, columns=6)
    assert np.abs(views - psc_crop(scene, boxes, mean_std, 21)).max() <= TOLERANCE


def test_windows_wider_than_a_chunk_add_up(emulate, mean_std):
    # 2048 bytes a chunk: 1500 columns take three, and a pixel may straddle two of them.
    image = np.random.default_rng(4).integers(0, 256, (40, 1500, 3), dtype=np.uint8)
    boxes = [[0, 0, 1500, 40], [700.3, 2, 1499.9, 39], [-3000, 0, 4000, 40]]
    views = emulate(image, boxes, mean_std, 9)
    assert np.abs(views - psc_crop(image, boxes, mean_std, 9)).max() <= TOLERANCE


@pytest.mark.parametrize(
    "layout",
    [
        lambda image: image[..., ::-1],
        lambda image: np.dstack([image, image[..., :1]])[..., :3],
        lambda image: np.dstack([image, image[..., :1]])[..., 2::-1],
        lambda image: np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
        lambda image: image[::-1],
        lambda image: image[3:, 5:-4],
    ],
    ids=["BGR", "RGBA", "BGRA", "planar", "upside down", "cut-out"],
)
def test_images_are_read_where_they_lie(layout, emulate, scene, mean_std):
    image = layout(scene)
    boxes = [[10.5, 8.25, 160, 130], [-20, -20, 230, 230]]
    views = emulate(image, boxes, mean_std, 16)
    assert np.abs(views - psc_crop(image, boxes, mean_std, 16)).max() <= TOLERANCE


def test_the_body_reads_no_byte_beside_the_image(emulate, mean_std):
    # Every byte around the image is poisoned; a view that saw one would be off by far.
    inner = np.full((30, 41, 3), 9, np.uint8)
    padded = np.full((32, 43, 3), 255, np.uint8)
    padded[1:-1, 1:-1] = inner
    image = padded[1:-1, 1:-1]
    views = emulate(image, [[0, 0, 41, 30], [38, 28, 41, 30]], mean_std, 10)
    expected = (9 / 255 - mean_std[0]) / mean_std[1]
    assert np.abs(views - expected[None, :, None, None]).max() <= TOLERANCE


def test_float16_is_the_float32_view_rounded(emulate, scene, telling_boxes, mean_std):
    wide = emulate(scene, telling_boxes, mean_std, 9)
    half = emulate(scene, telling_boxes, mean_std, 9, "float16")
    assert np.array_equal(half, wide.astype(np.float16))


def test_a_bad_box_in_device_memory_spoils_its_own_view_only(emulate, scene, mean_std):
    good = [5, 5, 60, 60]
    boxes = [good, [np.nan, 0, 9, 9], [9, 0, 3, 9], [4, 4, 4, 9], [0, 0, np.inf, 9], good]
    views = emulate(scene, boxes, mean_std, 8)
    assert np.isnan(views[1:5]).all()
    assert np.array_equal(views[0], views[5])
    assert np.isfinite(views[0]).all()
