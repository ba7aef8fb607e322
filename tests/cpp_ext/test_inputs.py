"""What PscCrop accepts without a copy, and what it refuses with one clear line."""

import os
import subprocess
import sys

import numpy as np
import pytest

from geomag_edge.cpp_ext import psc_crop
from geomag_edge.cpp_ext.native import cpu_library
from geomag_edge.errors import BoxError, ImageError, InputError

NAN, INF = float("nan"), float("inf")


def planar(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)


def with_alpha(image):
    return np.dstack([image, image[..., :1]])[..., :3]


def after_alpha(image):
    return np.dstack([image[..., :1], image])[..., 1:]


LAYOUTS = {
    "flipped": lambda image: image[::-1, ::-1],
    "every third column": lambda image: image[:, ::3],
    "BGR": lambda image: image[..., ::-1],
    "RGBA": with_alpha,
    "ARGB": after_alpha,
    "ABGR": lambda image: after_alpha(image)[..., ::-1],
    "planar": planar,
    "planar, transposed": lambda image: planar(image).transpose(1, 0, 2),
    "grey, repeated": lambda image: np.broadcast_to(image[..., :1], image.shape),
    "one row, repeated": lambda image: np.broadcast_to(image[:1], image.shape),
    "Fortran order": np.asfortranarray,
    "six channels, every second": lambda image: np.repeat(image, 2, axis=2)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_images_give_the_views_of_their_contiguous_copies(
    layout, scene, mean_std, telling_boxes
):
    image = LAYOUTS[layout](scene)
    views = psc_crop(image, telling_boxes, mean_std, 50)
    copied = psc_crop(np.ascontiguousarray(image), telling_boxes, mean_std, 50)
    assert np.abs(views - copied).max() <= 1e-6


def test_read_only_images_are_read(scene, mean_std, telling_boxes):
    image = scene.copy()
    image.flags.writeable = False
    expected = psc_crop(scene, telling_boxes, mean_std, 30)
    assert np.array_equal(psc_crop(image, telling_boxes, mean_std, 30), expected)


def test_a_mapped_file_is_read_to_its_last_byte_and_no_further(tmp_path, mean_std, telling_boxes):
    # 4096 bytes a row end the file on a page's end: one byte more would be a bus error.
    image = np.random.default_rng(5).integers(0, 256, (12, 1024, 4), dtype=np.uint8)
    path = tmp_path / "scene.bin"
    image.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=image.shape)
    boxes = np.array([[0, 0, 1024, 12], [1000.5, 3.25, 1024, 12]], np.float32)
    for channels in (slice(0, 3), slice(1, 4), slice(3, 0, -1)):
        views = psc_crop(mapped[..., channels], boxes, mean_std, 31)
        assert np.array_equal(views, psc_crop(image[..., channels], boxes, mean_std, 31))


def test_the_image_is_never_changed(scene, mean_std, telling_boxes):
    image = scene.copy()
    psc_crop(image, telling_boxes, mean_std, 30)
    assert np.array_equal(image, scene)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
@pytest.mark.skipif(cpu_library() is None, reason="no compiled kernel in this install")
@pytest.mark.parametrize("pixel", [3, 4, 5])
def test_scratch_stays_below_one_mib_however_large_the_image(pixel):
    # malloc maps every block apart and gives it back, so that each crop shows its full peak; other
    # growth of the process can only add to it, so the least of three is the crop's own.
    settings = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_SCRATCH, str(pixel)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks_kib = [int(word) for word in done.stdout.split()]
    assert 100 < min(peaks_kib) <= 1024


MEASURE_SCRATCH = """
import sys
import numpy as np
from geomag_edge.cpp_ext import psc_crop

# 60000 x 30000 pixels that share one row of memory.
row = np.random.default_rng(2).integers(0, 256, (1, 60_000, int(sys.argv[1])), dtype=np.uint8)
image = np.broadcast_to(row, (30_000, *row.shape[1:]))[..., :3]
boxes = [[0, 0, 60_000, 400], [0.5, 2, 60_000, 30], [0, 0, 9000, 64]]
mean_std = [[0.5] * 3, [0.2] * 3]


def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


psc_crop(image, [[5, 5, 50, 50]], mean_std, 8, threads=1)
for _ in range(3):
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = peak_kib()
    for size in (2, 8, 64):
        psc_crop(image, boxes, mean_std, size, threads=1)
    print(peak_kib() - before - 3 * 3 * 64 * 64 * 4 // 1024)
"""


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([NAN, 0, 10, 10], r"box 1 .* is not finite"),
        ([0, 0, INF, 10], r"box 1 .* is not finite"),
        ([-3e38, 0, 3e38, 10], r"box 1 .* is not finite"),
        ([10, 0, 5, 10], r"box 1 \[10.0, 0.0, 5.0, 10.0\] is inverted"),
        ([0, 10, 10, 5], r"box 1 .* is inverted"),
        ([5, 0, 5, 10], r"box 1 .* is empty"),
        ([0, 7, 10, 7], r"box 1 .* is empty"),
    ],
)
def test_a_bad_box_is_named(box, message, scene, mean_std):
    with pytest.raises(BoxError, match=message):
        psc_crop(scene, np.array([[0, 0, 1, 1], box], np.float32), mean_std, 8)


def test_a_box_that_is_empty_only_in_float32_is_refused(scene, mean_std):
    with pytest.raises(BoxError, match="empty"):
        psc_crop(scene, np.array([[100.0, 0, 100.0 + 1e-7, 10]]), mean_std, 8)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([0, 0, 10, 10], r"shape \[4\]; expected \[K, 4\]"),
        ([[0, 0, 10]], r"shape \[1, 3\]; expected \[K, 4\]"),
        ([["a", "b", "c", "d"]], "dtype .* expected float32"),
        ([[0, 0, 1j, 1]], "dtype complex128; expected float32"),
        ([[0, 0, 1, 1], [0, 0, 1]], "not a rectangular array"),
        (None, "dtype object; expected float32"),
    ],
)
def test_boxes_of_the_wrong_form_are_refused(boxes, message, scene, mean_std):
    with pytest.raises(BoxError, match=message):
        psc_crop(scene, boxes, mean_std, 8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5, 3)), "dtype float64; expected uint8"),
        (np.zeros((5, 5, 3), np.int8), "dtype int8; expected uint8"),
        (np.zeros((5, 5), np.uint8), r"shape \[5, 5\]; expected \[H, W, 3\]"),
        (np.zeros((3, 5, 5), np.uint8), r"expected \[H, W, 3\].*transpose"),
        (np.zeros((5, 5, 4), np.uint8), r"expected \[H, W, 3\].*three bands"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        ("scene.tif", "expected uint8"),
    ],
)
def test_images_of_the_wrong_form_are_refused(image, message, mean_std):
    with pytest.raises(ImageError, match=message):
        psc_crop(image, [[0, 0, 1, 1]], mean_std, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_std": np.zeros((3, 2), np.float32)}, r"shape \[3, 2\]; expected \[2, 3\]"),
        ({"mean_std": [[NAN, 0, 0], [1, 1, 1]]}, "not finite"),
        ({"mean_std": [[0, 0, 0], [1, 0, 1]]}, "must be positive"),
        ({"mean_std": "clip"}, "dtype .* expected float32"),
        ({"size": 0}, "size is 0"),
        ({"size": 2.5}, "size is 2.5"),
        ({"size": True}, "size is True"),
        ({"dtype": "float64"}, "dtype is float64; expected one of float32, float16"),
        ({"dtype": "half-ish"}, "dtype is half-ish"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1.5}, "threads is 1.5"),
    ],
)
def test_other_bad_arguments_are_refused(change, message, scene, mean_std):
    arguments = {"mean_std": mean_std, "size": 8, **change}
    with pytest.raises(InputError, match=message):
        psc_crop(scene, [[0, 0, 1, 1]], **arguments)


def test_every_refusal_is_one_line(scene, mean_std):
    with pytest.raises(InputError) as caught:
        psc_crop(scene, [[NAN, 0, 1, 1]], mean_std, 8)
    assert "\n" not in str(caught.value)
