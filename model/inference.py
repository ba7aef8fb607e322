"""The reference: one readable pass from image and prompt to answer, in PyTorch alone.

Shares the model's modules and the geometry of `geomag_edge.views` with the deployed chain, and
nothing else: no engine, no explicit cache (Hugging Face's own `generate` decodes), so that the
chain has something independent to be compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomag_edge.budgets import LEVELS, TokenBudget
from geomag_edge.model.geomag import GeoMagForConditionalGeneration
from geomag_edge.model.processor import GeoMagProcessor
from geomag_edge.views import (
    Candidates,
    PscSettings,
    choose_crops,
    global_box,
    pooling_matrix,
    token_positions,
    useful_levels,
)
from geomag_edge.views_on_data import data_view, fill_view, look_on_data, patch_shares


@dataclass
class ReferenceAnswer:
    """What the model says of an image.

    Attributes:
        token_ids: the answer's ids, a forced prefix included.
        level: the routed task level.
        view_boxes: f32[n,4] px, global first.
        mask_logits: [m,n,M,M], one for each [SEG] and view; quality: [m,n].
    """

    token_ids: list[int]
    level: str
    view_boxes: NDArray[np.float32]
    mask_logits: Tensor
    quality: Tensor


@torch.inference_mode()
def answer(
    model: GeoMagForConditionalGeneration,
    processor: GeoMagProcessor,
    image: NDArray[np.uint8],
    prompt: str,
    budget: TokenBudget | None = None,
    max_new_tokens: int = 64,
    answer_prefix: str = "",
    crops: NDArray[np.float32] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> ReferenceAnswer:
    """Answers a prompt about an image.

    Args:
        model: the model, in eval mode.
        processor: its processor.
        image: u8[H,W,3].
        prompt: plain text.
        budget: None for the routed level's own.
        max_new_tokens: at most so many ids after the prefix.
        answer_prefix: the answer's forced start.
        crops: f32[k,4] px, looked at in place of what PSC would choose.
        valid: bool[H,W], the pixels that hold data; None where all do.
    """
    config = model.config
    sight = _Sight(model, processor, image, valid, processor.prompt_ids(prompt))
    boxes = sight.whole_box()[None]
    tokens, embeds, features = sight.encode(boxes)
    granularity, first = sight.select(embeds, boxes[0])
    level = LEVELS[int(granularity.argmax())]
    budget = budget or config.budgets[level]
    if budget.crops:
        if crops is None:
            crops = sight.choose(first, boxes[0], budget.crops)
        if len(crops):
            crop_tokens, _, crop_features = sight.encode(crops)
            boxes = np.concatenate([boxes, crops])
            tokens = torch.cat([tokens, crop_tokens])
            features = torch.cat([features, crop_features])
    visual = [sight.project(tokens[:1], boxes[:1], budget.global_grid)]
    if len(boxes) > 1:
        visual.append(sight.project(tokens[1:], boxes[1:], budget.crop_grid))
    ids, hidden = _generate(
        model, processor, prompt, torch.cat(visual), answer_prefix, max_new_tokens
    )
    queries = hidden[torch.tensor(ids) == config.seg_token_id]
    mask_logits, quality = model.mask_head(features, queries)
    return ReferenceAnswer(ids, level, boxes, mask_logits, quality)


@dataclass(frozen=True)
class _Sight:
    """The image as the model sees it for one prompt: `answer`'s arguments, and the prompt's ids."""

    model: GeoMagForConditionalGeneration
    processor: GeoMagProcessor
    image: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None
    prompt_ids: Tensor

    @property
    def psc(self) -> PscSettings:
        return PscSettings.from_json(self.model.config.psc)

    def whole_box(self) -> NDArray[np.float32]:
        """The global view, around what holds data."""
        height, width = self.image.shape[:2]
        if self.valid is None:
            return global_box(height, width)
        (top, bottom), (left, right) = (
            np.flatnonzero(self.valid.any(axis))[[0, -1]] for axis in (1, 0)
        )
        return data_view((left, top, right + 1, bottom + 1), height, width)

    def encode(self, boxes: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, embeds and features of these views."""
        if self.valid is None:
            views = self.processor.views(self.image, boxes)
        else:
            views = _without_nodata(self.processor, self.image, self.valid, boxes)
        return self.model.encoder(views.to(self.model.dtype))

    def select(self, embeds: Tensor, box: NDArray[np.float32]) -> tuple[Tensor, Candidates]:
        """The prompt's granularity, and where this view may be magnified."""
        size = self.image.shape[0], self.image.shape[1]
        shape = torch.tensor(self.image.shape)
        granularity, *seen = self.model.psc(embeds, self.prompt_ids, torch.from_numpy(box), shape)
        shares = None
        if self.valid is not None:
            shares = patch_shares(self.valid, box, self.model.config.grid, size)
        look = (seen[0].numpy(), seen[1].numpy(), seen[2].numpy())
        return granularity, look_on_data(look, box, size, self.psc, shares)[1:]

    def choose(
        self, first: Candidates, whole: NDArray[np.float32], count: int
    ) -> NDArray[np.float32]:
        """At most `count` crops f32[k,4], found by looking again where it pays."""

        def look_again(found: NDArray[np.float32]) -> list[Candidates]:
            return [self.select(self.encode(box[None])[1], box)[1] for box in found]

        config, side = self.model.config, math.ceil(whole[2] - whole[0])
        levels = useful_levels(side, side, config.view_px, config.grid, self.psc)
        return choose_crops(first, count, levels, self.psc.overlap, look_again)[0]

    def project(self, tokens: Tensor, boxes: NDArray[np.float32], grid: int) -> Tensor:
        """Views' tokens, pooled to `grid` a side and placed, for the LLM: [n*grid*grid,D]."""
        height, width = self.image.shape[:2]
        pooling = torch.from_numpy(pooling_matrix(self.model.config.grid, grid))
        places = torch.from_numpy(token_positions(boxes, grid, height, width))
        return self.model.projector(tokens, pooling, places).flatten(0, 1)


def _without_nodata(
    processor: GeoMagProcessor,
    image: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    boxes: NDArray[np.float32],
) -> Tensor:
    """Views f32[n,3,S,S] whose pixels without data are continued from those with data."""
    mean, std = (row.numpy()[:, None, None] for row in processor.mean_std)
    grey = np.rint(mean[:, 0, 0] * 255).astype(np.uint8)
    views = processor.views(np.where(valid[..., None], image, grey), boxes).numpy()
    blank = (grey / 255 - mean[:, 0, 0]) / std[:, 0, 0]
    data = np.repeat(valid[..., None].astype(np.uint8) * np.uint8(255), 3, axis=2)
    shares = (processor.views(data, boxes).numpy() * std + mean)[:, 0]
    return torch.from_numpy(
        np.stack([fill_view(v, s, blank) for v, s in zip(views, shares, strict=True)])
    )


def _generate(
    model: GeoMagForConditionalGeneration,
    processor: GeoMagProcessor,
    prompt: str,
    visual: Tensor,
    answer_prefix: str,
    max_new_tokens: int,
) -> tuple[list[int], Tensor]:
    """Hugging Face's greedy `generate`; then the answer's hidden states [len(ids),D]."""
    coder, embed = processor.coder, model.get_input_embeddings()
    before, after = coder.around_image(prompt)
    prefix = coder.prefix_ids(answer_prefix)
    head = torch.tensor(before, dtype=torch.int64)
    tail = torch.tensor([*after, *prefix], dtype=torch.int64)
    prompt_embeds = torch.cat([embed(head), visual, embed(tail)])[None]
    new = model.language_model.generate(
        inputs_embeds=prompt_embeds,
        attention_mask=torch.ones(prompt_embeds.shape[:2], dtype=torch.int64),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(coder.settings.eos_token_ids),
        pad_token_id=coder.settings.eos_token_ids[0],
    )[0].tolist()
    if new and new[-1] in coder.settings.eos_token_ids:
        new.pop()
    ids = [*prefix, *new]
    whole = torch.cat([prompt_embeds[0], embed(torch.tensor(new, dtype=torch.int64))])[None]
    states = model.language_model.model(inputs_embeds=whole, use_cache=False).last_hidden_state[0]
    return ids, states[len(states) - len(ids) :]
