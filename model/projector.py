"""The projector: patch tokens -> pooled visual tokens in the LLM's space, with their place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geomag_edge.model.config import GeoMagConfig

FREQUENCIES = 6
"""Octaves of the Fourier features that carry a token's position."""


class GeoMagProjector(nn.Module):
    """`projector.onnx`: pools by a host-made matrix, projects, adds the embedding of the box."""

    def __init__(self, config: GeoMagConfig):
        super().__init__()
        token_dim = config.vision_config.hidden_size
        hidden = config.text_config.hidden_size
        self.norm = nn.LayerNorm(token_dim)
        self.up = nn.Linear(token_dim, hidden)
        self.down = nn.Linear(hidden, hidden)
        self.place = nn.Linear(5 * (2 * FREQUENCIES + 1), hidden)

    def forward(self, tokens: Tensor, pooling: Tensor, positions: Tensor) -> Tensor:
        """tokens [n,P,Dv], pooling [q,P], positions [n,q,5] -> visual [n,q,D].

        The columns of `positions` are those of `geomag_edge.views.token_positions`. They and
        their angles, up to 100 rad, are float32 in a half-precision model too.
        """
        pooled = pooling @ self.norm(tokens)  # [n,q,Dv]
        visual = self.down(nn.functional.gelu(self.up(pooled)))
        octaves = torch.tensor(
            [math.pi * 2**i for i in range(FREQUENCIES)], dtype=torch.float32, device=tokens.device
        )
        angles = (positions.unsqueeze(-1) * octaves).flatten(2)  # [n,q,5*FREQUENCIES]
        place = torch.cat([positions, angles.sin(), angles.cos()], dim=-1)
        return visual + self.place(place.to(visual.dtype))
