"""One training step: scenes and questions in, losses out.

The same modules, the same op and the same geometry as in `geomag_edge.model.inference`, batched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.train.losses import losses
from geomag_edge.model.train.losses.answers import answer_part
from geomag_edge.model.train.losses.attention import additive
from geomag_edge.model.train.losses.heads import CENTRE_OUTPUTS, PATCH_OUTPUTS, DenseHeads
from geomag_edge.model.train.losses.masking import masks_part
from geomag_edge.model.train.losses.pointers import Shown, Watch, pointer_loss, visual_loss
from geomag_edge.model.train.samples import data
from geomag_edge.model.train.samples.packing import Packed, TurnMaker, pack
from geomag_edge.model.train.samples.targets import (
    Noun,
    answer_text,
    centre_labels,
    mask_targets,
    nouns_in,
    patch_labels,
    pixel_labels,
)
from geomag_edge.views import PscSettings, choose_crops, pooling_matrix, token_positions

F32 = NDArray[np.float32]

WORD_WEIGHTS = {"image": 5.0, "region": 1.0, "pixel": 1.0}
"""Loss weight of a word of an answer by level: an image-level answer is a single word."""


MASKS_PER_SCENE = 5
"""Mask queries of a scene that are decoded in a step."""


@dataclass(frozen=True)
class LossWeights:
    """What counts how much; 0 leaves a part of the model out of the step."""

    dense: float = 1.0
    psc: float = 1.0
    router: float = 0.2
    nouns: float = 0.0
    answer: float = 0.0
    mask: float = 0.0
    align: float = 0.0
    visual: float = 0.0
    pointer: float = 0.0


@dataclass(frozen=True)
class CropMix:
    """Where crops come from: PSC's own choice (the rest is near the truth, or anywhere)."""

    own: float = 0.4
    near: float = 0.5


@dataclass
class Encoded:
    """Views of all scenes, n each: tokens [B*n,P,Dv], embeds [B*n,P,De], features [B*n,Cf,F,F]."""

    tokens: Tensor
    embeds: Tensor
    features: Tensor


class Trainee:
    """The model with everything that a step needs."""

    def __init__(
        self, model: GeoMagForConditionalGeneration, heads: DenseHeads, turns: TurnMaker,
        each: Callable[..., Iterator] = map,
    ):  # fmt: skip
        self.model, self.heads, self.turns, self.each = model, heads, turns, each
        config = model.config
        self.grid, self.view_px = config.grid, config.view_px
        self.mask_side = 8 * config.grid
        self.mean_std = np.array([config.image_mean, config.image_std], np.float32)
        self.psc = PscSettings.from_json(config.psc)
        self.watch = Watch(model.language_model)
        token = turns.coder.text.token_to_id
        self.marks = token("<box>"), token("</box>"), config.seg_token_id

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def losses(
        self,
        visits: list[data.Visit],
        budget: TokenBudget,
        weights: LossWeights,
        mix: CropMix,
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of a step and its parts for the log."""
        prompts, granularity = self._read(visits)
        boxes, encoded = self._look(visits, prompts, budget, mix, rng)
        labels = list(self.each(lambda v, b: data.view_labels(v, b, self.grid), visits, boxes))
        parts = {
            "psc": self._psc_loss(encoded.embeds, prompts, labels),
            "router": _router_loss(granularity, visits),
        }
        logs: dict[str, float] = {}
        patches = self._patch_targets(visits, boxes, labels)
        if weights.dense:
            parts["dense"] = self._dense_loss(encoded, visits, boxes, labels, patches)
        if weights.nouns:
            parts["nouns"], logs["noun_iou"] = self._noun_loss(visits, boxes, encoded.features, rng)
        if weights.answer:
            shown = Shown(visits, boxes, labels, budget, self.grid)
            said, found = self._answer_losses(shown, encoded, patches, weights, rng)
            parts, logs = parts | said, logs | found
        total = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        logs |= {name: float(part.detach()) for name, part in parts.items()}
        return total, logs | {"loss": float(total.detach())}

    def _look(
        self,
        visits: list[data.Visit],
        prompts: Tensor,
        budget: TokenBudget,
        mix: CropMix,
        rng: np.random.Generator,
    ) -> tuple[F32, Encoded]:
        """The views of each scene, f32[B,n,4] px with the whole first, and what they gave."""
        whole_boxes = np.stack([v.box for v in visits])[:, None]  # [B,1,4]
        whole = self._encode(visits, whole_boxes)
        with torch.no_grad():
            maps = self._relevance(whole.embeds, prompts, visits).sigmoid()
        if not budget.crops:
            return whole_boxes, whole
        chosen = [
            self._crops(v, m, budget.crops, mix, rng) for v, m in zip(visits, maps, strict=True)
        ]
        crop_boxes = np.stack(chosen)
        crops = self._encode(visits, crop_boxes)
        boxes = np.concatenate([whole_boxes, crop_boxes], 1)
        return boxes, _interleave(whole, crops, len(visits), budget.crops)

    def _answer_losses(
        self,
        shown: Shown,
        encoded: Encoded,
        patches: tuple[Tensor, ...],
        weights: LossWeights,
        rng: np.random.Generator,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What the language model's answers are judged by, and how right they are."""
        visits, boxes = shown.visits, shown.boxes
        packed, hidden, visual = self._speak(visits, boxes, encoded.tokens, shown.budget, rng)
        answer, logs = answer_part(self.model.language_model.lm_head, packed, hidden, visits)
        parts = {"answer": answer}
        if weights.mask:
            parts["mask"], logs["mask_iou"] = self._mask_loss(
                packed, hidden, visits, boxes, encoded.features, rng
            )
        if weights.align:
            parts["align"] = self._align_loss(packed, hidden, visits)
        if weights.visual:
            parts["visual"] = self._visual_loss(visual, patches, shown.budget)
        if weights.pointer:
            front = len(self.turns.before)
            places = slice(front, front + sum(v.shape[1] for v in visual))
            parts["pointer"], found = pointer_loss(
                self.watch, self.heads, packed, shown, places, self.marks
            )
            logs |= found
        self.watch.clear()
        return parts, logs

    def _encode(self, visits: list[data.Visit], boxes: F32) -> Encoded:
        pixels = self.each(
            lambda v, b: data.view_pixels(v, b, self.mean_std, self.view_px), visits, boxes
        )
        views = self._tensor(np.concatenate(list(pixels)))
        views = views.contiguous(memory_format=torch.channels_last)
        tokens, embeds, features = self.model.encoder(views)
        return Encoded(tokens, embeds, features)

    def _read(self, visits: list[data.Visit]) -> tuple[Tensor, Tensor]:
        """Unit prompt embeddings [Q,De], in the order of the scenes, and router logits [Q,3]."""
        ids, last = self.turns.psc_ids([p for v in visits for p in v.prompts])
        embeds = self.model.psc.prompt_tower(ids.to(self.device), last.to(self.device))
        return F.normalize(embeds.float(), dim=-1), self.model.psc.router(embeds)

    def _relevance(self, embeds: Tensor, prompts: Tensor, visits: list[data.Visit]) -> Tensor:
        """Relevance logits [B,G,G] of the global views for the focus questions."""
        counts = np.cumsum([0, *(len(v.questions) for v in visits)])[:-1]
        focus = self._tensor(counts + np.array([v.focus for v in visits]))
        similarity = torch.einsum("bpd,bd->bp", embeds.float(), prompts[focus])
        logits = self.model.psc.relevance_scale * similarity + self.model.psc.relevance_bias
        return logits.unflatten(1, (self.grid, self.grid))

    def _crops(
        self,
        visit: data.Visit,
        relevance: Tensor,
        count: int,
        mix: CropMix,
        rng: np.random.Generator,
    ) -> F32:
        """Crop boxes f32[count,4] of one scene."""
        if rng.random() < mix.own:
            with torch.no_grad():
                found = self.model.psc.select(relevance.float(), self._tensor(visit.box))
            first = (found[0].cpu().numpy(), found[1].cpu().numpy())
            chosen, _ = choose_crops(first, count, 1, self.psc.overlap, lambda _: [])
        else:
            chosen = np.zeros((0, 4), np.float32)
        rest = []
        for _ in range(count - len(chosen)):
            near = rng.random() < mix.near / max(1e-6, 1 - mix.own)
            question = (
                visit.focus if rng.random() < 0.5 else int(rng.integers(len(visit.questions)))
            )
            if not near:
                question = next(
                    (i for i, s in enumerate(visit.subjects) if s is None or not s.any()), question
                )
            rest.append(data.crop_near(visit, question, rng, self.psc.windows, self.grid))
        return np.concatenate([chosen, np.array(rest, np.float32).reshape(-1, 4)])

    def _psc_loss(self, embeds: Tensor, prompts: Tensor, labels: list[data.ViewLabels]) -> Tensor:
        scale, bias = self.model.psc.relevance_scale, self.model.psc.relevance_bias
        views = embeds.float().unflatten(0, (len(labels), -1))  # [B,n,P,De]
        logits, wanted, at = [], [], 0
        for scene, label in zip(views, labels, strict=True):
            count = len(label.has_subject)
            mine = prompts[at : at + count]
            at += count
            kept = self._tensor(np.flatnonzero(label.has_subject))
            logits.append((scale * torch.einsum("npd,qd->qnp", scene, mine) + bias)[kept])
            wanted.append(self._tensor(label.relevant)[kept])
        return losses.relevance_loss(
            torch.cat([x.flatten(0, 1) for x in logits]),
            torch.cat([x.flatten(0, 1) for x in wanted]),
        )

    def _patch_targets(
        self, visits: list[data.Visit], boxes: F32, labels: list[data.ViewLabels]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `losses.patch_loss` compares with: hot, counts, boxes, at."""
        hot, counts, places, at = [], [], [], []
        patch_count, view = self.grid**2, 0
        for visit, scene_boxes, label in zip(visits, boxes, labels, strict=True):
            for box, shown in zip(scene_boxes, label.shown, strict=True):
                hot.append(patch_labels(shown, visit.scene))
                count, local, patch = centre_labels(visit.scene, box, self.grid)
                counts.append(count)
                places.append(local)
                at.append(patch + view * patch_count)
                view += 1
        return (
            self._tensor(np.stack(hot)), self._tensor(np.stack(counts)),
            self._tensor(np.concatenate(places)), self._tensor(np.concatenate(at)),
        )  # fmt: skip

    def _dense_loss(
        self,
        encoded: Encoded,
        visits: list[data.Visit],
        boxes: F32,
        labels: list[data.ViewLabels],
        targets: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        pixels, patches = self.heads(encoded.tokens, encoded.features)
        dense = [
            pixel_labels(samples, visit.scene)
            for visit, label in zip(visits, labels, strict=True)
            for samples in label.samples
        ]
        wanted = self._tensor(np.stack(dense))
        if pixels.shape[-1] != wanted.shape[-1]:
            pixels = F.interpolate(pixels.float(), size=wanted.shape[-2:], mode="bilinear")
        return losses.pixel_loss(pixels, wanted) + losses.patch_loss(patches, *targets)

    def _visual_loss(
        self, visual: list[Tensor], targets: tuple[Tensor, ...], budget: TokenBudget
    ) -> Tensor:
        """What the visual tokens of the whole and of the crops still tell."""
        hot, counts = (t.unflatten(0, (len(visual[0]), -1)) for t in targets[:2])  # [B,n,P,*]
        parts = []
        for tokens, some, grid in (
            (visual[0], slice(0, 1), budget.global_grid),
            *((v, slice(1, None), budget.crop_grid) for v in visual[1:]),
        ):
            pooling = self._tensor(pooling_matrix(self.grid, grid))
            guess = self.heads.visual(tokens).unflatten(1, (-1, len(pooling))).flatten(0, 1)
            parts.append(
                visual_loss(
                    guess,
                    hot[:, some].flatten(0, 1),
                    counts[:, some].flatten(0, 1),
                    pooling,
                    (PATCH_OUTPUTS, CENTRE_OUTPUTS),
                )
            )
        return torch.stack(parts).mean()

    def _speak(
        self,
        visits: list[data.Visit],
        boxes: F32,
        tokens: Tensor,
        budget: TokenBudget,
        rng: np.random.Generator | None = None,
    ) -> tuple[Packed, Tensor, list[Tensor]]:
        """Packed questions, the language model's hidden states behind the picture [B,T,D], and the
        visual tokens of the whole and of the crops [B,*,D]. With `rng` boxes move a little."""
        scenes = [
            [
                self.turns.turn(prompt, answer_text(q, scene_boxes, rng), WORD_WEIGHTS[q.level])
                for q, prompt in zip(visit.questions, visit.prompts, strict=True)
            ]
            for visit, scene_boxes in zip(visits, boxes, strict=True)
        ]
        packed = pack(scenes, self.model.config.seg_token_id).to(self.device)
        parts = self._visual(visits, boxes, tokens, budget)
        visual = torch.cat(parts, 1)
        embed = self.model.get_input_embeddings()
        before = embed(torch.tensor(self.turns.before, device=self.device))[None].expand(
            len(visits), -1, -1
        )
        whole = torch.cat([before, visual.to(before.dtype), embed(packed.ids)], 1)
        if torch.is_autocast_enabled(self.device.type):
            whole = whole.to(torch.bfloat16)
        shared = before.shape[1] + visual.shape[1]
        hidden = self.model.language_model.model(
            inputs_embeds=whole,
            attention_mask={"full_attention": additive(packed.mask(shared), whole.dtype)},
            position_ids=packed.positions(shared),
            use_cache=False,
        ).last_hidden_state
        return packed, hidden[:, shared:], parts

    def _visual(
        self, visits: list[data.Visit], boxes: F32, tokens: Tensor, budget: TokenBudget
    ) -> list[Tensor]:
        """Visual tokens [B,*,D] at a budget: of the whole, then of all crops."""
        batch, views = boxes.shape[:2]
        tokens = tokens.unflatten(0, (batch, views))
        parts = []
        for some, grid in ((slice(0, 1), budget.global_grid), (slice(1, None), budget.crop_grid)):
            if not grid:
                continue
            places = np.concatenate(
                [
                    token_positions(b[some], grid, *v.scene.ids.shape)
                    for v, b in zip(visits, boxes, strict=True)
                ]
            )
            visual = self.model.projector(
                tokens[:, some].flatten(0, 1),
                self._tensor(pooling_matrix(self.grid, grid)),
                self._tensor(places),
            )
            parts.append(visual.unflatten(0, (batch, -1)).flatten(1, 2))
        return parts

    def _mask_loss(
        self,
        packed: Packed,
        hidden: Tensor,
        visits: list[data.Visit],
        boxes: F32,
        features: Tensor,
        rng: np.random.Generator,
    ) -> tuple[Tensor, float]:
        """Masks of the questions that a [SEG] answers."""
        some = [(b, found[:MASKS_PER_SCENE]) for b, found in enumerate(packed.seg) if found]
        queries = [(b, hidden[b, [t for _, t in found]]) for b, found in some]  # in random order
        masks = self.each(
            lambda x: data.masks_of(
                visits[x[0]], [q for q, _ in x[1]], boxes[x[0]], self.mask_side
            ),
            some,
        )
        return masks_part(self.model.mask_head, queries, list(masks), features, boxes.shape[1], rng)

    def _noun_loss(
        self, visits: list[data.Visit], boxes: F32, features: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, float]:
        """One noun a scene, as a mask query without words."""
        nouns = [(b, data.random_noun(visit, rng)) for b, visit in enumerate(visits)]
        some = [(b, noun) for b, noun in nouns if noun is not None]
        queries = [(b, self.heads.noun_queries([noun])) for b, noun in some]

        def mask(b: int, noun: Noun) -> F32:
            scene = visits[b].scene
            return mask_targets(scene.ids, [noun.rows(scene)], boxes[b], self.mask_side)

        masks = self.each(lambda x: mask(*x), some)
        return masks_part(self.model.mask_head, queries, list(masks), features, boxes.shape[1], rng)

    def _align_loss(self, packed: Packed, hidden: Tensor, visits: list[data.Visit]) -> Tensor:
        """Where a name alone says what to segment, [SEG] should hold that noun's query."""
        nouns, states = [], []
        for b, (visit, found) in enumerate(zip(visits, packed.seg, strict=True)):
            for question, at in found:
                asked, subject = visit.questions[question], visit.subjects[question]
                if subject is not None and int(subject.sum()) == len(asked.targets):
                    nouns.append(nouns_in(asked.answer)[0])
                    states.append(hidden[b, at])
        if not nouns:
            return hidden.sum() * 0
        return losses.align_loss(torch.stack(states), self.heads.noun_queries(nouns))


def _router_loss(granularity: Tensor, visits: list[data.Visit]) -> Tensor:
    wanted = torch.tensor([LEVELS.index(q.level) for v in visits for q in v.questions])
    return F.cross_entropy(granularity.float(), wanted.to(granularity.device))


def _interleave(whole: Encoded, crops: Encoded, batch: int, count: int) -> Encoded:
    """Global views [B,...] and crops [B*K,...] -> [B*(1+K),...], each scene's views together."""
    joined = [
        torch.cat([a.unsqueeze(1), b.unflatten(0, (batch, count))], 1).flatten(0, 1)
        for a, b in (
            (whole.tokens, crops.tokens),
            (whole.embeds, crops.embeds),
            (whole.features, crops.features),
        )
    ]
    return Encoded(*joined)
