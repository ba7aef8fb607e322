"""Sets: rendered ones and folders, that both agree, and everything a folder can get wrong."""

import json

import numpy as np
import pytest
import rasterio
from PIL import Image

from geomag_edge.calibration import evaluate, open_dataset
from geomag_edge.calibration.sets import rendered
from geomag_edge.calibration.sets.labels import LabelImage
from geomag_edge.calibration.sets.rendered import RenderedSet, scene_seed, write_folder
from geomag_edge.errors import DatasetError, GeoMagError, ImageError, OutputError
from geomag_edge.scenes import render_scene

ASK = {"image": "images/a.png", "level": "image", "prompt": "what is it", "answer": "a town"}
FIND = {"image": "images/a.png", "level": "region", "prompt": "find it", "boxes": [[1, 2, 9, 9]]}
SEGMENT = {"image": "images/a.png", "level": "pixel", "prompt": "mask it", "mask": "masks/a.png"}


def some_mask(height=40, width=60, id=1):
    mask = np.zeros((height, width), np.uint8)
    mask[3:6, 4:9] = id
    return mask


def test_a_written_set_and_the_rendered_one_agree_in_every_record(pixel_pipe, tmp_path):
    dataset = RenderedSet(seed=4, count=3, size_px=160)
    asked = write_folder(dataset, tmp_path / "set")
    here, there = (
        evaluate(pixel_pipe, d)
        for d in (open_dataset(tmp_path / "set"), open_dataset("scenes:4:3:160"))
    )
    assert asked == len(there.records) == 36
    for a, b in zip(here.records, there.records, strict=True):
        assert a.picture == f"images/{b.picture}.tif"
        assert a.to_json() | {"picture": b.picture} == b.to_json()
    values = [[(e.metric, e.group, e.value, e.low, e.high) for e in r.estimates]
              for r in (here, there)]  # fmt: skip
    assert values[0] == values[1]


def test_a_written_set_is_the_documented_layout(tmp_path):
    write_folder(RenderedSet(seed=4, count=1, size_px=160), tmp_path / "set")
    files = sorted(str(p.relative_to(tmp_path / "set")) for p in (tmp_path / "set").rglob("*.*"))
    name = f"scene-{scene_seed(4, 0)}-160"
    assert files == [f"images/{name}.tif", f"masks/{name}.png", "questions.jsonl"]
    scene = render_scene(scene_seed(4, 0), 160)
    mask = np.asarray(Image.open(tmp_path / "set" / "masks" / f"{name}.png"))
    _ = scene.image
    np.testing.assert_array_equal(mask, scene.labels.window((0, 0, 160, 160)))
    with rasterio.open(tmp_path / "set" / "images" / f"{name}.tif") as image:
        assert image.crs is not None


def test_an_interrupted_set_leaves_nothing_behind(tmp_path):
    begun = []

    def stop(name):
        begun.append(name)
        if len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(RenderedSet(seed=4, count=2, size_px=96), tmp_path / "set", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path):
    with pytest.raises(OutputError, match="exists"):
        write_folder(RenderedSet(seed=4, count=1, size_px=96), tmp_path)


def test_a_limited_written_set_has_that_many_questions(tmp_path):
    dataset = RenderedSet(seed=4, count=3, size_px=96, limit=15)
    assert write_folder(dataset, tmp_path / "set") == 15
    assert len(open_dataset(tmp_path / "set")) == len(dataset) == 2


def test_seeds_are_those_of_no_training_and_of_no_other_set():
    assert scene_seed(0, 0) == 1_000_000_000
    assert scene_seed(1, 7) == 1_000_100_007
    assert scene_seed(0, rendered.SEEDS_PER_SET - 1) < scene_seed(1, 0)


def test_without_a_size_the_sides_take_turns_and_small_targets_occur():
    dataset = open_dataset("scenes:1:4")
    assert [scene.size_px for scene in dataset.scenes()] == [512, 1024, 2048, 512]
    picture = next(dataset.pictures())
    sides = [side for item in picture.items if (side := item.longer_side_px()) is not None]
    assert min(sides) * 128 / 512 < 16


def test_a_large_scene_is_asked_from_a_file_with_the_same_answers(pixel_pipe, monkeypatch):
    in_memory = evaluate(pixel_pipe, open_dataset("scenes:6:1:128"))
    monkeypatch.setattr(rendered, "IN_MEMORY_PX", 100)
    assert evaluate(pixel_pipe, open_dataset("scenes:6:1:128")).records == in_memory.records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes:", "write scenes:SEED:COUNT"),
        ("scenes:1", "write scenes:SEED:COUNT"),
        ("scenes:1:2:3:4", "write scenes:SEED:COUNT"),
        ("scenes:-1:2", "write scenes:SEED:COUNT"),
        ("scenes:1:0", "0 scenes were asked for"),
        ("scenes:1:100001", "100001 scenes were asked for"),
        ("scenes:100000:1", "a set's seed is 100000"),
        ("scenes:1:1:8", "scenes of 8 px"),
    ],
)
def test_malformed_sets_of_scenes(text, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(text)


def test_a_limit_of_nothing():
    with pytest.raises(DatasetError, match="a limit of 0"):
        open_dataset("scenes:1:1", limit=0)


def test_fields_that_are_left_out_get_their_documented_meaning(make_folder):
    absent_box = {**FIND, "boxes": []}
    absent_mask = {k: v for k, v in SEGMENT.items() if k != "mask"}
    no_ids = SEGMENT | {"mask_ids": []}
    numeric = ASK | {"answer": 3, "kind": "count", "id": 17}
    folder = make_folder(
        [ASK, numeric, FIND, absent_box, SEGMENT, absent_mask, no_ids, "", "  "],
        {"a.png": some_mask(id=9)},
    )
    [picture] = open_dataset(folder).pictures()
    kinds = [(item.kind, item.absent) for item in picture.items]
    assert kinds == [
        ("question", False), ("count", False), ("find_box", False), ("absent", True),
        ("refer", False), ("absent", True), ("absent", True),
    ]  # fmt: skip
    assert [item.id for item in picture.items][:3] == ["line-1", "17", "line-3"]
    assert picture.items[1].answer == "3"
    assert picture.items[4].target_ids == (9,)
    assert picture.items[4].longer_side_px() == 5.0


def test_questions_of_one_image_come_together_whatever_their_order(make_folder):
    other = ASK | {"image": "images/b.png"}
    images = {"a.png": (20, 20), "b.png": (20, 30)}
    dataset = open_dataset(make_folder([ASK, other, ASK], images=images))
    assert [(p.name, len(p.items)) for p in dataset.pictures()] == [
        ("images/a.png", 2), ("images/b.png", 1),
    ]  # fmt: skip


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(make_folder):
    folder = make_folder([ASK])
    text = (folder / "questions.jsonl").read_text().replace("\n", "\r\n")
    (folder / "questions.jsonl").write_text("\ufeff" + text)
    assert len(open_dataset(folder)) == 1


BAD_LINES = [
    ("{", "line 2 is not readable JSON"),
    ("[1]", "line 2: a question is a JSON object, got list"),
    ('{"a": ' * 20000, "line 2 is nested more than"),
    (ASK | {"level": "pixels"}, "line 2: level is 'pixels': give image, region or pixel"),
    (ASK | {"level": 3}, "line 2: level is 3: give text"),
    ({"level": "image", "prompt": "x", "answer": "y"}, "line 2: image is missing"),
    (ASK | {"prompt": "  "}, "line 2: prompt is ' '"),
    (ASK | {"answer": None}, "line 2: the answer is missing"),
    (ASK | {"answer": ["yes"]}, "line 2: answer is"),
    (ASK | {"promt": "x"}, "line 2: unknown field 'promt'"),
    (ASK | {"image": "../a.png"}, "line 2: image is '../a.png': give a path inside"),
    (ASK | {"image": "/a.png"}, "line 2: image is '/a.png'"),
    (ASK | {"image": "images/no.png"}, "line 2: there is no images/no.png"),
    (ASK | {"id": "line-1"}, "line 2: id 'line-1' is that of line 1 too"),
    (FIND | {"boxes": [1, 2, 3, 4]}, "line 2: box 1 is not"),
    (FIND | {"boxes": [[1, 2, 3]]}, r"line 2: box \[1, 2, 3\] is not"),
    (FIND | {"boxes": [[1, 2, 3, True]]}, "line 2: box"),
    (FIND | {"boxes": [[5, 2, 3, 9]]}, "line 2: box .* is empty"),
    (FIND | {"boxes": "none"}, "line 2: boxes is 'none'"),
    (FIND | {"boxes": [[100, 2, 130, 9]]}, "line 2: box 100,2,130,9 lies outside"),
    (
        '{"image": "images/a.png", "level": "region", "prompt": "x", "boxes": [[0, 0, NaN, 1]]}',
        "line 2 is not readable JSON: NaN",
    ),
    (FIND | {"kind": "describe_box", "answer": "x", "boxes": []}, "line 2: describe_box is about"),
    (FIND | {"kind": "describe_box"}, "line 2: the answer is missing"),
    (SEGMENT | {"mask": "masks/no.png"}, "line 2: there is no masks/no.png"),
    (SEGMENT | {"mask": "masks/wide.png"}, "line 2: masks/wide.png has 61 x 40 px, its image"),
    (SEGMENT | {"mask": "masks/empty.png"}, "line 2: masks/empty.png is all background"),
    (SEGMENT | {"mask": "masks/colour.png"}, "colour.png has 3 bands of uint8"),
    (SEGMENT | {"mask_ids": [2]}, "line 2: masks/a.png has no object 2"),
    (SEGMENT | {"mask_ids": [0]}, "line 2: mask_ids is"),
    (SEGMENT | {"mask_ids": "1"}, "line 2: mask_ids is"),
    (SEGMENT | {"mask": None, "mask_ids": [1]}, "line 2: mask_ids without a mask"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_before_anything_is_asked(make_folder, line, message):
    masks = {
        "a.png": some_mask(), "wide.png": some_mask(width=61), "empty.png": some_mask(id=0),
        "colour.png": np.zeros((40, 60, 3)),
    }  # fmt: skip
    folder = make_folder([ASK, line], masks)
    with pytest.raises(DatasetError, match=message) as e:
        open_dataset(folder)
    assert "\n" not in str(e.value)


def test_bytes_that_are_no_utf8_are_named_by_their_line(make_folder):
    folder = make_folder([ASK])
    with (folder / "questions.jsonl").open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n')
    with pytest.raises(DatasetError, match="line 2 is not readable JSON: not UTF-8"):
        open_dataset(folder)


def test_an_image_that_is_none_is_refused(make_folder):
    folder = make_folder([ASK])
    (folder / "images" / "a.png").write_bytes(b"this is no picture")
    with pytest.raises(ImageError, match=r"a\.png"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "questions.jsonl").write_text("\n\n"), "is empty"),
        (lambda f: (f / "questions.jsonl").unlink(), r"has no questions\.jsonl"),
        (lambda f: f.rename(f.parent / "elsewhere"), "no set at"),
    ],
)
def test_folders_that_are_no_set(make_folder, spoil, message):
    folder = make_folder([ASK])
    spoil(folder)
    with pytest.raises(GeoMagError, match=message):
        open_dataset(folder)


def test_a_large_mask_is_read_by_windows_with_the_same_result(make_folder, monkeypatch):
    rng = np.random.default_rng(2)
    folder = make_folder([ASK], {"m.png": rng.integers(0, 5, (90, 70))})
    whole = LabelImage(folder / "masks" / "m.png")
    expected = whole.window([1, 3], (10, 20, 60, 65)), whole.area_px([2, 4]), whole.ids
    monkeypatch.setattr("geomag_edge.calibration.sets.labels.IN_MEMORY_PX", 10)
    monkeypatch.setattr("geomag_edge.calibration.sets.labels.STRIP_PX", 700)
    parts = LabelImage(folder / "masks" / "m.png")
    np.testing.assert_array_equal(parts.window([1, 3], (10, 20, 60, 65)), expected[0])
    assert (parts.area_px([2, 4]), parts.ids) == expected[1:]


def test_the_set_of_a_written_folder_reads_back_as_json(tmp_path):
    write_folder(RenderedSet(seed=9, count=1, size_px=96), tmp_path / "set")
    for line in (tmp_path / "set" / "questions.jsonl").read_text().splitlines():
        assert json.loads(line)["level"] in ("image", "region", "pixel")
