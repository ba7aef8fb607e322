"""Fake pipelines behind the small interface that an evaluation uses, and hand-made sets."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from geomag_edge.budgets import TokenBudget
from geomag_edge.calibration.evaluation.records import Record
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.images.scene import Scene

VIEW_PX = 128


def exact_mask(pixels):
    """A `Mask` that holds exactly these pixels: one logit a pixel."""
    pixels = np.asarray(pixels, bool)
    side = max(pixels.shape)
    logits = np.full((side, side), -1.0, np.float32)
    logits[: pixels.shape[0], : pixels.shape[1]][pixels] = 1.0
    return Mask(pixels.shape, [[0, 0, side, side]], logits[None], [1.0], 1.0)


def fake_result(prompt, text="", granularity="image", masks=(), boxes=(), crops=0):
    return SimpleNamespace(
        prompt=prompt, text=text, granularity=granularity, budget=TokenBudget(4, 4, 2),
        boxes=list(boxes), masks=list(masks), crop_boxes=np.zeros((crops, 4)),
        timings_ms={"encode": 2.0, "total": 5.0}, engine="fake", precision="fp32",
        providers={"llm": "Fake"},
    )  # fmt: skip


class FakeSession:
    def __init__(self, scene, ask):
        self.scene, self._ask = scene, ask

    def ask(self, prompt, budget=None, max_new_tokens=64):
        return self._ask(self.scene, prompt)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.scene.close()


class FakePipe:
    """Calls `ask(scene, prompt)` for each question; counts the pictures that were opened."""

    def __init__(self, ask):
        self.opened, self._ask = 0, ask
        self.bundle = SimpleNamespace(
            root=Path("fake"),
            manifest=SimpleNamespace(
                view=SimpleNamespace(view_px=VIEW_PX), checkpoint={}, untrained=[]
            ),
        )

    def open(self, image, nodata=None):
        self.opened += 1
        return FakeSession(Scene.open(image, nodata=nodata), self._ask)


@pytest.fixture(scope="session")
def to_mask():
    """(bool[H,W]) -> a `Mask` that holds exactly these pixels."""
    return exact_mask


@pytest.fixture
def silent_pipe():
    """Answers with nothing, as an image-level question."""
    return FakePipe(lambda scene, prompt: fake_result(prompt))


@pytest.fixture
def oracle_pipe():
    """(dataset) -> a pipeline that knows every answer."""

    def make(dataset):
        items = (item for picture in dataset.pictures() for item in picture.items)

        def ask(scene, prompt):
            item = next(items)
            masks = []
            if item.target_ids:
                whole = (0, 0, scene.height, scene.width)
                masks = [exact_mask(item.objects.window([i], whole)) for i in item.target_ids]
            boxes = () if item.describes_box else item.boxes
            text = f" {item.answer.upper()}." + "[SEG]" * len(masks)
            return fake_result(prompt, text, item.level, masks, boxes, crops=3)

        return FakePipe(ask)

    return make


@pytest.fixture
def pixel_pipe():
    """Answers from nothing but the pixels and the prompt, the same on every run."""

    def ask(scene, prompt):
        box = np.array([[0, 0, scene.width, scene.height]], np.float32)
        view = scene.crop(box, np.array([[0, 0, 0], [1, 1, 1]], np.float32), 64)
        digest = hashlib.sha256(view.tobytes() + prompt.encode()).digest()
        text = f"{digest[0] % 4}"
        bright = scene.crop(box, np.array([[0, 0, 0], [1, 1, 1]], np.float32), scene.width)[0, 0]
        masks = [exact_mask(bright > 0.4)] if digest[1] % 2 else []
        boxes = [[10.0, 10.0, 90.0, 90.0]] if digest[2] % 2 else []
        level = ("image", "region", "pixel")[digest[3] % 3]
        return fake_result(prompt, text, level, masks, boxes)

    return FakePipe(ask)


@pytest.fixture
def make_folder(tmp_path):
    """(lines, masks={name: array}, images={name: (height, width)}) -> the set's folder.

    A line is a dict, written as JSON, or raw text.
    """

    def make(lines, masks=None, images=None, name="set"):
        root = tmp_path / name
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(3)
        for file, (height, width) in (images or {"a.png": (40, 60)}).items():
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / file)
        for file, pixels in (masks or {}).items():
            Image.fromarray(np.asarray(pixels, np.uint8)).save(root / "masks" / file)
        rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (root / "questions.jsonl").write_text("".join(row + "\n" for row in rows))
        return root

    return make


@pytest.fixture
def record():
    """(id, picture, **changes) -> a pixel-level record with an IoU of 0.5."""

    def make(id, picture="a", **changes):
        fields = {
            "level": "pixel", "kind": "refer", "prompt": f"prompt {id}", "expected": "",
            "image_px": 512, "size_px": 10.0, "text": "it [SEG]", "granularity": "pixel",
            "visual_tokens": 20, "ms": 1.0, "intersection_px": 5, "union_px": 10, "iou": 0.5,
        }  # fmt: skip
        return Record(id=str(id), picture=picture, **(fields | changes))

    return make
