"""The scripts in docs/DATA.md, run on small copies of the layouts that they convert."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geomag_edge.calibration import evaluate, open_dataset

DOC = Path(__file__).parents[3] / "docs" / "DATA.md"


@pytest.fixture
def convert(tmp_path):
    """(script, source, *arguments) -> the completed process; the set is in `tmp_path / "set"`."""
    scripts = dict(
        re.findall(r"<!-- script: (\S+) -->\n```python\n(.*?)```", DOC.read_text(), re.S)
    )

    def run(name, source, *arguments):
        path = tmp_path / name
        path.write_text(scripts[name])
        command = [sys.executable, path, source, tmp_path / "set", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def run_lengths(mask):
    """COCO's compressed counts, written down from the format and not from the script."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [-1]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    text = ""
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr((bits | (0x20 if more else 0)) + 48)
    return {"size": list(mask.shape), "counts": text}


@pytest.fixture
def rrsis_d(tmp_path):
    """Two images, three objects, one of them in another split."""
    root = tmp_path / "RRSIS-D"
    (root / "rrsisd").mkdir(parents=True)
    (root / "images" / "rrsisd" / "JPEGImages").mkdir(parents=True)
    rng = np.random.default_rng(8)
    masks = [rng.random((60, 80)) < share for share in (0.02, 0.5, 0.97)]
    for i in (1, 2):
        pixels = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / "rrsisd" / "JPEGImages" / f"0000{i}.jpg")
    instances = {
        "images": [{"id": i, "file_name": f"0000{i}.jpg"} for i in (1, 2)],
        "categories": [{"id": 1, "name": "ship"}],
        "annotations": [
            {"id": 10 + k, "segmentation": [run_lengths(mask)]} for k, mask in enumerate(masks)
        ],
    }
    (root / "rrsisd" / "instances.json").write_text(json.dumps(instances))
    refs = [
        {
            "ref_id": k, "ann_id": 10 + k, "image_id": image, "category_id": 1, "split": split,
            "sentences": [{"sent_id": 5 * k + j, "sent": f"ship {k}{j}"} for j in range(1 + k % 2)],
        }
        for k, (image, split) in enumerate([(1, "test"), (2, "test"), (2, "train")])
    ]  # fmt: skip
    (root / "rrsisd" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return root, masks


def test_rrsis_d_becomes_a_set_with_the_same_masks(convert, rrsis_d, tmp_path, oracle_pipe):
    root, masks = rrsis_d
    done = convert("rrsis_d.py", root, "test")
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(tmp_path / "set")
    items = [item for picture in dataset.pictures() for item in picture.items]
    assert [i.prompt for i in items] == ["segment ship 00", "segment ship 10", "segment ship 11"]
    assert {i.kind for i in items} == {"ship"}
    for item, mask in zip(items, [masks[0], masks[1], masks[1]], strict=True):
        np.testing.assert_array_equal(item.objects.window([1], (0, 0, 60, 80)), mask)
    assert evaluate(oracle_pipe(dataset), dataset)["mIoU"].value == 1.0


def test_a_pickle_that_wants_more_than_plain_data_is_refused(convert, rrsis_d):
    root, _ = rrsis_d
    (root / "rrsisd" / "refs(unc).p").write_bytes(pickle.dumps([Path("x")], protocol=2))
    done = convert("rrsis_d.py", root)
    assert done.returncode != 0
    assert "refused" in done.stderr


def test_rsvqa_lr_becomes_a_set_of_words(convert, tmp_path, oracle_pipe):
    root = tmp_path / "RSVQA_LR"
    (root / "Images_LR").mkdir(parents=True)
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(root / "Images_LR" / "7.tif")
    asked = [("presence", "Is there a road?", "yes"), ("count", "How many?", "35")]
    asked += [("count", "How many?", "0"), ("count", "How many?", "4000")]
    rows = {
        "images": [{"id": 7, "active": True}],
        "questions": [
            {"id": i, "img_id": 7, "type": kind, "question": text, "active": True}
            for i, (kind, text, _) in enumerate(asked)
        ],
        "answers": [
            {"id": i, "question_id": i, "answer": answer, "active": True}
            for i, (_, _, answer) in enumerate(asked)
        ],
    }
    for what, found in rows.items():
        found.append({"id": 99, "active": False})
        (root / f"LR_split_test_{what}.json").write_text(json.dumps({what: found}))
    done = convert("rsvqa_lr.py", root)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(tmp_path / "set")
    [picture] = dataset.pictures()
    answers = [item.answer for item in picture.items]
    assert answers == ["yes", "between 11 and 100", "0", "more than 1000"]
    assert [item.kind for item in picture.items] == ["presence", "count", "count", "count"]
    assert evaluate(oracle_pipe(dataset), dataset)["answer"].value == 1.0


def test_the_examples_of_a_folder_are_lines_that_are_read(make_folder):
    lines = re.findall(r'^    (\{"image".*\})$', DOC.read_text(), re.M)
    assert len(lines) == 5
    ids = np.zeros((140, 500), np.uint8)
    ids[50, 50:53] = 4, 5, 9
    folder = make_folder(lines, {"1.png": ids}, {"1.tif": (140, 500)})
    [picture] = open_dataset(folder).pictures()
    assert [item.absent for item in picture.items] == [False, False, False, False, True]
    assert picture.items[3].target_ids == (4, 5, 9)


def test_measuring_needs_no_training_stack():
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'scipy'): sys.modules[name] = None\n"
        "import geomag_edge.calibration.evaluation.evaluate\n"
        "import geomag_edge.calibration.sets.rendered\n"
        "import geomag_edge.calibration.sets.folder, geomag_edge.cli.commands.eval\n"
        "from geomag_edge.calibration import open_dataset\n"
        "next(open_dataset('scenes:1:1:64').pictures())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
