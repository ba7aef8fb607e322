"""Sequences come back as they were, and are of as many kinds of questions as there are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomag_edge.calibration.quantization.capture import capture
from geomag_edge.calibration.quantization.sequences import (
    COUNT,
    Spoken,
    chosen_questions,
    from_arrays,
    spoken_of,
    to_arrays,
)
from geomag_edge.calibration.sets.calibrating import open_calibration_set
from geomag_edge.manifest import Bundle


@given(st.integers(1, 2000))
def test_as_many_questions_are_chosen_as_there_are_up_to_a_limit(count):
    chosen = chosen_questions(count)
    assert len(chosen) == min(count, COUNT)
    assert chosen <= set(range(count))
    assert chosen == chosen_questions(count)


def test_the_chosen_ones_follow_no_cycle():
    """Levels and budgets take turns in cycles of 2, 3, 4 and 8."""
    chosen = np.array(sorted(chosen_questions(1000)))
    for cycle in (2, 3, 4, 8):
        assert set(chosen % cycle) == set(range(cycle))


def test_an_answer_begins_with_the_prompts_last_position():
    steps = [np.zeros((5, 4), np.float32), np.ones((1, 4), np.float32), np.full((1, 4), 1e6)]
    spoken = spoken_of(steps)
    assert (spoken.tokens, spoken.answer) == (7, 4)
    assert np.isfinite(spoken.embeds).all()


def test_they_are_stored_and_read_and_damage_is_noticed():
    given = [Spoken(np.ones((n, 2), np.float16), n - 1) for n in (3, 5)]
    arrays = to_arrays(given)
    for one, back in zip(given, from_arrays(arrays), strict=True):
        assert back.answer == one.answer
        assert np.array_equal(back.embeds, one.embeds)
    assert from_arrays(to_arrays([])) == []
    with pytest.raises(ValueError, match="sequence 1 has no answer"):
        from_arrays(arrays | {"answers": np.array([2, 5])})
    with pytest.raises(LookupError):
        from_arrays({})


def test_a_calibration_keeps_what_the_llm_read(bundle):
    opened = Bundle.open(bundle)
    found = capture(opened, open_calibration_set("scenes:1:2:96", 12), threads=1).scales.spoken
    assert len(found) == 12
    width = opened.manifest.decoder.hidden
    for one in found:
        assert one.embeds.shape == (one.tokens, width)
        assert 0 < one.answer < one.tokens
