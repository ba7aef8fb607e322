"""Measures this machine's `LatencyModel` for an open pipeline, and remembers it.

A few seconds to minutes: every stage at several sizes, in turn, medians; then whole queries, whose
times over the model's own predictions say how far it may be trusted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geomag_edge.budgets import TokenBudget
from geomag_edge.cores import threads_of
from geomag_edge.disk.caches import cache_root
from geomag_edge.errors import PromptError
from geomag_edge.graphs import CHAIN, present_names
from geomag_edge.machine import machine
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.chain import Chain, Stopwatch
from geomag_edge.runtime.chain.result import Result
from geomag_edge.runtime.engines.auto.remembered import (
    FORMAT_VERSION,
    engines_of,
    recall,
    remember,
    versions,
)
from geomag_edge.runtime.engines.engine import graph_sets
from geomag_edge.runtime.engines.feeds import prompt_feeds, step_feeds
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.planning.frontier import candidates
from geomag_edge.runtime.planning.latency import LatencyModel, fitted
from geomag_edge.views import global_box, pooling_matrix, token_positions, useful_levels

ROUNDS, ENOUGH_S = (5, 25), 2.0
"""Least and most rounds of a stage's sizes, and the time after which the least is enough."""

PARTS = 6
"""Parts of a measurement, each of which is reported as it begins."""

QUERIES = 20
"""Whole queries against which the model is checked."""

STEPS = 3
"""Decode steps behind each timed prefill."""

SCENE_PX = 2048
PROMPT, PREFIX, WORDS = "segment the ships near the pier", "[SEG]", 8


class Asked(Protocol):
    """What is measured: an open `Pipeline`."""

    bundle: Bundle
    chain: Chain

    def __call__(
        self, image: Any, prompt: str, budget: TokenBudget, max_new_tokens: int, answer_prefix: str
    ) -> Result:
        """Answers one prompt about one image."""


def model_of(
    pipe: Asked,
    threads: int | None = None,
    anew: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> LatencyModel:
    """The remembered model of a pipeline on this machine, measured now if there is none.

    Args:
        pipe: an open pipeline.
        threads: as the engine was opened with.
        anew: measure even what is remembered.
        progress: called with a stage's name as its turn comes.
    """
    path = place(pipe, threads)
    record = None if anew else recall(path)
    if record is not None:
        try:
            return LatencyModel.from_json(record["model"])
        except (KeyError, TypeError, ValueError):
            pass  # an unreadable record is measured anew
    model = measure(pipe, progress)
    lost = remember(path, {"model": model.to_json(), "under": conditions(pipe, threads)})
    return replace(model, lost=lost)


def place(pipe: Asked, threads: int | None) -> Path | None:
    """The file that remembers a pipeline's model; its name holds a digest of `conditions`."""
    text = json.dumps(conditions(pipe, threads), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    name = f"{pipe.chain.engine.name}-{pipe.chain.engine.precision}-{digest}.json"
    root = cache_root()
    return root and root / "latency" / name


def conditions(pipe: Asked, threads: int | None) -> dict[str, Any]:
    """All that the times depend on, as plain data."""
    engine, bundle = pipe.chain.engine, pipe.bundle
    files = set().union(*map(bundle.graph_files, graph_sets(bundle, engine.precision)))
    return {
        "format": FORMAT_VERSION,
        "graph_sha256": {name: bundle.manifest.files[name] for name in sorted(files)},
        "engine": engine.name,
        "engines": engines_of(bundle),
        "precision": engine.precision,
        "providers": {name: pipe.chain.sessions[name].provider for name in CHAIN},
        "threads": threads_of(threads),
        "versions": versions(),
        "machine": machine(),
    }


def measure(pipe: Asked, progress: Callable[[str], None] = lambda step: None) -> LatencyModel:
    """Measures every stage, then whole queries; see the module's docstring."""
    chain = pipe.chain
    watch = partial(Stopwatch, chain.values)
    scene = Scene.open(picture())
    whole = global_box(scene.height, scene.width)
    most = max(1, max(b.crops for b in pipe.bundle.manifest.budgets.values()))
    counts = sorted({1, max(1, most // 2), most})
    boxes: list[NDArray[np.float32]] = [
        (whole * np.linspace(0.5, 1, n)[:, None]).astype(np.float32) for n in counts
    ]

    progress("crop, encode")
    crop_ms, encode_ms = _rounds(
        watch, [_encoding(chain, scene, b) for b in boxes], ("crop", "encode")
    )
    views = [chain.encode(scene, b, watch()) for b in boxes]
    ids, _ = chain.coder.psc_ids(PROMPT)
    progress("select")
    (select_ms,) = _rounds(watch, [_selecting(chain, views[0], ids, scene)], ("select",))
    progress("project")
    manifest = pipe.bundle.manifest
    grids = sorted({max(1, manifest.view.grid // 4), manifest.view.grid // 2, manifest.view.grid})
    (project_ms,) = _rounds(
        watch, [_projecting(chain, views[0], g, scene) for g in grids], ("project",)
    )
    progress("prefill, decode")
    lengths = _lengths(pipe)
    prefill_ms, step_ms = _rounds(
        watch, [_decoding(chain, n) for n in lengths], ("prefill", "step")
    )
    progress("mask")
    (mask_ms,) = _rounds(watch, [_masking(chain, v) for v in views], ("mask",))
    stamp = datetime.now(timezone.utc).isoformat(timespec="minutes")
    model = LatencyModel(
        crop=fitted(counts, crop_ms, 1),
        encode=fitted(counts, encode_ms, 1),
        select=fitted([1], select_ms, 0),
        project=fitted([g * g for g in grids], project_ms, 1),
        prefill=fitted(lengths, prefill_ms, 2),
        step=fitted(lengths, [ms / STEPS for ms in step_ms], 1),
        mask=fitted(counts, mask_ms, 1),
        spread=1.0,
        source=f"measured on this machine at {stamp}",
    )
    progress("whole queries")
    found = model.to_json() | {"spread": spread(pipe, model)}
    scene.close()
    return LatencyModel.from_json(found)


def picture(side: int = SCENE_PX) -> NDArray[np.uint8]:
    """A seeded picture u8[side,side,3]: what it shows does not change what it costs."""
    small = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    return np.repeat(np.repeat(small, 16, 0), 16, 1)


def spread(pipe: Asked, model: LatencyModel, queries: int = QUERIES) -> float:
    """The 95th percentile of whole queries' times over the model's predictions, at least 1.

    Budgets of all sizes take turns, so that the fit is checked along its whole length.
    """
    image = picture()
    view, psc = pipe.bundle.manifest.view, pipe.bundle.manifest.psc
    levels = useful_levels(len(image), len(image), view.view_px, view.grid, psc)
    before, after = pipe.chain.coder.around_image(PROMPT)
    text = len(before) + len(after) + len(pipe.chain.coder.markup_ids(PREFIX))
    budgets = _affordable(pipe, text + WORDS)
    ratios = []
    for turn in range(queries):
        budget = budgets[turn % len(budgets)]
        result = pipe(image, PROMPT, budget, WORDS, PREFIX)
        found = TokenBudget(budget.global_grid, len(result.crop_boxes), budget.crop_grid)
        # a forced prefix needs no step of its own, the tokens after it do
        predicted = model.query(found, levels, text, result.decode_steps + 1)
        ratios.append(result.timings_ms["total"] / sum(predicted.values()))
    return max(1.0, float(np.percentile(ratios, 95, method="higher")))


def _affordable(pipe: Asked, others: int) -> list[TokenBudget]:
    """Cheapest, middle and dearest pixel-level budget that the model's context takes."""
    context = pipe.chain.coder.settings.context
    some = [
        b
        for b in candidates(pipe.bundle.manifest.budgets)["pixel"]
        if b.visual_tokens + others < context
    ]
    if not some:
        raise PromptError(f"the model's context of {context} tokens takes none of its own budgets")
    return [some[0], some[len(some) // 2], some[-1]]


Timed = Callable[[Stopwatch], None]
"""Does one size of a stage, timing its parts on the watch it is given."""


def _rounds(
    watching: Callable[[], Stopwatch], forms: list[Timed], stages: tuple[str, ...]
) -> list[list[float]]:
    """Median ms of each stage for each form, [stage][form], on the engine's own clock."""
    start = time.perf_counter()
    times: list[list[Mapping[str, float]]] = [[] for _ in forms]
    while len(times[0]) <= ROUNDS[0] or (
        len(times[0]) <= ROUNDS[1] and time.perf_counter() - start < ENOUGH_S
    ):
        for taken, form in zip(times, forms, strict=True):
            watch = watching()
            form(watch)
            taken.append(watch.ms)
    return [
        [float(np.median([ms[stage] for ms in taken[1:]])) for taken in times] for stage in stages
    ]  # the first round warms up


def _encoding(chain: Chain, scene: Scene, boxes: NDArray[np.float32]) -> Timed:
    def encode(watch: Stopwatch) -> None:
        chain.encode(scene, boxes, watch)

    return encode


def _selecting(chain: Chain, views: Any, ids: NDArray, scene: Scene) -> Timed:
    def select(watch: Stopwatch) -> None:
        with watch("select"):
            chain.select(views, 0, ids, scene)

    return select


def _projecting(chain: Chain, views: Any, grid: int, scene: Scene) -> Timed:
    settings = chain.manifest.view
    feeds = {
        "tokens": views.tokens[:1],
        "pooling": pooling_matrix(settings.grid, grid),
        "positions": token_positions(views.boxes[:1], grid, scene.height, scene.width),
    }

    def project(watch: Stopwatch) -> None:
        with watch("project"):
            chain.sessions["projector"].run(feeds, chain.values.kept)

    return project


def _lengths(pipe: Asked) -> list[int]:
    """Prompt lengths between the cheapest budget's and the dearest's."""
    every = [b for listed in candidates(pipe.bundle.manifest.budgets).values() for b in listed]
    text = 24
    longest = min(max(b.visual_tokens for b in every) + text, pipe.chain.coder.settings.context - 8)
    return sorted({max(8, longest // 8), max(8, longest // 2), longest})


def _decoding(chain: Chain, length: int) -> Timed:
    shape = chain.manifest.decoder
    rng = np.random.default_rng(0)
    prompt = rng.standard_normal((1, length, shape.hidden), np.float32) * 0.02
    token = np.array([[1]], np.int64)
    kept = chain.values.kept | frozenset(present_names(shape.layers))

    def decode(watch: Stopwatch) -> None:
        with watch("prefill"):
            out = chain.sessions["llm"].run(prompt_feeds(prompt, shape), kept)
        for step in range(STEPS):
            with watch("step"):
                embedded = chain.sessions["embed"].run({"input_ids": token}, chain.values.kept)
                feeds = step_feeds(embedded["inputs_embeds"], length + step, shape.layers, out)
                out = chain.sessions["llm"].run(feeds, kept)

    return decode


def _masking(chain: Chain, views: Any) -> Timed:
    queries = np.zeros((1, chain.manifest.decoder.hidden), np.float32)

    def mask(watch: Stopwatch) -> None:
        with watch("mask"):
            chain.mask_maps(views, queries)

    return mask
