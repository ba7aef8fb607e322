"""The benchmark of typing: prompts change, questions and truth do not."""

import dataclasses

import numpy as np

from geomag_edge.benchmarks.machine import machine
from geomag_edge.benchmarks.studies.typing import WAYS, TypedSet, as_markdown
from geomag_edge.calibration.sets.items import Item, Picture
from geomag_edge.machine import instruction_sets


class OnePicture:
    name = "one"

    def __len__(self):
        return 1

    def pictures(self):
        item = Item("a", "image", "count", "how many ships are there", "2", [], [])
        yield Picture("p", np.zeros((2, 2, 3), np.uint8), [item])


def test_every_way_types_the_prompt_and_leaves_the_truth():
    data = OnePicture()
    made = list(data.pictures())
    typed = {way: next(TypedSet(data, made, way).pictures()).items[0] for way in WAYS}
    assert len({item.prompt for item in typed.values()}) == len(WAYS)
    plain = typed.pop("plain")
    assert plain == made[0].items[0]
    for item in typed.values():
        assert dataclasses.replace(item, prompt=plain.prompt) == plain
    assert typed["UPPER"].prompt == "HOW MANY SHIPS ARE THERE"
    assert typed["double spaces"].prompt == "how  many  ships  are  there"


def test_the_table_has_a_row_for_each_way():
    row = {"questions": 4, "same": 3, "router": 1.0, "answers": 0.5, "mIoU": 0.25}
    table = as_markdown(
        {
            "name": "nano", "command": "x", "machine": machine(1),
            "forms": {"llm": "lower", "psc": "lower"}, "ways": [{"way": w, **row} for w in WAYS],
        }
    )  # fmt: skip
    assert " ".join(instruction_sets()) in table
    for way in WAYS:
        assert f"| {way} | 3 of 4 | 1.000 | 0.500 | 0.2500 |" in table
