"""What masks are called, and an answer's text as people read it."""

import pytest

from geomag_edge.runtime.answers.wording import cut_short, mask_names, words_shown

PROMPT = "segment the ships and the buildings"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("the ships [SEG] the buildings [SEG]", ["the ships", "the buildings"]),
        ("the ships [SEG], and the buildings [SEG].", ["the ships", "the buildings"]),
        ("the ships [SEG][SEG]", ["the ships", "the ships"]),
        ("[SEG]", [PROMPT]),
        (" . [SEG]", [PROMPT]),
        ("[SEG] the andirons [SEG]", [PROMPT, "the andirons"]),
        ("the ship [SEG]<box>0:000,700,037,761</box> the pier [SEG]", ["the ship", "the pier"]),
        ("there are no ships", []),
        ("", []),
    ],
)
def test_a_mask_is_called_what_stands_before_it(text, names):
    assert mask_names(text, PROMPT) == names


def test_a_box_in_the_prompt_is_no_part_of_a_name():
    assert mask_names("[SEG]", "segment this <box>0:000,000,100,100</box>") == ["segment this"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the building [SEG]<box>0:000,700,037,761</box>", "the building"),
        ("the ships [SEG] the buildings [SEG]", "the ships (1) the buildings (2)"),
        ("3", "3"),
        ("[SEG]", ""),
        ("<box>0:000,700,037,7", ""),  # cut in the middle
    ],
)
def test_people_are_shown_no_markup(text, shown):
    assert words_shown(text) == shown


@pytest.mark.parametrize(
    ("stopped", "said"), [("end", False), ("length", True), ("deadline", True)]
)
def test_an_answer_that_was_cut_says_so(stopped, said):
    assert (cut_short({"stopped": stopped}) is not None) == said
