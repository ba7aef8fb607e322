"""Several questions about one scene in one sequence of the language model.

    before | visual tokens | question 1, answer 1 | question 2, answer 2 | ...

Each question sees the part before it that all share, and itself, at the positions that it would
have alone. So a packed sequence gives every question the hidden states of its own prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geomag_edge.prompts import PromptCoder

IGNORED = -100


@dataclass(frozen=True)
class Turn:
    """A prompt's ids after the visual tokens, the answer's ids with its end, and loss weights."""

    after: tuple[int, ...]
    answer: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass
class Packed:
    """A batch of packed sequences; B scenes, T positions of text after `before` and the picture.

    Attributes:
        ids: i64[B,T].
        labels: i64[B,T], the id that each position should predict, or IGNORED.
        weights: f32[B,T] of the loss.
        segment: i64[B,T], the question's number from 1; 0 is padding.
        place: i64[B,T], position behind the visual tokens.
        seg: for each scene, (question, position in T) of every [SEG].
        spans: for each scene and question, its first position in T, the position that predicts
            the first token of the answer, and the end.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    segment: Tensor
    place: Tensor
    seg: list[list[tuple[int, int]]]
    spans: list[list[tuple[int, int, int]]]

    def to(self, device: torch.device) -> Packed:
        """The same on a device; `seg` and `spans` stay lists."""
        names = ("ids", "labels", "weights", "segment", "place")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def mask(self, shared: int) -> Tensor:
        """bool[B,1,shared + T,shared + T]: who sees whom, `shared` positions in front."""
        total = shared + self.segment.shape[1]
        segment = F.pad(self.segment, (shared, 0))
        causal = torch.ones(total, total, dtype=torch.bool, device=segment.device).tril()
        column = torch.arange(total, device=segment.device)
        common = (column < shared)[None, None]
        same = segment[:, :, None] == segment[:, None, :]
        return ((same | common) & causal)[:, None]

    def positions(self, shared: int) -> Tensor:
        """i64[B,shared + T]."""
        front = torch.arange(shared, device=self.place.device)[None].expand(len(self.place), -1)
        return torch.cat([front, self.place + shared], 1)


def pack(scenes: list[list[Turn]], seg_token_id: int, pad_id: int = 0) -> Packed:
    """Packs the turns of each scene."""
    length = max(sum(len(t.after) + len(t.answer) - 1 for t in turns) for turns in scenes)
    shape = (len(scenes), length)
    ids = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    weights = np.zeros(shape, np.float32)
    segment, place = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    seg: list[list[tuple[int, int]]] = []
    spans: list[list[tuple[int, int, int]]] = []
    for b, turns in enumerate(scenes):
        at = 0
        seg.append([])
        spans.append([])
        for q, turn in enumerate(turns):
            text = [*turn.after, *turn.answer]
            count = len(text) - 1
            first = len(turn.after) - 1
            ids[b, at : at + count] = text[:-1]
            labels[b, at + first : at + count] = text[first + 1 :]
            weights[b, at + first : at + count] = turn.weights
            segment[b, at : at + count] = q + 1
            spans[b].append((at, at + first, at + count))
            place[b, at : at + count] = np.arange(count)
            for i in range(len(turn.after), count):
                if text[i] == seg_token_id:
                    seg[-1].append((q, at + i))
            at += count
    t = torch.from_numpy
    return Packed(t(ids), t(labels), t(weights), t(segment), t(place), seg, spans)


DIGIT_WEIGHTS = (3.0, 1.5, 0.1)
"""Loss weights of hundreds, tens and units of a box's numbers: the units are below a pixel."""

VIEW_WEIGHT = 2.5
"""Loss weight of the number of a box's view."""


class TurnMaker:
    """Prompts and answers -> turns, with the tokenizer's work remembered."""

    def __init__(self, coder: PromptCoder):
        self.coder = coder
        self.end = coder.settings.eos_token_ids[0]
        self._after: dict[str, tuple[int, ...]] = {}
        self._answer: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {}
        self._psc: dict[str, tuple[int, ...]] = {}
        token = coder.text.token_to_id
        self.digits = {token(str(d)) for d in range(10)}
        self.open, self.close = token("<box>"), token("</box>")
        self.before = tuple(coder.around_image("x")[0])

    def turn(self, prompt: str, answer: str, word_weight: float) -> Turn:
        """The turn of a question; words (not digits of boxes) weigh `word_weight`."""
        if prompt not in self._after:
            self._after[prompt] = tuple(self.coder.around_image(prompt)[1])
        if answer not in self._answer:
            ids = (*self.coder.markup_ids(answer), self.end)
            self._answer[answer] = ids, self._weights(ids)
        ids, weights = self._answer[answer]
        return Turn(self._after[prompt], ids, tuple(word_weight if w == 0 else w for w in weights))

    def _weights(self, ids: tuple[int, ...]) -> tuple[float, ...]:
        """Weights of the tokens inside a box; 0 elsewhere."""
        out, inside, run = [], False, 0
        for token in ids:
            if token == self.open:
                inside = True
                out.append(0.0)
                run = -1  # the view's number comes first
            elif token == self.close:
                inside = False
                out.append(0.0)
            elif not inside:
                out.append(0.0)
            elif token in self.digits:
                out.append(VIEW_WEIGHT if run < 0 else DIGIT_WEIGHTS[min(run, 2)])
                run = run if run < 0 else run + 1
            else:  # ":" or ","
                out.append(0.1)
                run = 0
        return tuple(out)

    def psc_ids(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """PSC's ids, right-padded i64[q,L], and the place of each prompt's last id i64[q]."""
        rows = []
        for prompt in prompts:
            if prompt not in self._psc:
                self._psc[prompt] = tuple(self.coder.psc_ids(prompt)[0][0].tolist())
            rows.append(self._psc[prompt])
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, lengths - 1
