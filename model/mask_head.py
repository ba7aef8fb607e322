"""The mask head: a SAM-like two-way decoder from [SEG] hidden states to masks.

Source: Segment Anything (arXiv 2304.02643), section "Lightweight mask decoder"; here every
(query, view) pair is decoded on its own, so a mask does not depend on what else was asked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomag_edge.model.config import GeoMagConfig
from geomag_edge.model.encoder import LayerNorm2d


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another, in a reduced inner width."""

    def __init__(self, dim: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, inner) for _ in range(3))
        self.out = nn.Linear(inner, dim)
        self.attend: Callable[..., Tensor] = F.scaled_dot_product_attention
        """Training on CPUs puts a faster form here (`geomag_edge.model.train.losses.attention`)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [b,t,C], k and v [b,s,C] -> [b,t,C]."""
        split = [
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q(q), self.k(k), self.v(v))
        ]
        mixed = self.attend(*split)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and the image, then the image attends to the tokens."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        inner = dim // 2
        self.self_attn = CrossAttention(dim, heads, dim)
        self.to_image = CrossAttention(dim, heads, inner)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.to_tokens = CrossAttention(dim, heads, inner)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def forward(
        self, tokens: Tensor, image: Tensor, place: Tensor, prompt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens [b,t,C], image [b,s,C], place [s,C], prompt [b,t,C] -> tokens, image."""
        q = tokens + prompt
        tokens = self.norms[0](tokens + self.self_attn(q, q, tokens))
        tokens = self.norms[1](tokens + self.to_image(tokens + prompt, image + place, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        image = self.norms[3](image + self.to_tokens(image + place, tokens + prompt, tokens))
        return tokens, image


class GeoMagMaskHead(nn.Module):
    """`mask_head.onnx`. M = 4 F."""

    def __init__(self, config: GeoMagConfig):
        super().__init__()
        dim, heads = config.mask["feature_dim"], config.mask["heads"]
        self.side = 2 * config.grid  # F
        self.query = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.quality_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.place = nn.Parameter(torch.zeros(self.side**2, dim))
        self.blocks = nn.ModuleList(TwoWayBlock(dim, heads) for _ in range(config.mask["depth"]))
        self.final = CrossAttention(dim, heads, dim // 2)
        self.final_norm = nn.LayerNorm(dim)
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.hyper = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim // 8)
        )
        self.quality = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """features [n,Cf,F,F], queries [m,D] -> mask_logits [m,n,M,M], quality [m,n] in 0..1."""
        n, dim, side, _ = features.shape
        m = queries.shape[0]
        image = features.flatten(2).transpose(1, 2)  # [n,F*F,Cf]
        image = image.unsqueeze(0).expand(m, -1, -1, -1).flatten(0, 1)  # [m*n,F*F,Cf]
        query = self.query(queries).unsqueeze(1).expand(-1, n, -1).reshape(m * n, 1, dim)
        tokens, image = self.decode(image, query)
        pixels = self.upscale(image.transpose(1, 2).reshape(m * n, dim, side, side))
        weights = self.hyper(tokens[:, 1]).unsqueeze(1)  # [m*n,1,Cf/8]
        logits = (weights @ pixels.flatten(2)).reshape(m, n, 4 * side, 4 * side)
        quality = torch.sigmoid(self.quality(tokens[:, 0])).reshape(m, n)
        return logits, quality

    def decode(self, image: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """One query a view: image [b,F*F,Cf], query [b,1,Cf] -> tokens [b,2,Cf] and the image."""
        prompt = torch.cat([self.quality_token.expand(image.shape[0], -1, -1), query], dim=1)
        tokens, place = prompt, self.place.to(image.dtype)
        for block in self.blocks:
            tokens, image = block(tokens, image, place, prompt)
        attended = self.final(tokens + prompt, image + place, image)
        return self.final_norm(tokens + attended), image
