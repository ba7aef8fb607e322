"""Text in and text out: what the LLM reads, what PSC reads, and what an answer's markup means.

Runs on `tokenizers` alone, so the same code serves the PyTorch reference and the runtime.

Markup in answers:
    [SEG]                       one mask; its hidden state is the mask query.
    <box>v:x0,y0,x1,y1</box>    one box inside view v (0 = the whole, 1.. = the crops in order), in
                                thousandths of that view's side, so small things keep precision.
    [SEG]<box>...</box>         the same object, as a mask and as a box.

A prompt is words: a box in it names a place, and all other markup is read letter by letter.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from geomag_edge.disk.tokenizer import read_tokenizer, tokenizing
from geomag_edge.errors import BundleError, PromptError
from geomag_edge.spelling import FORMS, form_of_vocabulary, spelt
from geomag_edge.views import global_box, image_to_view, view_to_image

SEG_TOKEN = "[SEG]"
IMAGE_TOKEN = "<image>"
MAX_PROMPT_CHARS = 20_000
MOST_MASKS = 32
"""Masks of one answer; each takes memory and time like a small question of its own."""


@dataclass(frozen=True)
class PromptSettings:
    """How prompts become ids; stored in the manifest as `prompt`.

    Attributes:
        template: what the LLM reads, with `<image>` and `{prompt}` once each.
        bos_token_id: put first, or None.
        eos_token_ids: any of them ends the answer.
        seg_token_id: id of [SEG].
        context: positions that the LLM has.
        psc_context: longest prompt of the PSC tower, in ids.
        psc_pad_to: PSC ids are padded to this length, or None.
        psc_pad_id: the id used for that.
        text_form, psc_text_form: how each tower's text is spelt, one of `spelling.FORMS`; None
            where a bundle does not say so yet; `PromptCoder` then chooses.
    """

    template: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    seg_token_id: int
    context: int
    psc_context: int
    psc_pad_to: int | None = None
    psc_pad_id: int = 0
    text_form: str | None = None
    psc_text_form: str | None = None

    def __post_init__(self) -> None:
        for form in (self.text_form, self.psc_text_form):
            if form is not None and form not in FORMS:
                raise BundleError(
                    f"text form {form!r} is unknown: this program spells {', '.join(FORMS)}"
                )

    def to_json(self) -> dict:
        """The manifest's form."""
        data = asdict(self) | {"eos_token_ids": list(self.eos_token_ids)}
        undeclared = [key for key in ("text_form", "psc_text_form") if data[key] is None]
        return {key: value for key, value in data.items() if key not in undeclared}

    @classmethod
    def from_json(cls, data: dict) -> PromptSettings:
        """Reads the manifest's form."""

        def perhaps(key: str) -> int | None:
            return None if data[key] is None else int(data[key])

        return cls(
            template=str(data["template"]),
            bos_token_id=perhaps("bos_token_id"),
            eos_token_ids=tuple(int(i) for i in data["eos_token_ids"]),
            seg_token_id=int(data["seg_token_id"]),
            context=int(data["context"]),
            psc_context=int(data["psc_context"]),
            psc_pad_to=perhaps("psc_pad_to"),
            psc_pad_id=int(data["psc_pad_id"]),
            text_form=data.get("text_form"),
            psc_text_form=data.get("psc_text_form"),
        )


class PromptCoder:
    """Prompts -> ids for the LLM and for PSC; ids -> text.

    `settings` always says how the towers' texts are spelt.
    """

    def __init__(self, settings: PromptSettings, text: Tokenizer, psc: Tokenizer):
        self.text, self.psc = text, psc
        self._turn = threading.Lock()  # a tokenizer is set before each use, by one thread at a time
        with tokenizing():
            self.settings = replace(
                settings,
                text_form=settings.text_form or form_of_vocabulary(text, settings.template),
                psc_text_form=settings.psc_text_form or "lower",  # CLIP's and SigLIP's all were
            )
        for part in (IMAGE_TOKEN, "{prompt}"):
            if settings.template.count(part) != 1:
                raise BundleError(f"the prompt template must hold {part} exactly once")

    @classmethod
    def load(cls, settings: PromptSettings, text: Path, psc: Path) -> PromptCoder:
        """Reads the two tokenizer.json files."""
        return cls(settings, read_tokenizer(text), read_tokenizer(psc))

    def check(self, prompt: str) -> str:
        """The prompt without surrounding space.

        Raises:
            PromptError: not text, empty, absurdly long, or not encodable.
        """
        prompt = _checked_text(prompt, "the prompt").strip()
        if not spelt(prompt, "cased").strip():
            raise PromptError("the prompt is empty: say what to look for")
        return prompt

    def around_image(self, prompt: str) -> tuple[list[int], list[int]]:
        """Ids before and after the visual tokens, the prompt spelt as the LLM was trained.

        `[SEG]` or `<image>` in the prompt are words, not commands.
        """
        before, after = self.settings.template.split(IMAGE_TOKEN)
        head, tail = self._fill(before, prompt), self._fill(after, prompt)
        if self.settings.bos_token_id is not None:
            head = [self.settings.bos_token_id, *head]
        return head, tail

    def markup_ids(self, text: str) -> list[int]:
        """Ids of text that may hold markup: the template, or the start of an answer."""
        with self._turn:
            return _ids(self.text, text, markup=True) if text else []

    def prefix_ids(self, prefix: str) -> list[int]:
        """Ids of an answer's forced start: its words spelt as the LLM's, its markup kept.

        Raises:
            PromptError: not text, absurdly long, not encodable, or more than `MOST_MASKS` [SEG].
        """
        prefix = _checked_text(prefix, "the answer's start")
        ids = self.markup_ids(_spelt_around(MARKUP, prefix, str(self.settings.text_form)))
        if (asked := ids.count(self.settings.seg_token_id)) > MOST_MASKS:
            raise PromptError(
                f"the answer's start asks for {asked} masks, one answer has at most {MOST_MASKS}: "
                "ask more than once"
            )
        return ids

    def psc_ids(self, prompt: str) -> tuple[NDArray[np.int64], bool]:
        """Ids [1,L] for the PSC tower, the prompt spelt as that tower was trained, and whether it
        had to be cut to its context."""
        form = str(self.settings.psc_text_form)
        words = spelt_prompt(prompt, form) or spelt_prompt(prompt, "lower")
        with self._turn:
            ids = _ids(self.psc, words, ends=True)
        limit = self.settings.psc_context
        cut = len(ids) > limit
        if cut:
            ids = [*ids[: limit - 1], ids[-1]]  # the end-of-text id stays last
        pad_to = self.settings.psc_pad_to
        if pad_to is not None:
            ids = ids + [self.settings.psc_pad_id] * (pad_to - len(ids))
        return np.array([ids], np.int64), cut

    def _fill(self, part: str, prompt: str) -> list[int]:
        """Ids of a part of the template, the prompt put in as plain text where it belongs."""
        lead, slot, rest = part.partition("{prompt}")
        if not slot:
            return self.markup_ids(lead)
        form = str(self.settings.text_form)
        words = spelt_prompt(prompt, form) or spelt_prompt(prompt, "lower")
        with self._turn:
            plain = _ids(self.text, words)
            if {self.settings.seg_token_id, self.text.token_to_id(IMAGE_TOKEN)} & {*plain}:
                # Words of the vocabulary itself, as in a list of words, are found all the same.
                words = words.replace(SEG_TOKEN, "[ SEG ]").replace(IMAGE_TOKEN, "< image >")
                plain = _ids(self.text, words)
        return [*self.markup_ids(lead), *plain, *self.markup_ids(rest)]

    def decode(self, ids: list[int]) -> str:
        """Ids -> text; [SEG] stays visible, ids outside the vocabulary and ends are left out."""
        size = self.text.get_vocab_size()
        known = [i for i in ids if i < size and i not in self.settings.eos_token_ids]
        with self._turn, tokenizing():
            return self.text.decode(known, skip_special_tokens=False).strip()


def _checked_text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"{what} must be text, got {type(text).__name__}")
    if len(text) > MAX_PROMPT_CHARS:
        raise PromptError(f"{what} has {len(text)} characters, the limit is {MAX_PROMPT_CHARS}")
    try:
        text.encode()
    except UnicodeEncodeError as e:  # half a surrogate pair, from bytes that were no UTF-8
        raise PromptError(
            f"{what} is not valid text at character {e.start + 1}: give it in UTF-8"
        ) from e
    return text


def _ids(tokenizer: Tokenizer, text: str, markup: bool = False, ends: bool = False) -> list[int]:
    """Ids of text.

    Args:
        tokenizer: of a tower.
        text: to encode.
        markup: special tokens in it are commands; else they are words.
        ends: with the tokens that the tower's texts begin and end with.
    """
    with tokenizing():
        tokenizer.encode_special_tokens = not markup
        ids: list[int] = tokenizer.encode(text, add_special_tokens=ends).ids
        return ids


_NUMBER = r"\s*(\d{1,6})\s*"
_TYPED_NUMBER = r"[\s\u200b\u2060\ufeff]*[0-9]{1,6}[\s\u200b\u2060\ufeff]*"
_PLACE = re.compile(rf"(<box>{_TYPED_NUMBER}:{_TYPED_NUMBER}(?:,{_TYPED_NUMBER}){{3}}</box>)", re.I)
_NO_NUMBER = re.compile(r"[\s\u200b\u2060\ufeff]+")
_LIKE_BOX = re.compile(r"<(?=/?box>)", re.I)
MARKUP = re.compile(r"(\[SEG\]|<image>|<box>[^<]*(?:</box>|$)|</?box>)")
"""Whatever of a text is no words."""


def spelt_prompt(prompt: str, form: str) -> str:
    """A prompt in a tower's form, without surrounding space.

    A whole box, as `prompt_with_box` writes it, stays one; what only looks like its marks, or
    comes to do so by being spelt (`\uff1cbox\uff1e`), is taken apart.
    """
    return _spelt_around(_PLACE, prompt, form, apart=True).strip()


def _spelt_around(markup: re.Pattern[str], text: str, form: str, apart: bool = False) -> str:
    """Text whose words are spelt, and the markup that lies between them kept."""
    parts = markup.split(text)
    words = [spelt(part, form) for part in parts[::2]]
    if apart:
        words = [_LIKE_BOX.sub("< ", part) for part in words]
    parts[::2] = words
    if apart:
        parts[1::2] = [_NO_NUMBER.sub("", part.lower()) for part in parts[1::2]]
    return "".join(parts)


def box_markup(view: int, local: Sequence[float]) -> str:
    """The markup of a box.

    Args:
        view: 0 = the whole, 1.. = the crops in order.
        local: x0, y0, x1, y1 in that view's own 0..1 coordinates; clipped to 0..0.999 so that
            every number has three digits, which makes them easier to learn.
    """
    places = ",".join(f"{min(999, max(0, round(v * 1000))):03d}" for v in local)
    return f"<box>{view}:{places}</box>"


def prompt_with_box(prompt: str, box: Sequence[float], height: int, width: int) -> str:
    """A prompt about a box (x0, y0, x1, y1 in px of the image): the box follows as markup of the
    whole view, whose frame is the centred square of the image's longer side."""
    local = image_to_view(global_box(height, width).tolist(), box)
    return f"{prompt} {box_markup(0, local)}"


_BOX = re.compile(rf"<box>{_NUMBER}:{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}</box>")


def prompt_in_view(prompt: str, view_box: Sequence[float], height: int, width: int) -> str:
    """A prompt whose boxes are of the whole view (`prompt_with_box`), for a global view of only a
    part of the image, `view_box` in px."""
    whole = global_box(height, width).tolist()

    def moved(match: re.Match[str]) -> str:
        view, *local = (int(x) for x in re.findall("[0-9]+", match[0]))
        box = view_to_image(whole, [v / 1000 for v in local])
        return match[0] if view else box_markup(0, image_to_view(view_box, box))

    return _PLACE.sub(moved, prompt)


def named_boxes(
    text: str, view_boxes: NDArray[np.float32], height: int, width: int
) -> list[tuple[list[float] | None, int | None]]:
    """The boxes that an answer names, each with the mask that goes with it.

    Args:
        text: the answer.
        view_boxes: f32[n,4], the view boxes in the order the model saw them, global first.
        height, width: of the image.

    Returns:
        For each box of the text: [x0,y0,x1,y1] in pixels, clipped to the image, or None if it
        points at nothing (an unknown view, no area inside the image); and which of the text's
        [SEG] stands right before it, or None.
    """
    found: list[tuple[list[float] | None, int | None]] = []
    for match in _BOX.finditer(text):
        lead = text[: match.start()]
        seg = lead.count(SEG_TOKEN) - 1 if lead.rstrip().endswith(SEG_TOKEN) else None
        view, *local = (int(x) for x in match.groups())
        box = None
        if view < len(view_boxes):
            x0, y0, x1, y1 = view_to_image(
                view_boxes[view].astype(float).tolist(), [v / 1000 for v in local]
            )
            x0, x1 = max(0.0, x0), min(float(width), x1)
            y0, y1 = max(0.0, y0), min(float(height), y1)
            box = [x0, y0, x1, y1] if x1 > x0 and y1 > y0 else None
        found.append((box, seg))
    return found
