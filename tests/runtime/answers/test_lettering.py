"""Words in a picture are letters or numbers of letters, never the same empty box for all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

import geomag_edge.runtime.answers.lettering as lettering
from geomag_edge.runtime.answers.lettering import lettered
from geomag_edge.runtime.answers.overlay import Looked, draw_overlay
from geomag_edge.runtime.images.scene import Scene

FOREIGN = "C\u00e1diz \u2013 H\u00e4fen \u043f\u043e\u0440\u0442 \u6e2f\u53e3 \U0001f6a2"


@pytest.fixture(params=["its own fonts", "no fonts"])
def system(request, monkeypatch):
    """A system with the fonts that it has, and one without any."""
    if request.param == "no fonts":
        monkeypatch.setattr(lettering, "SYSTEM_FONTS", ())
        lettering._has.cache_clear()
        lettering._font.cache_clear()
    yield request.param
    lettering._has.cache_clear()
    lettering._font.cache_clear()


def picture_of(text, font):
    page = Image.new("L", (900, 40))
    ImageDraw.Draw(page).text((4, 4), text, 255, font)
    return np.asarray(page)


def test_plain_words_stay_in_pillows_font(system):
    text, font = lettered("segment the ships", 18)
    assert text == "segment the ships"
    expected = picture_of(text, ImageFont.load_default(18))
    np.testing.assert_array_equal(picture_of(text, font), expected)


def test_different_letters_look_different(system):
    seen = set()
    for word in FOREIGN.split():
        text, font = lettered(word, 18)
        seen.add(picture_of(text, font).tobytes())
    assert len(seen) == len(FOREIGN.split())


def test_letters_that_no_font_has_are_numbers(monkeypatch):
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ())
    assert lettered("port \u6e2f\u00e9", 18)[0] == "port \\u6e2f\\xe9"


def test_accents_typed_apart_are_one_letter(system):
    assert lettered("Ca\u0301diz", 18)[0] == lettered("C\u00e1diz", 18)[0]


def test_a_font_of_the_system_is_taken_where_it_has_the_letters():
    try:
        ImageFont.truetype("DejaVuSans.ttf", 18)
    except OSError:
        pytest.skip("apt install fonts-dejavu-core")
    text, font = lettered("H\u00e4fen \u043f\u043e\u0440\u0442", 18)
    assert text == "H\u00e4fen \u043f\u043e\u0440\u0442"
    assert font.getname()[0] == "DejaVu Sans"


@settings(max_examples=40)
@given(st.text(st.characters(), max_size=60))
def test_any_text_can_be_drawn(text):
    shown, font = lettered(text, 15)
    assert "\n" not in shown
    shown.encode()
    assert picture_of(shown, font).shape == (40, 900)


WORDS = {
    "scripts": FOREIGN, "signs": "\x1b[31m\u202e\ud800\x00", "accents": "\u0301" * 50,
    "long": "\u6e2f" * 900,
}  # fmt: skip


@pytest.mark.parametrize("text", WORDS.values(), ids=WORDS)
def test_an_overlay_takes_any_words(system, text):
    with Scene.open(Image.new("RGB", (60, 40))) as scene:
        answer = {"prompt": text, "text": text, "boxes": []}
        made = draw_overlay(scene, answer, [], [], Looked([0, 0, 60, 60]))
    assert made.width > 60
