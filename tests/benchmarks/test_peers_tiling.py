"""Tiling: every pixel belongs to one tile, and masks are pasted where they belong."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.benchmarks.peers import big_scenes, tiling
from geomag_edge.benchmarks.peers.big_scenes import make_scene, open_scene
from geomag_edge.benchmarks.peers.tiles import (
    NEW_TOKENS,
    TiledMask,
    sampled,
    tile_everything,
    tile_in_processes,
    tiles_of,
)
from geomag_edge.calibration.evaluation.metrics import mask_overlap
from geomag_edge.calibration.sets.items import Item
from geomag_edge.calibration.sets.rendered import items_of
from geomag_edge.errors import InputError
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.scenes import render_scene

sizes = st.integers(1, 70)


@given(sizes, sizes, st.integers(1, 40))
def test_tiles_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    seen = np.zeros((height, width), int)
    for r0, c0, r1, c1 in tiles_of(height, width, side):
        seen[r0:r1, c0:c1] += 1
    assert (seen == 1).all()


@given(sizes, sizes, st.integers(1, 40), st.integers(0, 10**6), st.data())
def test_a_pasted_mask_is_the_mask(
    height: int, width: int, side: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    want = rng.random((height, width)) < 0.2
    mask = TiledMask((height, width), side)
    for rect in tiles_of(height, width, side):
        mask.paste(rect, want[rect[0] : rect[2], rect[1] : rect[3]])
    assert (mask.window(0, 0, height, width) == want).all()
    r0, c0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    r1, c1 = data.draw(st.integers(r0 + 1, height)), data.draw(st.integers(c0 + 1, width))
    assert (mask.window(r0, c0, r1, c1) == want[r0:r1, c0:c1]).all()
    inside = np.zeros_like(want)
    for b0, b1, b2, b3 in mask.blocks():
        inside[b0:b2, b1:b3] = True
    assert not (want & ~inside).any()


@given(sizes, sizes, st.integers(1, 9))
def test_a_sample_has_every_tile_once_and_blocks_together(
    height: int, width: int, side: int
) -> None:
    rects = tiles_of(height, width, side)
    found = sampled(rects, side)
    assert sorted(found) == rects
    blocks = [(r // (4 * side), c // (4 * side)) for r, c, _, _ in found]
    changes = sum(a != b for a, b in pairwise(blocks))
    assert changes == len(set(blocks)) - 1


def test_a_mask_that_is_no_tile_is_refused() -> None:
    mask = TiledMask((64, 64), 32)
    with pytest.raises(InputError, match="does not belong"):
        mask.paste((3, 0, 35, 32), np.ones((32, 32), bool))
    with pytest.raises(InputError, match="does not belong"):
        mask.paste((32, 0, 64, 32), np.ones((16, 32), bool))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scene(tmp_path_factory.mktemp("scenes") / "300", 5, 300, 4)


def test_a_scene_on_disk_keeps_its_questions_and_their_targets(scene: Path) -> None:
    picture = open_scene(scene)
    seed = int(picture.name.split("-")[1])
    items = [i for i in items_of(render_scene(seed, 300), 4) if i.level == "pixel"]
    assert [item.prompt for item in picture.items] == [item.prompt for item in items]
    rect = (0, 0, 300, 300)
    for found, want in zip(picture.items, items, strict=True):
        assert found.target_ids == want.target_ids
        assert found.longer_side_px() == want.longer_side_px()
        if want.target_ids:
            ids = want.target_ids
            truth = want.objects.window(ids, rect)
            assert (found.objects.window(ids, rect) == truth).all()
            assert found.objects.area_px(ids) == truth.sum()
            whole = TiledMask((300, 300), 300)
            whole.paste(rect, truth)
            assert mask_overlap([whole], found) == (truth.sum(), truth.sum())


def test_tiling_asks_each_tile_as_an_image_of_its_own(bundle: Path, scene: Path) -> None:
    picture = open_scene(scene)
    prompts = [item.prompt for item in picture.items][:2]
    whole = render_scene(int(picture.name.split("-")[1]), 300).image
    with Pipeline.load(bundle) as pipe:
        side = pipe.bundle.manifest.view.view_px
        masks, took = tile_everything(pipe, picture.image, prompts, side)
        grid = str(pipe.bundle.manifest.budgets["pixel"].global_grid)
        for r0, c0, r1, c1 in tiles_of(300, 300, side)[-2:]:
            for prompt, mask in zip(prompts, masks, strict=True):
                found = pipe(whole[r0:r1, c0:c1], prompt, grid, NEW_TOKENS).masks
                want = np.zeros((r1 - r0, c1 - c0), bool)
                for one in found:
                    want |= np.asarray(one)
                assert (mask.window(r0, c0, r1, c1) == want).all()
    assert took["wall_ms"] > 0


def test_processes_tile_as_one_does(bundle: Path, scene: Path) -> None:
    picture = open_scene(scene)
    prompts = [item.prompt for item in picture.items][:2]
    with Pipeline.load(bundle) as pipe:
        want, _ = tile_everything(pipe, picture.image, prompts, 100)
    loaded = bundle, "ort-cpu", "fp32", 1
    found = tile_in_processes(loaded, picture.image, prompts, 100, 2, "")
    for one, other in zip(found, want, strict=True):
        assert (one.window(0, 0, 300, 300) == other.window(0, 0, 300, 300)).all()


def test_kept_labels_are_those_drawn_by_window(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(big_scenes, "BLOCK_PX", 128)
    drawn, kept = open_scene(scene), open_scene(scene, keep_labels=True)
    for item, same in zip(drawn.items, kept.items, strict=True):
        if item.target_ids:
            rect = (17, 40, 230, 300)
            assert (
                same.objects.window(item.target_ids, rect)
                == item.objects.window(item.target_ids, rect)
            ).all()


def test_each_set_of_targets_is_asked_for_once() -> None:
    items = [
        Item("a", "pixel", "refer_many", "segment all trees", target_ids=(1, 2)),
        Item("b", "pixel", "refer_many", "show the trees", target_ids=(1, 2)),
        Item("c", "pixel", "refer_one", "segment the ship"),
        Item("d", "pixel", "refer_one", "segment the plane"),
    ]
    assert [item.id for item in tiling.one_wording(items)] == ["a", "c", "d"]
