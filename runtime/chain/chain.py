"""The chain's graphs: views -> encoder -> PSC -> projector -> mask head, one call each.

Engines, files and pixels are behind `Session` and `Scene`; the order in which an answer calls them
is `SceneSession._answer`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Manifest
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.answers.masks import MaskMaps
from geomag_edge.runtime.engines.engine import Engine, Session
from geomag_edge.runtime.engines.sharing import Door
from geomag_edge.runtime.engines.values import HOST, Values, expect, values_of
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.views import pooling_matrix, token_positions
from geomag_edge.views_on_data import look_on_data

F32 = NDArray[np.float32]


@dataclass
class Views:
    """Encoded views: boxes [n,4] px on the host, and as the engine has them tokens [n,P,Dv],
    embeds [n,P,De] and features [n,Cf,F,F]."""

    boxes: F32
    tokens: Any
    embeds: Any
    features: Any

    def first(self, count: int) -> Views:
        """The first so many views."""
        if count >= len(self.boxes):
            return self
        parts = (self.boxes, self.tokens, self.embeds, self.features)
        return Views(*(part[:count] for part in parts))


class Stopwatch:
    """Adds up milliseconds by stage, on the engine's own clock."""

    def __init__(self, clock: Values = HOST) -> None:
        self._clock = clock
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the body under a stage's name."""
        start = self._clock.now()
        try:
            yield
        finally:
            self._spans.append((stage, start, self._clock.now()))

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds of each stage, in the order of their first appearance."""
        sums: dict[str, float] = {}
        for stage, start, end in self._spans:
            sums[stage] = sums.get(stage, 0.0) + self._clock.ms_between(start, end)
        return sums


class Chain:
    """The graphs of one bundle on one engine."""

    def __init__(self, engine: Engine, manifest: Manifest, coder: PromptCoder):
        self.engine, self.manifest, self.coder = engine, manifest, coder
        self.values = values_of(engine)
        alone = not getattr(engine, "takes_several", False)
        self.door = Door(("this pipeline", "load the bundle"), self._free, one_at_a_time=alone)
        self.sessions: dict[str, Session] = {}
        try:
            # The LLM first: while its weights are packed they are held twice, so nothing else is.
            for graph in sorted(CHAIN, key=lambda name: name != "llm"):
                self.sessions[graph] = engine.session(graph)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees every graph and the engine, once no query runs any more."""
        self.door.close()

    def _free(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions = {}
        self.engine.close()

    def encode(self, scene: Scene, boxes: F32, watch: Stopwatch) -> Views:
        """Cuts the boxes out of the scene and encodes them."""
        view = self.manifest.view
        with watch("crop"):
            mean_std = np.array([view.mean, view.std], np.float32)
            pixels = self.values.crop(scene, boxes, mean_std, view.view_px)
        with watch("encode"):
            out = self.sessions["encoder"].run({"views": pixels}, self.values.kept)
        count, patches = len(boxes), view.grid**2
        expect(out["tokens"], (count, patches, None))
        expect(out["embeds"], (count, patches, None))
        expect(out["features"], (count, None, None, None))
        return Views(boxes, out["tokens"], out["embeds"], out["features"])

    def select(
        self, view: Views, index: int, prompt_ids: NDArray, scene: Scene
    ) -> dict[str, NDArray]:
        """PSC's look into one encoded view: granularity, relevance, boxes, scores; nothing is
        relevant, and no box chosen, where there is no data."""
        box, size = view.boxes[index], (scene.height, scene.width)
        seen = self.sessions["psc_select"].run(
            {
                "embeds": view.embeds[index : index + 1],
                "prompt_ids": prompt_ids,
                "view_box": box,
                "image_shape": np.array([*size, 3], np.int64),
            }
        )
        grid, count = self.manifest.view.grid, self.manifest.psc.max_crops
        expect(seen["granularity"], (1, 3))
        expect(seen["relevance"], (grid, grid))
        expect(seen["boxes"], (count, 4))
        expect(seen["scores"], (count,))
        look = seen["relevance"], seen["boxes"], seen["scores"]
        validity = scene.validity
        shares = None if validity is None else validity.shares(box, len(look[0]))
        relevance, boxes, scores = look_on_data(look, box, size, self.manifest.psc, shares)
        if validity is not None:  # a file's coarse look may have been kind to a window's edge
            scores = np.where(validity.has_data(boxes), scores, np.float32(-1))
        return seen | {"relevance": relevance, "boxes": boxes, "scores": scores}

    def project(self, views: Views, grid: int, scene: Scene) -> Any:
        """Views -> visual tokens [n*grid*grid, D], view by view."""
        out = self.sessions["projector"].run(
            {
                "tokens": views.tokens,
                "pooling": pooling_matrix(self.manifest.view.grid, grid),
                "positions": token_positions(views.boxes, grid, scene.height, scene.width),
            },
            self.values.kept,
        )
        expect(out["visual"], (len(views.boxes), grid * grid, self.manifest.decoder.hidden))
        return out["visual"].reshape(-1, self.manifest.decoder.hidden)

    def mask_maps(self, views: Views, queries: Any) -> MaskMaps:
        """Mask queries [m,D] (m > 0) against the feature maps of the views."""
        out = self.sessions["mask_head"].run({"features": views.features, "queries": queries})
        logits = out["mask_logits"]
        expect(logits, (len(queries), len(views.boxes), logits.shape[-1], logits.shape[-1]))
        expect(out["quality"], (len(queries), len(views.boxes)))
        return MaskMaps(
            views.boxes,
            out["mask_logits"].astype(np.float32),
            out["quality"].astype(np.float32),
        )
