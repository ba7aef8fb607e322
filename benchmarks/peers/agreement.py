"""Whether two forms gave the same answer: what must hold before either is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import GeoMagError
from geomag_edge.runtime.answers.masks import Mask, mask_iou

LOGIT_TOLERANCE = 1e-3
"""Greatest difference of mask logits between forms in fp32, over the reference's scale."""


class PeersDisagreeError(GeoMagError):
    """Forms of one model in one precision do not give one answer, so their times mean nothing."""


@dataclass(frozen=True)
class Answer:
    """What a form said.

    Attributes:
        token_ids: of the answer, a forced prefix included.
        mask_logits: f32[n,M,M], the first [SEG]'s, view by view.
        quality: f32[n], predicted for each.
        boxes: f32[n,4], the views in px of the image.
        shape: H, W of the image.
    """

    token_ids: list[int]
    mask_logits: NDArray[np.float32]
    quality: NDArray[np.float32]
    boxes: NDArray[np.float32]
    shape: tuple[int, int]

    @property
    def mask(self) -> Mask:
        """The mask in the image's frame."""
        return Mask(self.shape, self.boxes, self.mask_logits, self.quality, score=0.0)


def agreement(found: Answer, reference: Answer) -> dict[str, float]:
    """How much of a reference's answer a form gave.

    Returns:
        `tokens`: share of positions with the reference's token (an answer of another length
        counts its missing positions as wrong); `mask_iou` in the image's frame; `views`: share of
        the reference's views that were looked at; `logits`: greatest difference over the
        reference's scale, NaN where the views differ.
    """
    longest = max(len(found.token_ids), len(reference.token_ids), 1)
    same = sum(a == b for a, b in zip(found.token_ids, reference.token_ids, strict=False))
    shared = {box.tobytes() for box in found.boxes} & {box.tobytes() for box in reference.boxes}
    logits = float("nan")
    if found.boxes.shape == reference.boxes.shape and (found.boxes == reference.boxes).all():
        scale = float(np.abs(reference.mask_logits).max()) or 1.0
        logits = float(np.abs(found.mask_logits - reference.mask_logits).max()) / scale
    return {
        "tokens": same / longest,
        "mask_iou": mask_iou(found.mask, reference.mask),
        "views": len(shared) / len(reference.boxes),
        "logits": logits,
    }


def require_same(answers: Mapping[str, Answer], reference: str) -> None:
    """Refuses forms of one precision that do not answer alike.

    Args:
        answers: by form.
        reference: whose answer counts.

    Raises:
        PeersDisagreeError: other tokens, other views, or logits further off than the tolerance.
    """
    for name, answer in answers.items():
        found = agreement(answer, answers[reference])
        if found["tokens"] < 1:
            raise PeersDisagreeError(
                f"{name} and {reference} say different tokens ({found['tokens']:.0%} alike): "
                "nothing was timed"
            )
        if found["views"] < 1:
            raise PeersDisagreeError(
                f"{name} and {reference} look at other views: nothing was timed"
            )
        if not found["logits"] <= LOGIT_TOLERANCE:
            raise PeersDisagreeError(
                f"the masks of {name} and {reference} differ by {found['logits']:.1e} of their "
                f"scale, {LOGIT_TOLERANCE:.0e} is allowed: nothing was timed"
            )


def require_same_tokens(answers: Mapping[str, Sequence[int]], reference: str) -> None:
    """Refuses forms of one precision that do not decode the same ids.

    Raises:
        PeersDisagreeError: names the first position that differs.
    """
    want = list(answers[reference])
    for name, ids in answers.items():
        if list(ids) != want:
            at = next(
                (i for i, (a, b) in enumerate(zip(ids, want, strict=False)) if a != b),
                min(len(ids), len(want)),
            )
            raise PeersDisagreeError(
                f"{name} and {reference} differ from token {at} on: nothing was timed"
            )
