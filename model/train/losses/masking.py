"""Mask queries in training: a few views of each, and every fourth point of a mask.

The mask head's last layer works on each cell of 2 x 2 points alone, so one point of a cell, drawn
anew for every step, teaches the same for a quarter of the work (points as in PointRend, arXiv
1912.08193).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from geomag_edge.model.mask_head import GeoMagMaskHead
from geomag_edge.model.train.losses import losses

F32 = NDArray[np.float32]

VIEWS = 3
"""Views in which a training query is decoded: the whole, one with the target, any other."""


def choose_views(shows: NDArray[np.bool_], rng: np.random.Generator) -> list[int]:
    """Views for one query; `shows` bool[n] says which hold something of its target."""
    chosen = [0]
    crops = rng.permutation(np.arange(1, len(shows))).tolist()
    chosen += [i for i in crops if shows[i]][:1]
    chosen += [i for i in crops if i not in chosen][: VIEWS - len(chosen)]
    return chosen


def decode_points(
    head: GeoMagMaskHead, features: Tensor, queries: Tensor, corner: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """One query a view: features [k,Cf,F,F], queries [k,D] -> logits [k,2F,2F], quality [k].

    The logits are those of points `corner` (row, column, each 0 or 1) of the cells: what the head
    itself gives at [row::2, column::2].
    """
    image = features.flatten(2).transpose(1, 2)
    tokens, image = head.decode(image, head.query(queries).unsqueeze(1))
    half = head.upscale[:3](image.transpose(1, 2).unflatten(2, features.shape[2:]))
    last = head.upscale[3]
    row, column = corner
    kernel = last.weight[:, :, row, column].t()[:, :, None, None]  # [Cf/8,Cf/4,1,1]
    pixels = head.upscale[4](F.conv2d(half, kernel, last.bias))
    weights = head.hyper(tokens[:, 1]).unsqueeze(1)
    logits = (weights @ pixels.flatten(2)).unflatten(2, pixels.shape[2:]).squeeze(1)
    return logits, torch.sigmoid(head.quality(tokens[:, 0])).squeeze(1)


def masks_part(
    head: GeoMagMaskHead,
    queries: list[tuple[int, Tensor]],
    masks: list[F32],
    features: Tensor,
    views: int,
    rng: np.random.Generator,
) -> tuple[Tensor, float]:
    """The mask loss of some queries in some of their views, and the mean IoU for the log.

    Args:
        head: the mask head.
        queries: (scene, states [m,D]) each.
        masks: f32[m,n,M,M] in 0..1 of each, n = `views`.
        features: [B*n,Cf,F,F], the views of a scene together.
        views: a scene has.
        rng: chooses views and points.
    """
    if not queries:
        return features.sum() * 0, float("nan")
    row, column = (int(i) for i in rng.integers(0, 2, 2))
    at, asked, wanted = [], [], []
    for (scene, states), mask in zip(queries, masks, strict=True):
        for state, shown in zip(states, mask, strict=True):
            for view in choose_views((shown > 0.5).any((1, 2)), rng):
                at.append(scene * views + view)
                asked.append(state)
                wanted.append(shown[view, row::2, column::2])
    device = features.device
    chosen = features.index_select(0, torch.tensor(at, device=device))
    states = torch.stack(asked).to(features.dtype)
    logits, quality = decode_points(head, chosen, states, (row, column))
    target = torch.from_numpy(np.stack(wanted)).to(device)
    loss, iou = losses.mask_loss(logits, quality, target)
    return loss, float(iou)
