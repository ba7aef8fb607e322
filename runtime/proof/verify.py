"""Does this engine still answer as the reference did? Graph by graph, then the whole chain.

Each graph is replayed on the reference's own inputs (`replay`); then the chain runs from the image,
and its tokens, boxes and masks are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from geomag_edge.errors import EngineError
from geomag_edge.graphs import TOLERANCES, Tolerance
from geomag_edge.machine import instruction_sets
from geomag_edge.runtime.answers.masks import mask_iou
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.scene_session import SceneSession
from geomag_edge.runtime.engines.reference import REPLAYED, Sample, check_whole
from geomag_edge.runtime.engines.replay import Drift, replay
from geomag_edge.runtime.images.scene import Scene

BOX_PX = 2.0
"""A box is read off a mask, whose edge may move by a pixel where the mask is the same."""


@dataclass(frozen=True)
class ChainDrift:
    """How far one sample's answer is from the reference's.

    `first_token` is the index of the first answer token that differs, or None; `mask_iou` the
    smallest over the sample's masks, None without masks.
    """

    prompt: str
    budget: str
    tokens: int
    first_token: int | None
    max_crop_px: float
    mask_iou: float | None
    masks: int
    ok: bool
    same_level: bool = True
    same_boxes: bool = True
    same_crops: bool = True


@dataclass
class Report:
    """The outcome of a verification; `instruction_sets` are the CPU's that it ran on."""

    engine: str
    precision: str
    providers: dict[str, str]
    tolerance: Tolerance
    instruction_sets: list[str] = field(default_factory=instruction_sets)
    graphs: list[Drift] = field(default_factory=list)
    chain: list[ChainDrift] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is within tolerance."""
        return all(d.ok for d in self.graphs) and all(c.ok for c in self.chain)

    @property
    def first_drift(self) -> str | None:
        """The first stage, in the chain's order, that is past its tolerance, in plain words."""
        for d in self.graphs:
            if not d.ok:
                return (
                    f"graph {d.graph}, output {d.output}: max error {d.max_abs:.3g} {d.unit} "
                    f"({d.relative:.2g} of its scale, allowed {self.tolerance.relative:.0e})"
                )
        for c in self.chain:
            if c.ok:
                continue
            token = "tokens equal" if c.first_token is None else f"token {c.first_token} differs"
            token += "" if c.same_level else ", another task level"
            token += "" if c.same_boxes else ", other boxes"
            token += "" if c.same_crops else ", other crops"
            iou = "" if c.mask_iou is None else f", mask IoU {c.mask_iou:.4f}"
            return f"the chain on {c.prompt!r} (budget {c.budget}): {token}{iou}"
        return None

    def to_json(self) -> dict[str, Any]:
        """The form kept in manifests and printed by `--json`."""
        return asdict(self) | {"ok": self.ok, "first_drift": self.first_drift}


def verify(
    chain: Chain,
    samples: list[Sample],
    tolerance: Tolerance,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Replays the samples on a chain.

    Args:
        chain: an open chain of the engine to check.
        samples: the reference.
        tolerance: what counts as equal.
        progress: called with a few words as each step starts.

    Raises:
        BundleError: a reference in which something is left out: to agree with nothing is no proof.
    """
    check_whole(samples, chain.manifest)
    report = Report(
        chain.engine.name,
        chain.engine.precision,
        {name: s.provider for name, s in chain.sessions.items()},
        tolerance,
    )
    able = getattr(chain.engine, "graphs", REPLAYED)  # TensorRT has no engine of psc.onnx
    for graph in (name for name in REPLAYED if name in able):
        progress(f"replaying {graph}")
        calls = [c for s in samples for c in s.calls if c.graph == graph]
        if calls:
            session = chain.sessions.get(graph) or chain.engine.session(graph)
            report.graphs += replay(session, calls, tolerance)
            if graph not in chain.sessions:
                session.close()
    for sample in samples:
        progress(f"asking at budget {sample.budget}")
        report.chain.append(_ask(chain, sample, tolerance))
    return report


def tolerance_of(precision: str) -> Tolerance:
    """What counts as equal in a precision.

    Raises:
        EngineError: a set of graphs of somebody's own, whose precision nobody has judged.
    """
    if precision not in TOLERANCES:
        raise EngineError(
            f"no tolerance is known for {precision[:64]}: verify knows {', '.join(TOLERANCES)}"
        )
    return TOLERANCES[precision]


def _ask(chain: Chain, sample: Sample, tolerance: Tolerance) -> ChainDrift:
    with SceneSession(chain, Scene.open(sample.image)) as session:
        result = session.ask(
            sample.prompt, sample.budget, sample.max_new_tokens, sample.answer_prefix
        )
        masks = [np.asarray(m) for m in result.masks]
    first = first_difference(sample.token_ids, result.token_ids)
    ious = [mask_iou(a, b) for a, b in zip(sample.masks, masks, strict=False)]
    if len(masks) != len(sample.masks):
        ious.append(0.0)
    crop_px = float("inf")
    if sample.crop_boxes.shape == result.crop_boxes.shape:
        crop_px = float(np.abs(sample.crop_boxes - result.crop_boxes).max(initial=0.0))
    iou = min(ious) if ious else None
    same_level = result.granularity == sample.granularity
    same_boxes = _same_boxes(sample.boxes, result.boxes)
    same_crops = crop_px <= BOX_PX
    same = first is None and same_level and same_boxes and same_crops
    ok = (same or not tolerance.tokens_equal) and (iou is None or iou >= tolerance.mask_iou)
    return ChainDrift(
        prompt=sample.prompt,
        budget=sample.budget,
        tokens=len(sample.token_ids),
        first_token=first,
        max_crop_px=crop_px,
        mask_iou=iou,
        masks=len(sample.masks),
        ok=ok,
        same_level=same_level,
        same_boxes=same_boxes,
        same_crops=same_crops,
    )


def _same_boxes(expected: list[list[float]], got: list[list[float]]) -> bool:
    """Whether as many boxes lie at the same places, to within `BOX_PX`."""
    try:
        a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (expected, got))
    except (TypeError, ValueError):  # a reference from a stranger may hold anything
        return False
    return a.shape == b.shape and bool((np.abs(a - b) <= BOX_PX).all())


def first_difference(expected: list[int], got: list[int]) -> int | None:
    """The index of the first token that differs (one list ending counts), or None."""
    for i, (a, b) in enumerate(zip(expected, got, strict=False)):
        if a != b:
            return i
    return None if len(expected) == len(got) else min(len(expected), len(got))
