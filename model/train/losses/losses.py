"""The losses, each on plain tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geomag_edge.model.train.losses.heads import CENTRE_OUTPUTS, PATCH_OUTPUTS, PIXEL_CLASSES
from geomag_edge.model.train.samples.targets import OUTSIDE


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Class, colour and size of every pixel: logits [n,PIXEL_OUTPUTS,h,w], labels i64[n,3,h,w].

    Colour and size count only on the objects that have them. Rare classes weigh more, because a
    scene has thousands of pixels of ground for one of a vehicle.
    """
    logits = logits.float()
    cls, colour, size = logits.split([PIXEL_CLASSES, logits.shape[1] - PIXEL_CLASSES - 2, 2], 1)
    counts = torch.bincount(labels[:, 0].clamp(min=0).flatten(), minlength=PIXEL_CLASSES).float()
    weight = (counts.sum() / (counts + 0.001 * counts.sum())).pow(0.7)
    weight = weight / weight[counts > 0].mean()
    losses = [F.cross_entropy(cls, labels[:, 0], weight, ignore_index=OUTSIDE)]
    for part, column in ((colour, 1), (size, 2)):
        wanted = labels[:, column]
        if (wanted != OUTSIDE).any():
            losses.append(0.5 * F.cross_entropy(part, wanted, ignore_index=OUTSIDE))
    return torch.stack(losses).sum()


def patch_loss(patches: Tensor, hot: Tensor, counts: Tensor, boxes: Tensor, at: Tensor) -> Tensor:
    """What patches show, how many objects are centred in them, and those objects' boxes.

    Args:
        patches: [n,P,*] as `DenseHeads` gives them.
        hot: f32[n,P,PATCH_OUTPUTS].
        counts: f32[n,P,CENTRE_OUTPUTS].
        boxes: f32[k,4] in 0..1 of their view.
        at: i64[k], view * P + patch of each box.
    """
    shown, centred, places = patches.float().split([PATCH_OUTPUTS, CENTRE_OUTPUTS, 4], -1)
    loss = F.binary_cross_entropy_with_logits(
        shown, hot, pos_weight=shown.new_tensor(3.0)
    ) + F.smooth_l1_loss(centred, counts.log1p(), beta=0.1)
    if len(at):
        guess = places.flatten(0, 1)[at]
        loss = loss + 2 * F.l1_loss(guess, boxes)
    return loss


def relevance_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Relevance maps [k,P] against 0/1 maps: cross-entropy and dice, mean over maps."""
    logits = logits.float()
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    positive = wanted.mean(1, keepdim=True)
    weight = torch.where(wanted > 0, (0.25 / positive.clamp(min=1e-4)).clamp(1, 10), 1.0)
    return (cross * weight).mean() + 0.5 * dice_loss(logits, wanted)


def dice_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """1 - dice of maps [k,...]; maps with nothing wanted are left out."""
    chance = logits.sigmoid().flatten(1)
    wanted = wanted.flatten(1)
    area = wanted.sum(1)
    dice = (2 * (chance * wanted).sum(1) + 1) / (chance.sum(1) + area + 1)
    kept = area > 0.5
    return (1 - dice)[kept].sum() / max(1, int(kept.sum()))


def mask_loss(logits: Tensor, quality: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [k,M,M] and their predicted quality [k] against coverage in 0..1.

    Returns:
        The loss, and the mean IoU of the views that show something (for the log).
    """
    logits = logits.float()
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").flatten(1)
    share = wanted.flatten(1).mean(1, keepdim=True)
    weight = torch.where(wanted.flatten(1) > 0.5, (0.1 / share.clamp(min=1e-4)).clamp(1, 10), 1.0)
    with torch.no_grad():
        got, real = (logits > 0).flatten(1), (wanted > 0.5).flatten(1)
        either = (got | real).sum(1)
        iou = torch.where(either > 0, (got & real).sum(1) / either.clamp(min=1), 1.0)
    seen = real.any(1)
    mean_iou = iou[seen].mean() if seen.any() else iou.new_tensor(float("nan"))
    loss = 2 * (cross * weight).mean() + dice_loss(logits, wanted)
    return loss + 0.5 * F.mse_loss(quality.float(), iou), mean_iou


def answer_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of logits [k,V] on answer tokens i64[k]."""
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    return (each * weights).sum() / weights.sum().clamp(min=1e-6)


def align_loss(hidden: Tensor, queries: Tensor) -> Tensor:
    """Hidden states of [SEG] [k,D] against the noun queries [k,D] that would do their work."""
    hidden, queries = hidden.float(), queries.detach().float()
    return (1 - F.cosine_similarity(hidden, queries)).mean() + 0.1 * F.mse_loss(hidden, queries)
