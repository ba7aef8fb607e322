"""Where the language model looks: losses on its inside, which only training reads.

The digits of a box say nothing about where to look until the model already looks there, and a box
in a prompt is twelve digits that mean nothing until somebody says so. So one attention head of
two middle layers is shown which visual tokens matter, and the states behind those layers are asked
for the box itself. Nothing of this is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from geomag_edge.budgets import TokenBudget
from geomag_edge.model.train.losses.heads import BINS, DenseHeads
from geomag_edge.model.train.samples.data import ViewLabels, Visit
from geomag_edge.model.train.samples.packing import Packed
from geomag_edge.model.train.samples.targets import finest_view
from geomag_edge.views import image_to_view, pooling_matrix

F32 = NDArray[np.float32]
Marks = tuple[int | None, int | None, int]

FEW = 3
"""A mask's query is shown where to look if it has no more objects than this."""


class Watch:
    """Keeps what two layers of the language model did in the last forward pass.

    `name` and `object` are the layers that should look at all objects with the asked name, and at
    the one that is meant; `scores` hold their first head's scores [B,T,T], `states` what they gave
    on [B,T,D].
    """

    def __init__(self, language_model: nn.Module):
        layers = language_model.model.layers
        self.name, self.object = max(0, len(layers) - 3), max(0, len(layers) - 2)
        self.scores: dict[int, Tensor] = {}
        self.states: dict[int, Tensor] = {}
        for index in {self.name, self.object}:
            layers[index].self_attn.watch = self
            layers[index].register_forward_hook(self._keep_state(index))

    def keep_scores(self, layer: int, scores: Tensor) -> None:
        """Called by `plain_attention` with masked scores [B,H,T,T]."""
        self.scores[layer] = scores[:, 0]

    def _keep_state(self, index: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.states[index] = output

        return hook

    def clear(self) -> None:
        """Lets go of the graph."""
        self.scores.clear()
        self.states.clear()


@dataclass
class _Looks:
    """Rows of the packed batch that should look at visual tokens: weights f32[V] sum to 1."""

    scene: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    tokens: list[F32] = field(default_factory=list)

    def add(self, scene: int, rows: list[int], tokens: F32) -> None:
        total = float(tokens.sum())
        if total > 0:
            self.scene += [scene] * len(rows)
            self.row += rows
            self.weight += [1 / len(rows)] * len(rows)
            self.tokens += [tokens / total] * len(rows)

    def loss(self, scores: Tensor, front: int, shared: int) -> Tensor:
        """How far the looks are from their tokens, over what cannot be had for nothing."""
        if not self.row:
            return scores.sum() * 0
        rows = scores[self.scene, [shared + r for r in self.row]].float()  # [R,T]
        wanted = torch.from_numpy(np.stack(self.tokens)).to(rows.device)  # [R,V]
        chance = rows.log_softmax(-1)[:, front : front + wanted.shape[1]]
        spread = torch.where(wanted > 0, wanted * (wanted.clamp(min=1e-9).log() - chance), 0.0)
        weight = torch.tensor(self.weight, device=rows.device)
        return (spread.sum(1) * weight).sum() / weight.sum()


@dataclass
class _Boxes:
    """Rows whose state should tell a box f32[4] in 0..1 of a view."""

    scene: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    box: list[F32] = field(default_factory=list)

    def add(self, scene: int, rows: list[int], box: F32) -> None:
        self.scene += [scene] * len(rows)
        self.row += rows
        self.box += [box] * len(rows)

    def loss(self, states: Tensor, head: nn.Module, shared: int) -> Tensor:
        """Cross-entropy of each side's place among BINS, its neighbours nearly right."""
        if not self.row:
            return states.sum() * 0
        rows = states[self.scene, [shared + r for r in self.row]]
        logits = head(rows).float().unflatten(-1, (4, BINS))
        at = torch.from_numpy(np.stack(self.box)).to(rows.device) * BINS - 0.5
        bins = torch.arange(BINS, device=rows.device, dtype=torch.float32)
        wanted = torch.exp(-0.5 * (bins - at.clamp(0, BINS - 1).unsqueeze(-1)) ** 2)
        wanted = wanted / wanted.sum(-1, keepdim=True)
        floor = (wanted * wanted.clamp(min=1e-9).log()).sum(-1)
        return (floor - (wanted * logits.log_softmax(-1)).sum(-1)).mean()


@dataclass(frozen=True)
class Shown:
    """What the language model was shown of a step's scenes.

    Attributes:
        visits, boxes f32[B,n,4], labels: the scenes, their views, and what these hold.
        budget: of the visual tokens.
        grid: patches along a view.
    """

    visits: list[Visit]
    boxes: F32
    labels: list[ViewLabels]
    budget: TokenBudget
    grid: int

    def tokens(self, scene: int, objects: list[int], only: int | None = None) -> F32:
        """See `token_weights`."""
        return token_weights(self.labels[scene], objects, self.budget, self.grid, only)

    def finest(self, scene: int, box: Sequence[float]) -> int:
        """The finest view of a scene that shows a box (px) wholly."""
        return finest_view(tuple(box), self.boxes[scene])

    def inside(self, scene: int, box: Sequence[float]) -> F32:
        """A box (px) in 0..1 of that view."""
        view = self.boxes[scene][self.finest(scene, box)]
        return np.array(image_to_view(view.tolist(), box), np.float32)


@dataclass
class _Pointers:
    """Everything that a step's questions say of where to look."""

    by_name: _Looks = field(default_factory=_Looks)
    by_object: _Looks = field(default_factory=_Looks)
    asked: _Boxes = field(default_factory=_Boxes)
    found: _Boxes = field(default_factory=_Boxes)

    def add(
        self, shown: Shown, b: int, q: int, ids: list[Any], span: tuple[int, int, int], marks: Marks
    ) -> None:
        """One question of scene `b`; `ids` and `span` are its tokens in the packed row."""
        visit, (start, first, stop) = shown.visits[b], span
        question, subject = visit.questions[q], visit.subjects[q]
        targets, rows = list(question.targets), [first]
        if question.kind == "describe_box":
            mark = ids.index(marks[1], start)
            rows = list(range(mark, stop))
            box = np.array(image_to_view(visit.box.tolist(), question.boxes[0]), np.float32)
            self.asked.add(b, [mark], box)
            tokens = shown.tokens(b, targets, shown.finest(b, question.boxes[0]))
            self.by_name.add(b, rows, tokens)
            self.by_object.add(b, rows, tokens)
            return
        if question.kind == "find_box":
            mark = ids.index(marks[2], first)
            rows = list(range(mark, stop))
            view = shown.finest(b, question.boxes[0])
            self.by_object.add(b, rows, shown.tokens(b, targets, view))
            self.found.add(b, rows, shown.inside(b, question.boxes[0]))
        elif question.level == "pixel" and targets:
            rows = [ids.index(marks[2], first)]
            if len(targets) <= FEW:
                self.by_object.add(b, rows, shown.tokens(b, targets))
            if len(targets) == 1:
                self.found.add(b, rows, shown.inside(b, visit.scene.boxes[targets[0]]))
        if subject is not None and subject.any():
            self.by_name.add(b, rows, shown.tokens(b, np.flatnonzero(subject).tolist()))


def pointer_loss(
    watch: Watch, heads: DenseHeads, packed: Packed, shown: Shown, visual: slice, marks: Marks
) -> tuple[Tensor, dict[str, float]]:
    """Looks and boxes of one step, each a mean over its rows, and the four parts for the log.

    Args:
        watch: after the forward pass.
        heads: with `asked` and `found`.
        packed: the questions.
        shown: their scenes.
        visual: positions of the visual tokens; the questions begin behind them.
        marks: ids of `<box>`, `</box>` and [SEG].
    """
    told = _Pointers()
    for b, spans in enumerate(packed.spans):
        ids = packed.ids[b].tolist()
        for q, span in enumerate(spans):
            told.add(shown, b, q, ids, span, marks)
    front, shared = visual.start, visual.stop
    parts = {
        "look/name": told.by_name.loss(watch.scores[watch.name], front, shared),
        "look/object": told.by_object.loss(watch.scores[watch.object], front, shared),
        "asked": told.asked.loss(watch.states[watch.name], heads.asked, shared),
        "found": told.found.loss(watch.states[watch.object], heads.found, shared),
    }
    total = torch.stack(list(parts.values())).sum()
    return total, {name: float(part.detach()) for name, part in parts.items()}


def token_weights(
    label: ViewLabels, objects: list[int], budget: TokenBudget, grid: int, only: int | None = None
) -> F32:
    """How much of each visual token shows the objects, f32[V]; of view `only`, if given."""
    parts = []
    for i, shown in enumerate(label.shown):
        out = budget.crop_grid if i else budget.global_grid
        if only is not None and i != only:
            parts.append(np.zeros(out * out, np.float32))
        else:
            seen = shown[:, objects].any(1).astype(np.float32)
            parts.append(pooling_matrix(grid, out) @ seen)
    return np.concatenate(parts)


def visual_loss(
    guess: Tensor, hot: Tensor, counts: Tensor, pooling: Tensor, outputs: tuple[int, int]
) -> Tensor:
    """What pooled tokens show and how many centres they hold, read from the language model's input.

    Args:
        guess: [n,q,sum(outputs)].
        hot: f32[n,P,outputs[0]], counts f32[n,P,outputs[1]] of the patches.
        pooling: f32[q,P].
        outputs: columns of `guess`.
    """
    shown, centred = guess.float().split(list(outputs), -1)
    area = hot.shape[1] / len(pooling)
    wanted = ((pooling @ hot) * area > 0.2).float()
    number = (pooling @ counts) * area
    weight = shown.new_tensor(3.0)
    return F.binary_cross_entropy_with_logits(shown, wanted, pos_weight=weight) + 2 * (
        F.smooth_l1_loss(centred, number.log1p(), beta=0.1)
    )
