"""`Pipeline`: a bundle, an engine, and questions about images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomag_edge.arguments import told
from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import BudgetError, EngineError, InputError
from geomag_edge.manifest import Bundle
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.deadline import Deadline
from geomag_edge.runtime.chain.result import Result
from geomag_edge.runtime.chain.scene_session import SceneSession
from geomag_edge.runtime.engines.engine import Engine, default_precision
from geomag_edge.runtime.engines.judged import judged_elsewhere
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.planning.planner import Planner, check_latency


class Pipeline:
    """Answers prompts about images with a bundle.

    >>> pipe = Pipeline.load("bundle", engine="ort-cpu")
    >>> r = pipe("scene.tif", "segment the ships near the pier")
    >>> r.text, r.granularity, r.budget, r.boxes, r.masks, r.relevance, r.timings_ms

    A pipeline owns its engine's memory: close it, or use it as a context manager. Any number of
    threads may ask it at once, and any of them may close it: queries that run then still end. A
    process that was forked after a pipeline was loaded loads its own.
    """

    def __init__(
        self,
        bundle: Bundle,
        chain: Chain,
        threads: int | None = None,
        latency_ms: float | None = None,
    ):
        self.bundle, self.chain = bundle, chain
        self.threads, self.latency_ms = threads, latency_ms
        self._planner: Planner | None = None
        self._planning = threading.RLock()
        self._judged_elsewhere = judged_elsewhere(bundle.manifest, chain.engine)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        engine: str | Engine = "ort-cpu",
        precision: str | None = None,
        threads: int | None = None,
        checkpoint: str | Path | None = None,
        latency_ms: float | None = None,
        trust: str | Path | None = None,
    ) -> Pipeline:
        """Opens a bundle on an engine; see `open_engine` and `Bundle.open` for the arguments.

        Without a precision it is fp32, or the bundle's only one. An engine that is already open
        on the bundle is taken as it is, and becomes the pipeline's to close. With `latency_ms`
        every answer keeps to that time unless it is asked otherwise; see `planner`.

        Raises:
            BudgetError, BundleError, EngineError, CheckpointError, MissingExtraError.
            InputError: `trust` with a bundle that is open already.
        """
        if isinstance(bundle, Bundle):
            if trust is not None:
                raise InputError("this bundle is open already: give trust to Bundle.open")
        else:
            bundle = Bundle.open(bundle, trust)
        if latency_ms is not None:
            check_latency(latency_ms)
        if not isinstance(engine, str) and not hasattr(engine, "session"):
            raise EngineError(f"engine is {told(engine)}: give a name, such as ort-cpu")
        coder = PromptCoder.load(
            bundle.manifest.prompt, bundle.file("tokenizer.json"), bundle.file("psc_tokenizer.json")
        )
        if isinstance(engine, str):
            precision = default_precision(bundle) if precision is None else precision
            engine = open_engine(engine, bundle, precision, threads, checkpoint)
        pipe = cls(bundle, Chain(engine, bundle.manifest, coder), threads, latency_ms)
        if latency_ms is not None:
            try:
                pipe.planner()
            except BaseException:
                pipe.close()
                raise
        return pipe

    def planner(self, progress: Callable[[str], None] = lambda step: None) -> Planner:
        """Chooses budgets for a time. The first call measures this machine if no earlier run has.

        Args:
            progress: called with a stage's name as its measurement begins.
        """
        if self._planner is None:
            from geomag_edge.runtime.chain.probe import model_of

            with self.chain.door.inside(), self._planning:
                if self._planner is None:  # no other thread has measured meanwhile
                    model = model_of(self, self.threads, False, progress)
                    self._planner = Planner.of(self.bundle, model)
        return self._planner

    def open(
        self,
        image: Any,
        bands: Sequence[int] | None = None,
        value_range: Sequence[float] | Sequence[Sequence[float]] | None = None,
        nodata: float | None = None,
    ) -> SceneSession:
        """Opens an image for several prompts, which then share its encoded views.

        Args:
            image: a path, a URL or another name that GDAL reads, a PIL image, or an array [H,W]
                or [H,W,C].
            bands: three 1-based band numbers, or one; default what the file says, else the first.
            value_range: what becomes 0 and 255 for other types than uint8: one pair, or three.
            nodata: the value of pixels without data, where the image itself does not say it.
        """
        self.chain.door.check()
        scene = Scene.open(image, bands, value_range, nodata)
        # What an engine has to say about itself goes with every answer, before the image's notes.
        own = (self._judged_elsewhere,) if self._judged_elsewhere else ()
        scene.notes = (*getattr(self.chain.engine, "notes", ()), *own, *scene.notes)
        return SceneSession(self.chain, scene, self.deadline)

    def __call__(
        self,
        image: Any,
        prompt: str,
        budget: str | int | TokenBudget | None = None,
        max_new_tokens: int = 64,
        answer_prefix: str = "",
        on_text: Callable[[str], None] | None = None,
        bands: Sequence[int] | None = None,
        value_range: Sequence[float] | Sequence[Sequence[float]] | None = None,
        latency_ms: float | None = None,
        sweep_px: int | None = None,
        nodata: float | None = None,
    ) -> Result:
        """Answers one prompt about one image; see `SceneSession.ask` and `open`.

        With `latency_ms` (or the pipeline's own, where no budget is given) the clock starts here:
        opening the image counts, pasting masks into its frame, which is done on demand, does not.

        Raises:
            BudgetError: a budget and a time, or no positive time.
        """
        deadline = self.deadline(budget, latency_ms)
        with self.open(image, bands, value_range, nodata) as session:
            return session.ask(
                prompt, budget, max_new_tokens, answer_prefix, on_text, deadline, sweep_px
            )

    def deadline(
        self, budget: str | int | TokenBudget | None = None, latency_ms: float | None = None
    ) -> Deadline | None:
        """A deadline that starts now, or None where no time was asked for.

        Args:
            budget: what else was asked for.
            latency_ms: None is the pipeline's own, unless a budget is given.
        """
        if latency_ms is None and budget is None:
            latency_ms = self.latency_ms
        if latency_ms is None:
            return None
        if budget is not None:
            raise BudgetError("a budget and a latency exclude each other: give one of them")
        return Deadline(self.planner(), latency_ms)

    def close(self) -> None:
        """Frees the engine, once no query runs any more; nothing can be asked from now on."""
        self.chain.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Pipeline cannot be copied or sent to another process: send the bundle's path, and "
            "load it there"
        )

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
