"""One training step: scenes and questions in, losses out.

The same modules, the same op and the same geometry as in `geomag_edge.model.inference`, batched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.train import data, losses
from geomag_edge.model.train.heads import DenseHeads
from geomag_edge.model.train.packing import IGNORED, Packed, TurnMaker, pack
from geomag_edge.model.train.targets import (
    answer_text,
    centre_labels,
    mask_targets,
    nouns_in,
    patch_labels,
    pixel_labels,
)
from geomag_edge.views import PscSettings, choose_crops, pooling_matrix, token_positions

F32 = NDArray[np.float32]

WORD_WEIGHTS = {"image": 3.0, "region": 1.0, "pixel": 1.0}
"""Loss weight of a word of an answer by level: an image-level answer is a single word."""


MASKS_PER_SCENE = 2
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

    def __init__(self, model: GeoMagForConditionalGeneration, heads: DenseHeads, turns: TurnMaker):
        self.model, self.heads, self.turns = model, heads, turns
        config = model.config
        self.grid, self.view_px = config.grid, config.view_px
        self.mean_std = np.array([config.image_mean, config.image_std], np.float32)
        self.psc = PscSettings.from_json(config.psc)

    def losses(
        self, visits: list[data.Visit], budget: TokenBudget, weights: LossWeights, mix: CropMix,
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The weighted loss of a step and its parts for the log."""
        whole_boxes = np.stack([v.box for v in visits])[:, None]  # [B,1,4]
        whole = self._encode(visits, whole_boxes)
        prompts, granularity = self._read(visits)
        with torch.no_grad():
            maps = self._relevance(whole.embeds, prompts, visits).sigmoid()
        if budget.crops:
            crop_boxes = np.stack(
                [
                    self._crops(v, m, budget.crops, mix, rng)
                    for v, m in zip(visits, maps, strict=True)
                ]
            )
            crops = self._encode(visits, crop_boxes)
            boxes = np.concatenate([whole_boxes, crop_boxes], 1)
            encoded = _interleave(whole, crops, len(visits), budget.crops)
        else:
            boxes, encoded = whole_boxes, whole
        labels = [data.view_labels(v, b, self.grid) for v, b in zip(visits, boxes, strict=True)]
        parts = {
            "psc": self._psc_loss(encoded.embeds, prompts, labels),
            "router": _router_loss(granularity, visits),
        }
        logs: dict[str, float] = {}
        if weights.dense:
            parts["dense"] = self._dense_loss(encoded, visits, boxes, labels)
        if weights.nouns:
            parts["nouns"], logs["noun_iou"] = self._noun_loss(visits, boxes, encoded.features, rng)
        if weights.answer:
            packed, hidden = self._speak(visits, boxes, encoded.tokens, budget)
            parts["answer"], logs["word_accuracy"] = self._answer_loss(packed, hidden)
            if weights.mask:
                parts["mask"], logs["mask_iou"] = self._mask_loss(
                    packed, hidden, visits, boxes, encoded.features
                )
            if weights.align:
                parts["align"] = self._align_loss(packed, hidden, visits)
        total = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        logs |= {name: float(part.detach()) for name, part in parts.items()}
        return total, logs | {"loss": float(total.detach())}

    def _encode(self, visits: list[data.Visit], boxes: F32) -> Encoded:
        pixels = [
            data.view_pixels(v, b, self.mean_std, self.view_px)
            for v, b in zip(visits, boxes, strict=True)
        ]
        views = torch.from_numpy(np.concatenate(pixels))
        views = views.contiguous(memory_format=torch.channels_last)
        tokens, embeds, features = self.model.encoder(views)
        return Encoded(tokens, embeds, features)

    def _read(self, visits: list[data.Visit]) -> tuple[Tensor, Tensor]:
        """Unit prompt embeddings [Q,De], in the order of the scenes, and router logits [Q,3]."""
        ids, last = self.turns.psc_ids([p for v in visits for p in v.prompts])
        embeds = self.model.psc.prompt_tower(ids, last)
        return F.normalize(embeds.float(), dim=-1), self.model.psc.router(embeds)

    def _relevance(self, embeds: Tensor, prompts: Tensor, visits: list[data.Visit]) -> Tensor:
        """Relevance logits [B,G,G] of the global views for the focus questions."""
        counts = np.cumsum([0, *(len(v.questions) for v in visits)])[:-1]
        focus = torch.from_numpy(counts + np.array([v.focus for v in visits]))
        similarity = torch.einsum("bpd,bd->bp", embeds.float(), prompts[focus])
        logits = self.model.psc.relevance_scale * similarity + self.model.psc.relevance_bias
        return logits.unflatten(1, (self.grid, self.grid))

    def _crops(
        self, visit: data.Visit, relevance: Tensor, count: int, mix: CropMix,
        rng: np.random.Generator,
    ) -> F32:  # fmt: skip
        """Crop boxes f32[count,4] of one scene."""
        if rng.random() < mix.own:
            with torch.no_grad():
                found = self.model.psc.select(relevance.float(), torch.from_numpy(visit.box))
            first = (found[0].numpy(), found[1].numpy())
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
            kept = torch.from_numpy(np.flatnonzero(label.has_subject))
            logits.append((scale * torch.einsum("npd,qd->qnp", scene, mine) + bias)[kept])
            wanted.append(torch.from_numpy(label.relevant)[kept])
        return losses.relevance_loss(
            torch.cat([x.flatten(0, 1) for x in logits]),
            torch.cat([x.flatten(0, 1) for x in wanted]),
        )

    def _dense_loss(
        self, encoded: Encoded, visits: list[data.Visit], boxes: F32, labels: list[data.ViewLabels]
    ) -> Tensor:
        pixels, patches = self.heads(encoded.tokens, encoded.features)
        dense, hot, counts, places, at = [], [], [], [], []
        patch_count, view = self.grid**2, 0
        for visit, scene_boxes, label in zip(visits, boxes, labels, strict=True):
            for box, samples, shown in zip(scene_boxes, label.samples, label.shown, strict=True):
                dense.append(pixel_labels(samples, visit.scene))
                hot.append(patch_labels(shown, visit.scene))
                count, local, patch = centre_labels(visit.scene, box, self.grid)
                counts.append(count)
                places.append(local)
                at.append(patch + view * patch_count)
                view += 1
        wanted = torch.from_numpy(np.stack(dense))
        if pixels.shape[-1] != wanted.shape[-1]:
            pixels = F.interpolate(pixels.float(), size=wanted.shape[-2:], mode="bilinear")
        return losses.pixel_loss(pixels, wanted) + losses.patch_loss(
            patches,
            torch.from_numpy(np.stack(hot)),
            torch.from_numpy(np.stack(counts)),
            torch.from_numpy(np.concatenate(places)),
            torch.from_numpy(np.concatenate(at)),
        )

    def _speak(
        self, visits: list[data.Visit], boxes: F32, tokens: Tensor, budget: TokenBudget
    ) -> tuple[Packed, Tensor]:
        """Packed questions and the language model's hidden states behind the picture [B,T,D]."""
        scenes = [
            [
                self.turns.turn(prompt, answer_text(q, scene_boxes), WORD_WEIGHTS[q.level])
                for q, prompt in zip(visit.questions, visit.prompts, strict=True)
            ]
            for visit, scene_boxes in zip(visits, boxes, strict=True)
        ]
        packed = pack(scenes, self.model.config.seg_token_id)
        visual = self._visual(visits, boxes, tokens, budget)
        embed = self.model.get_input_embeddings()
        before = embed(torch.tensor(self.turns.before))[None].expand(len(visits), -1, -1)
        whole = torch.cat([before, visual.to(before.dtype), embed(packed.ids)], 1)
        if torch.is_autocast_enabled("cpu"):
            whole = whole.to(torch.bfloat16)
        shared = before.shape[1] + visual.shape[1]
        hidden = self.model.language_model.model(
            inputs_embeds=whole,
            attention_mask={"full_attention": packed.mask(shared)},
            position_ids=packed.positions(shared),
            use_cache=False,
        ).last_hidden_state
        return packed, hidden[:, shared:]

    def _visual(
        self, visits: list[data.Visit], boxes: F32, tokens: Tensor, budget: TokenBudget
    ) -> Tensor:
        """Visual tokens [B,V,D] at a budget."""
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
                torch.from_numpy(pooling_matrix(self.grid, grid)),
                torch.from_numpy(places),
            )
            parts.append(visual.unflatten(0, (batch, -1)).flatten(1, 2))
        return torch.cat(parts, 1)

    def _answer_loss(self, packed: Packed, hidden: Tensor) -> tuple[Tensor, float]:
        asked = packed.labels != IGNORED
        wanted, weights = packed.labels[asked], packed.weights[asked]
        logits = self.model.language_model.lm_head(hidden[asked])
        with torch.no_grad():
            words = weights == WORD_WEIGHTS["image"]
            right = (logits.argmax(-1) == wanted)[words].float().mean()
        return losses.answer_loss(logits, wanted, weights), float(right)

    def _mask_loss(
        self, packed: Packed, hidden: Tensor, visits: list[data.Visit], boxes: F32, features: Tensor
    ) -> tuple[Tensor, float]:
        features = features.unflatten(0, boxes.shape[:2])
        logits, quality, wanted = [], [], []
        for b, (visit, found) in enumerate(zip(visits, packed.seg, strict=True)):
            if not found:
                continue
            found = found[:MASKS_PER_SCENE]  # in random order
            questions, at = [q for q, _ in found], torch.tensor([t for _, t in found])
            got = self.model.mask_head(features[b], hidden[b, at].to(features.dtype))
            logits.append(got[0].flatten(0, 1))
            quality.append(got[1].flatten())
            side = got[0].shape[-1]
            wanted.append(torch.from_numpy(data.masks_of(visit, questions, boxes[b], side)))
        if not logits:
            return hidden.sum() * 0, float("nan")
        loss, iou = losses.mask_loss(
            torch.cat(logits), torch.cat(quality), torch.cat([x.flatten(0, 1) for x in wanted])
        )
        return loss, float(iou)

    def _noun_loss(
        self, visits: list[data.Visit], boxes: F32, features: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, float]:
        """One noun a scene, as a mask query without words."""
        features = features.unflatten(0, boxes.shape[:2])
        logits, quality, wanted = [], [], []
        for visit, scene_boxes, scene in zip(visits, boxes, features, strict=True):
            noun = data.random_noun(visit, rng)
            if noun is None:
                continue
            query = self.heads.noun_queries([noun])
            got = self.model.mask_head(scene, query.to(scene.dtype))
            logits.append(got[0][0])
            quality.append(got[1][0])
            side = got[0].shape[-1]
            rows = noun.rows(visit.scene)
            wanted.append(mask_targets(visit.scene.ids, [rows], scene_boxes, side)[0])
        if not logits:
            return features.sum() * 0, float("nan")
        target = torch.from_numpy(np.concatenate(wanted))
        loss, iou = losses.mask_loss(torch.cat(logits), torch.cat(quality), target)
        return loss, float(iou)

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
    return F.cross_entropy(granularity.float(), wanted)


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
