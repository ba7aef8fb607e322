"""The picture of an answer: what stands where, and what it says of an answer that was cut."""

import json

import numpy as np
import pytest
from PIL import Image

from geomag_edge.runtime.answers import overlay
from geomag_edge.runtime.answers.masks import Mask
from geomag_edge.runtime.answers.outputs import write_outputs
from geomag_edge.runtime.answers.overlay import Looked
from geomag_edge.runtime.images.scene import Scene


def test_a_mask_s_number_stands_on_its_largest_part(monkeypatch):
    pixels = np.zeros((200, 300), bool)
    pixels[5:9, 5:9] = True  # a speck in the corner of all
    pixels[100:160, 180:240] = True
    drawn = []
    monkeypatch.setattr(overlay, "_chip", lambda out, at, *rest: drawn.append(at))
    logits = np.full((1, 300, 300), -1.0, np.float32)
    logits[0, :200][pixels] = 1.0
    mask = Mask(pixels.shape, [[0, 0, 300, 300]], logits, [1.0], 1.0)
    data = np.ones((200, 300), bool)
    overlay._with_masks(Image.new("RGB", (300, 200)), [mask], 1.0, ["ships"], data)
    ((x, y),) = drawn
    assert 180 <= x < 240
    assert 100 <= y < 160


@pytest.mark.parametrize("stopped", ["length", "deadline"])
def test_an_answer_that_was_cut_says_so_in_its_files(tmp_path, stopped):
    answer = {"prompt": "find the things", "text": "the", "stopped": "end"}
    seen = Looked([0, 0, 60, 60])
    with Scene.open(Image.new("RGB", (60, 40))) as scene:
        whole = write_outputs(tmp_path / "whole", scene, answer, [], [], seen)
        cut = write_outputs(tmp_path / "cut", scene, answer | {"stopped": stopped}, [], [], seen)
    notes = json.loads(cut["polygons"].read_text())["geomag_notes"]
    assert any(note.startswith("cut short") for note in notes)
    assert Image.open(cut["overlay"]).height > Image.open(whole["overlay"]).height  # a line more


def test_no_markup_is_drawn():
    drawn = overlay._headline({"text": "the ship [SEG]<box>0:000,700,037,761</box>"})
    assert [text for text, *_ in drawn] == ["the ship"]
