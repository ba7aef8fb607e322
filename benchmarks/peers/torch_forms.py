"""GeoMag in PyTorch as somebody would deploy it who has no exporter: eager, and `torch.compile`.

`geomag_edge.model.inference.answer` is the reference and is written to be read: it encodes crops
twice and reads the whole answer a second time for its hidden states. Here every view is encoded
once and `generate` hands out the hidden states it has, so that a comparison with these forms is
one of runtimes and not of bookkeeping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomag_edge.benchmarks.peers.agreement import Answer
from geomag_edge.budgets import TokenBudget
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

Part = Callable[..., Any]
Encoded = tuple[Tensor, Tensor, Tensor]
"""Tokens, embeddings for PSC and features for the mask head of some views, view by view."""
Views = Callable[[NDArray[np.float32]], Encoded]
"""Boxes f32[n,4] in px -> what the encoder makes of these views."""


class TorchForm:
    """One way of running the model's parts in PyTorch.

    Args:
        model: in eval mode; its parameters are shared, not copied.
        processor: its processor.
        compiled: compile the encoder, the mask head and the language model's forward pass.
        static_cache: decode with Hugging Face's static cache instead of its growing one.
    """

    def __init__(
        self,
        model: GeoMagForConditionalGeneration,
        processor: GeoMagProcessor,
        compiled: bool = False,
        static_cache: bool = False,
    ):
        self.model, self.processor, self.static_cache = model, processor, static_cache
        self.encoder: Part = model.encoder
        self.mask_head: Part = model.mask_head
        self.language_model = model.language_model
        if compiled:
            self.encoder = torch.compile(model.encoder, dynamic=True)
            self.mask_head = torch.compile(model.mask_head, dynamic=True)
            # A copy of the module's shell, so that the model itself stays eager.
            self.language_model = copy.copy(model.language_model)
            self.language_model.forward = torch.compile(model.language_model.forward, dynamic=True)

    @torch.inference_mode()
    def ask(
        self,
        image: NDArray[np.uint8],
        prompt: str,
        budget: TokenBudget,
        new_tokens: int,
        prefix: str,
    ) -> Answer:
        """One whole query: crop, encode, select, project, generate, mask.

        Args:
            image: u8[H,W,3].
            prompt: plain text.
            budget: visual tokens.
            new_tokens: ids to decode after the prefix, no fewer.
            prefix: the answer's forced start.
        """
        height, width = shape = image.shape[:2]
        views = self._views_of(image)
        select = partial(self._select, self.processor.prompt_ids(prompt), torch.tensor(image.shape))
        boxes = global_box(height, width)[None]
        tokens, embeds, features = views(boxes)
        first = select(embeds, boxes[0])
        visual = [self._project(tokens, boxes, budget.global_grid, shape)]
        if budget.crops:
            crops = self._crops(first, budget.crops, shape, views, select)
            crop_tokens, _, crop_features = views(crops)
            visual.append(self._project(crop_tokens, crops, budget.crop_grid, shape))
            features = torch.cat([features, crop_features])
            boxes = np.concatenate([boxes, crops])
        ids, queries = self._generate(prompt, torch.cat(visual), prefix, new_tokens)
        logits, quality = (out[0].float().numpy() for out in self.mask_head(features, queries))
        return Answer(ids, logits, quality, boxes, shape)

    def _views_of(self, image: NDArray[np.uint8]) -> Views:
        """Encodes views of an image, each once however often it is asked for."""
        known: dict[bytes, Encoded] = {}

        def views(boxes: NDArray[np.float32]) -> Encoded:
            new = [box for box in boxes if box.tobytes() not in known]
            if new:
                pixels = self.processor.views(image, np.stack(new)).to(self.model.dtype)
                parts = self.encoder(pixels)
                for i, box in enumerate(new):
                    known[box.tobytes()] = tuple(part[i] for part in parts)
            found = [known[box.tobytes()] for box in boxes]
            tokens, embeds, features = (torch.stack(p) for p in zip(*found, strict=True))
            return tokens, embeds, features

        return views

    def _select(
        self, prompt_ids: Tensor, shape: Tensor, embeds: Tensor, box: NDArray[np.float32]
    ) -> Candidates:
        """What PSC would look at within one view [1,...] of an image of shape i64[3]."""
        _, _, boxes, scores = self.model.psc(embeds, prompt_ids, torch.from_numpy(box), shape)
        return boxes.float().numpy(), scores.float().numpy()

    def _crops(
        self,
        first: Candidates,
        count: int,
        shape: tuple[int, int],
        views: Views,
        select: Callable[[Tensor, NDArray[np.float32]], Candidates],
    ) -> NDArray[np.float32]:
        """The boxes to look at, by what PSC sees in the whole image and again in its parts."""
        config = self.model.config
        psc = PscSettings.from_json(config.psc)

        def look_again(found: NDArray[np.float32]) -> list[Candidates]:
            embeds = views(found)[1]
            return [select(embeds[i : i + 1], box) for i, box in enumerate(found)]

        levels = useful_levels(*shape, config.view_px, config.grid, psc)
        return choose_crops(first, count, levels, psc.overlap, look_again)[0]

    def _project(
        self, tokens: Tensor, boxes: NDArray[np.float32], grid: int, shape: tuple[int, int]
    ) -> Tensor:
        """Views' tokens as the language model's, grid x grid of each, in one row [n,D]."""
        dtype = self.model.dtype
        pooling = torch.from_numpy(pooling_matrix(self.model.config.grid, grid)).to(dtype)
        places = torch.from_numpy(token_positions(boxes, grid, *shape)).to(dtype)
        return self.model.projector(tokens, pooling, places).flatten(0, 1)

    def _generate(
        self, prompt: str, visual: Tensor, prefix: str, new_tokens: int
    ) -> tuple[list[int], Tensor]:
        """Greedy `generate`: the answer's ids and the hidden states [m,D] of its [SEG]s."""
        coder, embed = self.processor.coder, self.model.get_input_embeddings()
        before, after = coder.around_image(prompt)
        forced = coder.prefix_ids(prefix)
        head = torch.tensor(before, dtype=torch.int64)
        tail = torch.tensor([*after, *forced], dtype=torch.int64)
        embeds = torch.cat([embed(head), visual.to(self.model.dtype), embed(tail)])[None]
        extra = {"cache_implementation": "static"} if self.static_cache else {}
        out = self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(coder.settings.eos_token_ids),
            pad_token_id=coder.settings.eos_token_ids[0],
            output_hidden_states=True,
            return_dict_in_generate=True,
            **extra,
        )
        new = out.sequences[0].tolist()
        # The prompt's pass and then one a token; the last token is said but never read.
        states = torch.cat([step[-1][0] for step in out.hidden_states])
        ids = [*forced, *new]
        first = embeds.shape[1] - len(forced)
        seg = coder.settings.seg_token_id
        return ids, torch.stack(
            [states[first + i] for i, t in enumerate(ids) if t == seg and first + i < len(states)]
        )
