"""Scenes are the same on every run, in every window, and masks are what the image shows."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from geomag_edge.errors import InputError
from geomag_edge.scenes import (
    ALL_CLASSES,
    CLASSES,
    COLOURS,
    LANDMARKS,
    SCENE_CLASSES,
    raster,
    render_scene,
)
from geomag_edge.scenes.plan.mosaic import FILL


def digest(scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.labels.whole.tobytes()).hexdigest()


def seeds_by_theme(size_px: int = 512) -> dict[str, int]:
    found: dict[str, int] = {}
    for seed in range(200):
        found.setdefault(render_scene(seed, size_px, 0.6).scene_class, seed)
    return found


def test_same_seed_same_pixels_here_and_in_another_process():
    first, again = render_scene(5, 512), render_scene(5, 512)
    assert digest(first) == digest(again)
    code = (
        "import hashlib; from geomag_edge.scenes import render_scene; s = render_scene(5, 512);"
        "s.image; print(hashlib.sha256(s.image.tobytes() + s.labels.whole.tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest(first)
    assert digest(render_scene(6, 512)) != digest(first)


def test_numpy_integers_are_integers():
    assert digest(render_scene(np.int64(5), np.int32(128))) == digest(render_scene(5, 128))


def test_every_theme_is_reached_and_yields_objects():
    themes = seeds_by_theme()
    assert set(themes) == set(SCENE_CLASSES) == set(FILL)
    seen = set()
    for seed in themes.values():
        scene = render_scene(seed, 512, 0.6)
        assert scene.image.shape == (512, 512, 3)
        assert scene.image.dtype == np.uint8
        assert scene.objects
        assert 12 < scene.image.std() < 90
        seen |= {o.cls for o in scene.objects}
    assert seen >= set(CLASSES)


@pytest.mark.parametrize("seed", [3, 9, 24])
def test_objects_are_well_formed_and_boxes_are_tight(seed):
    scene = render_scene(seed, 700, 0.5)
    assert scene.objects
    ids = scene.labels.whole
    assert ids.shape == (700, 700)
    for o in scene.objects:
        assert o.cls in CLASSES + LANDMARKS
        assert o.colour in COLOURS
        assert o.size in ("small", "large")
        assert 0 <= o.orientation < 180
        rows, cols = np.nonzero(ids == o.id)
        assert o.box == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
        assert o.area_px == len(rows) == o.mask().sum()
        assert o.polygons
    listed = {o.id for o in scene.objects}
    assert listed == set(np.unique(ids)) - {0}


def test_mask_is_the_outline_for_things_that_nothing_covers():
    """The visible pixels of a large roof are its polygon's, up to half a pixel at the edge."""
    scene = render_scene(seeds_by_theme()["commercial"], 512, 0.6)
    roofs = [o for o in scene.objects if o.cls == "building"]
    roof = max(roofs, key=lambda o: o.area_px)
    points = np.asarray(roof.polygons[0])
    x, y = points[:, 0], points[:, 1]
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    inside = (points > 0).all() and (points < 512).all()
    if inside:
        assert roof.area_px <= 1.03 * area


def test_masks_cover_what_changes_in_the_image():
    """Without sensor effects, repainting an object changes its mask's pixels and few others."""
    scene = render_scene(seeds_by_theme()["harbour"], 512, 0.6)
    clean = replace(
        scene.spec.look, blur_px=0.0, noise=0.0, haze=0.0, cast=(1, 1, 1), shadow_strength=0.0
    )
    spec = replace(scene.spec, look=clean)
    before, ids = raster.rasterise(spec, (0, 0, 512, 512))
    target = max((o for o in scene.objects if o.cls == "ship"), key=lambda o: o.area_px)
    for item in spec.items:
        if item.object_id == target.id:
            item.rgb = (255, 0, 255)
    after, again = raster.rasterise(spec, (0, 0, 512, 512))
    np.testing.assert_array_equal(ids, again)
    changed = np.abs(after.astype(int) - before).max(-1) > 0
    mask = ids == target.id
    # What keeps its own colour on a ship is its bridge; what spills is one pixel of antialiasing.
    assert changed[mask].mean() > 0.8
    grown = mask.copy()
    for axis in (0, 1):
        grown |= np.roll(grown, 1, axis) | np.roll(grown, -1, axis)
    assert not changed[~grown].any()


def test_windows_agree_with_the_whole():
    scene = render_scene(11, 1300, 0.5)
    whole = scene.image
    for window in [(0, 0, 64, 64), (500, 490, 540, 530), (1020, 100, 1300, 300), (0, 0, 1300, 40)]:
        x0, y0, x1, y1 = window
        image, ids = raster.rasterise(scene.spec, window)
        np.testing.assert_array_equal(image, whole[y0:y1, x0:x1])
        np.testing.assert_array_equal(ids, scene.labels.whole[y0:y1, x0:x1])
        np.testing.assert_array_equal(raster.rasterise_ids(scene.spec, window), ids)


def test_tiles_meet_without_seams():
    """Steps across a tile's border are no larger than inside."""
    image = render_scene(11, 1100, 0.5).image.astype(float)
    steps = np.abs(np.diff(image, axis=1)).mean(axis=(0, 2))
    assert steps[511] < 1.25 * np.median(steps)
    assert steps[1023] < 1.25 * np.median(steps)


def test_a_huge_scene_is_described_without_being_drawn():
    scene = render_scene(2, 20000, 0.3)
    assert len(scene.spec.things) > 10000
    some = scene.spec.things[len(scene.spec.things) // 2]
    x, y = some.polygons[0][0]
    x, y = int(min(max(x, 50), 19900)), int(min(max(y, 50), 19900))
    image, ids = raster.rasterise(scene.spec, (x - 50, y - 50, x + 50, y + 50))
    assert image.std() > 1
    np.testing.assert_array_equal(
        scene.mask([some.id], (x - 50, y - 50, x + 50, y + 50)), ids == some.id
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((-1,), "non-negative"),
        ((1, 10), "64 to 32768"),
        ((1, 512.0), "64 to 32768"),
        ((1, 512, 0.0), "ground sample distance"),
        ((1, 512, float("nan")), "ground sample distance"),
    ],
)
def test_bad_arguments_say_what_to_give(args, text):
    with pytest.raises(InputError, match=text):
        render_scene(*args)


def test_class_map_names_what_each_pixel_shows():
    scene = render_scene(8, 300, 0.5)
    codes = scene.class_map((10, 20, 200, 250))
    assert codes.shape == (230, 190)
    for o in scene.objects:
        mask = scene.mask([o.id], (10, 20, 200, 250))
        assert (codes[mask] == 1 + ALL_CLASSES.index(o.cls)).all()
    assert ((codes == 0) == (scene.labels.window((10, 20, 200, 250)) == 0)).all()


@pytest.mark.parametrize("window", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 301, 5), (5, 5, 4, 9)])
def test_windows_outside_the_scene_are_refused(window):
    scene = render_scene(8, 300, 0.5)
    with pytest.raises(InputError, match="within 0 and 300"):
        scene.mask([1], window)
    with pytest.raises(InputError, match="leaves the scene"):
        raster.rasterise(scene.spec, window)


def test_colour_words_can_be_told_apart():
    """A nearest-mean guess from rendered pixels finds the colour word of most objects."""
    samples: dict[tuple[str, str], list] = {}
    for seed in range(40, 90):
        scene = render_scene(seed, 384, 0.5)
        image = scene.image.astype(np.float32)
        light = image.mean(axis=(0, 1))
        for o in scene.objects:
            if o.area_px > 30 and o.cls in ("ship", "vehicle", "building", "storage tank"):
                x0, y0, x1, y1 = (int(v) for v in o.box)
                mean = image[y0:y1, x0:x1][o.mask()].mean(0)
                samples.setdefault((o.cls, o.colour), []).append(mean - 0.3 * light)
    right = total = 0
    for cls in {cls for cls, _ in samples}:
        means = {c: np.mean(v, 0) for (k, c), v in samples.items() if k == cls and len(v) > 3}
        for (k, colour), values in samples.items():
            if k == cls and colour in means:
                for value in values:
                    guess = min(means, key=lambda c: float(((means[c] - value) ** 2).sum()))
                    right += guess == colour
                    total += 1
    assert total > 500
    assert right / total > 0.93
