"""Spelling: one sentence, however it is typed, in the form that a tower was trained on."""

import re
import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from geomag_edge.spelling import FORMS, form_of_vocabulary, spelt

whole_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HOT = "aA \u200d\u200c\u0301\u0323\u0345\u00ad\u00b4\u1ffd\u212a\u0130\u03a3\uff21\u3000\u2026<>!"
"""Characters that change each other, or are changed twice."""


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300)
@given(whole_text | st.text(HOT, max_size=12))
def test_a_text_in_a_towers_form_stays_as_it_is(form, text):
    once = spelt(text, form)
    assert spelt(once, form) == once
    assert "  " not in once


@pytest.mark.parametrize("form", FORMS)
def test_no_letter_or_compatibility_form_is_spelt_in_two_ways(form):
    for first, last in ((0, 0x3400), (0xA640, 0xAC00), (0xF900, 0x10000), (0x1D400, 0x1D800)):
        for code in range(first, last):
            once = spelt(f"a{chr(code)}b", form)
            assert spelt(once, form) == once, hex(code)


def wide(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


WAYS = {
    "Segment the buildings": "segment the buildings",
    "SEGMENT THE BUILDINGS": "segment the buildings",
    "segment  the \t buildings": "segment the buildings",
    "segment\nthe\r\nbuildings": "segment the buildings",
    "segment\u00a0the\u2009build\u00adings": "segment the buildings",
    "\ufeffsegment the\u200b buildings\u200e": "segment the buildings",
    wide("segment\u3000the\u3000buildings"): "segment the buildings",
    "\x00segment\x07 the buildings\x7f": "segment the buildings",
    "seg\u200dment the build\u200cings": "segment the buildings",
    "the \u201cold\u201d building\u2019s roof": 'the "old" building\'s roof',
    "ships \u2013 near\u2014the pier\u2026": "ships - near-the pier...",
    "cafe\u0301": "caf\u00e9",
    "100 m\u00b2, \u00bd": "100 m2, 1\u20442",
    "the ﬁelds": "the fields",
    "STRASSE": "strasse",
    "STRA\u1e9eE": "stra\u00dfe",
    "\u0130stanbul": "i\u0307stanbul",
    "I\u0131": "i\u0131",
    "\u039f\u0394\u039f\u03a3": "\u03bf\u03b4\u03bf\u03c2",
    "🚢 Ships": "🚢 ships",
    "分割建筑物。": "分割建筑物。",
    "קטע את הבניינים": "קטע את הבניינים",
}


@pytest.mark.parametrize("typed", WAYS)
def test_a_lower_case_tower_reads_every_way_of_typing_as_one(typed):
    assert spelt(typed, "lower").strip() == WAYS[typed]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("Segment  the\u00a0Buildings", "Segment the Buildings"),
        (wide("Segment\u3000it?"), "Segment it?"),
        ("don\u2019t \u2013 \u201cnow\u201d\u2026", 'don\'t - "now"...'),
        ("Cafe\u0301 of 100 m\u00b2", "Caf\u00e9 of 100 m\u00b2"),
        ("分割\uff21\uff11\uff0c谢谢\uff1f", "分割A1\uff0c谢谢\uff1f"),  # Chinese has wide marks
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # Persian spelling
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("build\u200cings", "buildings"),
        (wide("[SEG]"), "[SEG]"),
        ("\ufeff\u200b\u200d", ""),
    ],
)
def test_a_cased_tower_keeps_capitals_and_what_its_languages_write(typed, read):
    assert spelt(typed, "cased") == read


@given(st.text(string.printable, max_size=60))
def test_siglips_first_towers_read_what_transformers_makes_of_a_text(text):
    text = re.sub("[\x00-\x08\x0e-\x1b\x7f]", "", text)
    # The three steps of transformers' `SiglipTokenizer.canonicalize_text`
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    assert spelt(text, "canonical").strip() == re.sub(r"\s+", " ", bare).strip()


latin = st.text("abcdefghijklmnopqrstuvwxyzéüø0123456789,.?'- ", min_size=1, max_size=40)


@given(latin)
def test_typing_in_any_of_these_ways_changes_nothing(text):
    ways = [
        text.upper(), text.capitalize(), text.replace(" ", "  "), text.replace(" ", "\u00a0"),
        wide(text), unicodedata.normalize("NFD", text), f"\ufeff{text}\u200b",
    ]  # fmt: skip
    for form in ("lower", "canonical"):
        assert {spelt(way, form) for way in ways} == {spelt(text, form)}
    assert {spelt(way, "cased") for way in ways[2:]} == {spelt(text, "cased")}


LOWER_LINES = ["segment the ships near the pier", "how many planes are there?", "usa, uk and eu"]
CASED_LINES = ["Segment the Ships near the Pier", "The harbour of New York", "how many planes?"]


def byte_level(lines, suffix=""):
    """As CLIP's (a suffix marks a word's end), Qwen's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|IM_START|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), end_of_word_suffix=suffix,
    )  # fmt: skip
    tokenizer.train_from_iterator(lines * 20, trainer)
    return tokenizer


def sentence_piece(lines, model=models.BPE, trainer=trainers.BpeTrainer):
    """As Llama 2's, Gemma's and SigLIP's: pieces with U+2581, bytes for unknown letters."""
    tokenizer = Tokenizer(model())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.train_from_iterator(
        lines * 20,
        trainer(vocab_size=600, special_tokens=["<unk>", "<S>", *bytes_], show_progress=False),
    )
    return tokenizer


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (lambda: byte_level(LOWER_LINES), "lower"),
        (lambda: byte_level(CASED_LINES), "cased"),
        (lambda: byte_level(LOWER_LINES, "</w>"), "lower"),
        (lambda: sentence_piece(LOWER_LINES), "lower"),
        (lambda: sentence_piece(CASED_LINES), "cased"),
        (lambda: sentence_piece(LOWER_LINES, models.Unigram, trainers.UnigramTrainer), "lower"),
        (lambda: Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581The", -1.0)], 0)), "cased"),
        (lambda: Tokenizer(models.WordLevel({"[UNK]": 0, "ships": 1, "A": 2}, "[UNK]")), "lower"),
        (lambda: Tokenizer(models.WordLevel({"[UNK]": 0, "Ships": 1}, "[UNK]")), "cased"),
        (lambda: byte_level(["\u0441\u0435\u0433\u043c"]), "lower"),
        (lambda: byte_level(["\u0421\u0435\u0433\u043c"]), "cased"),
    ],
)
def test_a_tokenizers_vocabulary_tells_whether_it_was_trained_on_capitals(make, form):
    assert form_of_vocabulary(make(), "") == form


def test_added_tokens_and_the_templates_own_words_tell_nothing():
    tokenizer = byte_level([*LOWER_LINES, "USER: ", "ASSISTANT:"])
    tokenizer.add_tokens([AddedToken("<BOX>")])
    assert form_of_vocabulary(tokenizer, "") == "cased"
    assert form_of_vocabulary(tokenizer, "USER: <image>\n{prompt}\nASSISTANT:") == "lower"


def test_a_tokenizer_that_lowers_case_itself_is_a_lower_case_one_whatever_its_vocabulary():
    tokenizer = sentence_piece(CASED_LINES)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase(),
            normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581"),
        ]
    )  # fmt: skip
    assert form_of_vocabulary(tokenizer, "") == "lower"
