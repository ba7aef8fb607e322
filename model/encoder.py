"""The vision encoder: views -> patch tokens, patch embeddings in the joint space, feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, SiglipVisionModel

from geomag_edge.errors import CheckpointError
from geomag_edge.model.config import GeoMagConfig

DETAIL_DEPTH = 4
"""Convolutions of the detail stem; each widens what it sees by half a patch."""


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [n, C, h, w], kept whole as one LayerNormalization node."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, h, w] -> the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DetailStem(nn.Module):
    """A small convolution network beside the tower: outlines and small things.

    Transformers learn to see shapes slowly ("Early Convolutions Help Transformers See Better",
    arXiv 2106.14881). What this adds to the tower's patch embeddings and to the neck starts at
    zero, so that a pretrained tower is what it was until training finds a use for it.
    """

    def __init__(self, token_dim: int, feature_dim: int, cell_px: int, depth: int):
        super().__init__()
        self.cells = nn.Conv2d(3, feature_dim, cell_px, stride=cell_px)
        self.norms = nn.ModuleList(LayerNorm2d(feature_dim) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Conv2d(feature_dim, feature_dim, 3, padding=1) for _ in range(depth)
        )
        self.to_tokens = nn.Conv2d(feature_dim, token_dim, 2, stride=2)
        self.to_neck = nn.Conv2d(feature_dim, feature_dim, 1)
        self.to_tokens.starts_at_zero = self.to_neck.starts_at_zero = True

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """views [n,3,S,S] -> for the tower [n,P,Dv], for the neck [n,Cf,F,F]."""
        x = self.cells(views)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(F.gelu(norm(x)))
        return self.to_tokens(x).flatten(2).transpose(1, 2), self.to_neck(x)


class FeatureNeck(nn.Module):
    """Patch tokens plus a shallow look at the pixels -> the mask head's feature map.

    Transformer patches alone are too coarse for outlines, so a convolution stem of half the
    patch size adds what the tokens have averaged away. F = 2 G.
    """

    def __init__(self, token_dim: int, feature_dim: int, patch_px: int):
        super().__init__()
        if patch_px % 2:
            raise CheckpointError(f"a patch size of {patch_px} is odd: the mask head needs even")
        stem_px = patch_px // 2
        self.upscale = nn.ConvTranspose2d(token_dim, feature_dim, 2, stride=2)
        self.stem = nn.Conv2d(3, feature_dim, stem_px, stride=stem_px)
        self.norm = LayerNorm2d(feature_dim)
        self.fuse = nn.Conv2d(feature_dim, feature_dim, 3, padding=1)
        self.out_norm = LayerNorm2d(feature_dim)

    def forward(self, tokens: Tensor, views: Tensor, detail: Tensor) -> Tensor:
        """tokens [n,P,Dv], views [n,3,S,S], detail [n,Cf,F,F] -> [n,Cf,F,F]."""
        n, patches, dim = tokens.shape
        grid = int(patches**0.5)
        grid_map = tokens.transpose(1, 2).reshape(n, dim, grid, grid)
        mixed = F.gelu(self.norm(self.upscale(grid_map) + self.stem(views) + detail))
        return self.out_norm(self.fuse(mixed))


class GeoMagEncoder(nn.Module):
    """`encoder.onnx`."""

    def __init__(self, config: GeoMagConfig):
        super().__init__()
        vision = config.vision_config
        self.family = vision.model_type
        dim = vision.hidden_size
        embed_dim = config.psc["embed_dim"]
        if self.family == "clip_vision_model":
            self.tower: nn.Module = CLIPVisionModel._from_config(vision)
            self.projection: nn.Module = nn.Linear(dim, embed_dim, bias=False)
        else:
            self.tower = SiglipVisionModel._from_config(vision)
            if not self.tower.use_head:
                raise CheckpointError(
                    "the SigLIP vision tower has no pooling head, by which patches are compared "
                    "with the prompt: give one saved with vision_use_head true"
                )
            if embed_dim != dim:
                raise CheckpointError(
                    f"psc.embed_dim must be the SigLIP vision tower's hidden size {dim}, not "
                    f"{embed_dim}"
                )
            self.projection = nn.Identity()
        features = config.mask["feature_dim"]
        self.neck = FeatureNeck(dim, features, vision.patch_size)
        self.detail = DetailStem(dim, features, vision.patch_size // 2, DETAIL_DEPTH)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """views [n,3,S,S] -> tokens [n,P,Dv], embeds [n,P,De] (unit length), features [n,Cf,F,F].

        `embeds` are what the tower's own pooling would say of one patch alone (the value path,
        as in MaskCLIP, arXiv 2112.01071): for CLIP the post-norm and projection of each patch
        token, for SigLIP its attention pooling over a single patch.
        """
        hidden = self.tower.embeddings(views)
        fine, detail = self.detail(views)
        if self.family == "clip_vision_model":
            hidden = torch.cat([hidden[:, :1], hidden[:, 1:] + fine], dim=1)  # not the class token
            hidden = self.tower.pre_layrnorm(hidden)
        else:
            hidden = hidden + fine
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        if self.family == "clip_vision_model":
            tokens = hidden[:, 1:]  # without the class token
            embeds = self.projection(self.tower.post_layernorm(tokens))
        else:
            tokens = self.tower.post_layernorm(hidden)
            embeds = _pool_each_patch(self.tower.head, tokens)
        embeds = F.normalize(embeds, dim=-1)
        return tokens, embeds, self.neck(tokens, views, detail)


def _pool_each_patch(head: nn.Module, tokens: Tensor) -> Tensor:
    """SigLIP's attention pooling of each token alone: softmax over one key is 1."""
    attention = head.attention
    dim = tokens.shape[-1]
    value = F.linear(tokens, attention.in_proj_weight[2 * dim :], attention.in_proj_bias[2 * dim :])
    pooled = attention.out_proj(value)
    return pooled + head.mlp(head.layernorm(pooled))


@torch.no_grad()
def init_encoder(encoder: GeoMagEncoder) -> None:
    """Seeds the parts that are not a pretrained tower."""
    if isinstance(encoder.projection, nn.Linear):
        nn.init.normal_(encoder.projection.weight, std=encoder.projection.in_features**-0.5)
