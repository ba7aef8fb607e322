"""One answer makes a bounded number of masks, whoever asks for more."""

import numpy as np
import pytest
from PIL import Image

from geomag_edge import Pipeline
from geomag_edge.errors import PromptError
from geomag_edge.prompts import MOST_MASKS
from geomag_edge.runtime.engines.values import HostValues

SMALL = Image.new("RGB", (40, 30), (90, 120, 30))


@pytest.fixture(scope="module")
def pipe(bundle):
    with Pipeline.load(bundle) as pipe:
        yield pipe


def test_as_many_as_may_be_are_made_of_a_forced_start(pipe):
    found = pipe(SMALL, "ships", "1", 1, answer_prefix="[SEG]" * (MOST_MASKS - 1))
    assert len(found.masks) >= MOST_MASKS - 1


@pytest.mark.parametrize("count", [MOST_MASKS + 1, 2000])
def test_a_forced_start_that_asks_for_more_is_refused(pipe, count):
    with pytest.raises(PromptError, match=f"asks for {count} masks, one answer has at most"):
        pipe(SMALL, "ships", answer_prefix="[SEG]" * count)


def test_a_model_that_goes_on_asking_gets_the_first_ones_and_a_note(pipe, monkeypatch):
    seg = pipe.chain.coder.settings.seg_token_id
    monkeypatch.setattr(
        HostValues, "choose", lambda self, logits: (seg, np.array([[seg]], np.int64))
    )
    found = pipe(SMALL, "ships", "1", MOST_MASKS + 8)
    assert found.token_ids == [seg] * (MOST_MASKS + 8)
    assert len(found.masks) == MOST_MASKS
    assert f"the answer asks for {MOST_MASKS + 8} masks; the first {MOST_MASKS} were made" in (
        found.notes
    )


@pytest.mark.parametrize("prefix", ["\ud800", 7, None, "x" * 30_000])
def test_a_start_that_is_no_text_is_refused(pipe, prefix):
    with pytest.raises(PromptError, match=r"answer.s start|answer_prefix"):
        pipe(SMALL, "ships", answer_prefix=prefix)
