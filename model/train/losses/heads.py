"""Small heads that exist only while training: dense labels teach the encoder to see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomag_edge.model.config import GeoMagConfig
from geomag_edge.model.train.samples.pool import ALL_CLASSES, COLOUR_NAMES
from geomag_edge.model.train.samples.targets import Noun
from geomag_edge.scenes.catalog import SIZES

PIXEL_CLASSES = len(ALL_CLASSES) + 1
PIXEL_OUTPUTS = PIXEL_CLASSES + len(COLOUR_NAMES) + 2
PATCH_OUTPUTS = len(ALL_CLASSES) + len(COLOUR_NAMES)
CENTRE_OUTPUTS = len(ALL_CLASSES)
BINS = 50
"""Places along a view's side among which the heads for boxes choose."""


class DenseHeads(nn.Module):
    """Linear readings of the encoder's outputs."""

    def __init__(self, config: GeoMagConfig):
        super().__init__()
        token_dim = config.vision_config.hidden_size
        self.pixels = nn.Conv2d(config.mask["feature_dim"], 4 * PIXEL_OUTPUTS, 1)
        self.norm = nn.LayerNorm(token_dim)
        self.patches = nn.Linear(token_dim, PATCH_OUTPUTS + CENTRE_OUTPUTS + 4)
        dim = config.text_config.hidden_size
        self.visual = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, PATCH_OUTPUTS + CENTRE_OUTPUTS)
        )
        self.asked, self.found = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * BINS)) for _ in range(2)
        )
        rows = len(ALL_CLASSES) + len(COLOUR_NAMES) + len(SIZES)
        self.words = nn.Embedding(rows + 1, dim, padding_idx=rows)

    def forward(self, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [n,P,Dv], features [n,Cf,F,F] -> pixels [n,PIXEL_OUTPUTS,2F,2F], patches [n,P,*].

        The columns of `patches`: what it shows (PATCH_OUTPUTS), log counts of object centres by
        class (CENTRE_OUTPUTS), the box of an object centred there (4, in 0..1 of the view).
        """
        pixels = F.pixel_shuffle(self.pixels(features), 2)
        return pixels, self.patches(self.norm(tokens))

    def noun_queries(self, nouns: Sequence[Noun]) -> Tensor:
        """A mask query [k,D] for each noun: the sum of its words, without any prompt or picture.

        With them the mask head learns what to do before the language model can speak; later they
        show the language model what a [SEG] should hold.
        """
        rows = []
        for noun in nouns:
            at = len(ALL_CLASSES)
            colour = at + COLOUR_NAMES.index(noun.colour) if noun.colour else -1
            at += len(COLOUR_NAMES)
            size = at + SIZES.index(noun.size) if noun.size else -1
            rows.append([ALL_CLASSES.index(noun.cls), colour, size])
        found = torch.tensor(rows, device=self.words.weight.device).reshape(-1, 3)
        found[found < 0] = self.words.padding_idx
        return self.words(found).sum(1)
