"""Capture: what the linear layers of every graph read while the whole chain answers questions.

The float32 bundle's own pipeline runs. Each graph is opened as an observed copy, whose linear
layers' inputs are further outputs; its weights stay in the bundle's file. After each run the
outputs are folded into histograms and dropped, so memory does not grow with the set.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from geomag_edge.budgets import TokenBudget
from geomag_edge.calibration.sets.calibrating import CalibrationSet
from geomag_edge.disk.onnx_model import load_ir, load_proto
from geomag_edge.errors import CalibrationError, EngineError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle, Manifest
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.ort import inference_session

from .linears import find_linears
from .ranges import BINS, PERCENTILE, SAMPLE, Histogram
from .scales import Channels, GraphScales, Scales, TensorScale
from .sequences import COUNT, Spoken, chosen_questions, spoken_of

MAX_NEW_TOKENS = 32
"""Decode steps of one answer that are watched."""
FORCED_PREFIX = "[SEG]"


class Statistics:
    """One tensor's histogram and channels; `axis` is its axis of channels."""

    def __init__(self, axis: int):
        self.axis = axis
        self.histogram = Histogram()
        self._absmax: NDArray[np.float32] | None = None
        self._squares: NDArray[np.float64] | None = None
        self._rows = 0

    def add(self, values: NDArray) -> None:
        """Adds one run's tensor."""
        if not values.size:
            return
        rows = np.moveaxis(values, self.axis, -1).reshape(-1, values.shape[self.axis])
        magnitudes = np.abs(rows, dtype=np.float32)
        absmax = magnitudes.max(axis=0)
        self.histogram.add(magnitudes, float(absmax.max()))
        squares = np.einsum("rc,rc->c", magnitudes, magnitudes, dtype=np.float32)
        if self._absmax is None or self._squares is None:
            self._absmax, self._squares = absmax, squares.astype(np.float64)
        else:
            np.maximum(self._absmax, absmax, out=self._absmax)
            self._squares += squares
        self._rows += len(rows)

    def scale(self) -> TensorScale:
        """The thresholds."""
        return TensorScale(self.histogram.thresholds(), self.histogram.seen)

    def channels(self) -> Channels:
        """The channels' largest magnitudes and root mean squares."""
        assert self._absmax is not None
        assert self._squares is not None
        return Channels(self._absmax, np.sqrt(self._squares / self._rows).astype(np.float32))


class ObservingEngine:
    """ONNX Runtime on the CPU, watching the linear layers of every graph; see `Engine`.

    Attributes:
        statistics: graph -> tensor -> what was seen.
        calls: runs of each graph.
        heard: what the LLM read for the latest answer, f[t,D] of the prompt and of each step.
    """

    name = "ort-cpu"
    precision = "fp32"

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.bundle, self.threads = bundle, threads
        self.statistics: dict[str, dict[str, Statistics]] = {}
        self.calls: Counter[str] = Counter()
        self.heard: list[NDArray] = []

    def session(self, graph: str) -> ObservedSession:
        """Opens the observed copy of a graph, its files checked first."""
        path = self.bundle.graph(graph, self.precision)
        watched = {linear.tensor: linear.channel_axis for linear in find_linears(load_ir(path))}
        seen = {name: Statistics(axis) for name, axis in watched.items()}
        self.statistics[graph] = seen
        heard = self.heard if graph == "llm" else None
        return ObservedSession(graph, path, seen, self.calls, self.threads, heard)

    def close(self) -> None:
        """Nothing is held beyond the sessions."""


class ObservedSession:
    """One graph whose linear layers' inputs are folded into statistics after each run."""

    provider = "CPUExecutionProvider"

    def __init__(
        self,
        graph: str,
        path: Path,
        seen: dict[str, Statistics],
        calls: Counter[str],
        threads: int | None,
        heard: list[NDArray] | None = None,
    ):
        self._graph, self._seen, self._calls, self._heard = graph, seen, calls, heard
        model = load_proto(path)
        self._outputs = [output.name for output in model.graph.output]
        feeds = {value.name: value for value in model.graph.input}
        kind = onnx.TensorProto.FLOAT
        inner = [name for name in seen if name not in feeds and name not in self._outputs]
        model.graph.output.extend(onnx.helper.make_tensor_value_info(n, kind, None) for n in inner)
        self._names = self._outputs + inner
        self._inputs = {name: _dtype(value) for name, value in feeds.items()}
        try:
            self._session = inference_session(model.SerializeToString(), threads, path.parent)
        except Exception as e:
            reason = str(e).strip().splitlines()[0]
            raise EngineError(
                f"ONNX Runtime cannot load {path.name} to observe it: {reason}"
            ) from e

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; nothing is kept by the engine."""
        arrays = {
            name: np.ascontiguousarray(value, dtype=self._inputs[name])
            for name, value in feeds.items()
        }
        if self._graph == "encoder":  # view by view, so that memory is that of one view
            views = [self._run_once({"views": view[None]}) for view in arrays["views"]]
            return {name: np.concatenate([v[name] for v in views]) for name in self._outputs}
        return self._run_once(arrays)

    def _run_once(self, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
        self._calls[self._graph] += 1
        if self._heard is not None:
            if not arrays["position_ids"][0, 0]:
                self._heard.clear()
            self._heard.append(arrays["inputs_embeds"][0])
        values = self._session.run(self._names, arrays)
        made = dict(zip(self._names, values, strict=True))
        for name, statistics in self._seen.items():
            try:
                statistics.add(made[name] if name in made else arrays[name])
            except CalibrationError as e:
                raise CalibrationError(
                    f"graph {self._graph} gave {e} at {name}: run `geomag-edge verify`, and check "
                    "the checkpoint"
                ) from e
        return {name: made[name] for name in self._outputs}

    def close(self) -> None:
        """Drops the session, and with it its memory."""
        del self._session


def _dtype(value: onnx.ValueInfoProto) -> np.dtype:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


@dataclass
class Captured:
    """What a capture saw, for people.

    Attributes:
        scales: what is stored.
        asked: (level of the set or "-", routed level, budget) -> questions.
        calls: runs of each graph.
        seconds: it took.
        peak_memory_mb: the process's largest resident size until then.
    """

    scales: Scales
    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_memory_mb: float = 0.0


def capture(
    bundle: Bundle,
    data: CalibrationSet,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Captured:
    """Asks the bundle's fp32 graphs every question of a set and gathers ranges.

    Budgets take turns within each level: as routed, the smallest of the manifest's, as routed,
    the largest. The mask head must be seen too: a pixel-level question that is answered without a
    mask is asked once more with its answer begun by `[SEG]`.

    Args:
        bundle: holds fp32 graphs.
        data: from `open_calibration_set`.
        threads: CPU threads of a graph.
        progress: called with each prompt as its work starts.

    Raises:
        BundleError: no fp32 graphs.
        CalibrationError: a graph gives values that are not finite.
    """
    start = time.perf_counter()
    manifest = bundle.manifest
    coder = PromptCoder.load(
        manifest.prompt, bundle.file("tokenizer.json"), bundle.file("psc_tokenizer.json")
    )
    engine = ObservingEngine(bundle, threads)
    asked: Counter[tuple[str, str, str]] = Counter()
    turns: dict[str | None, int] = defaultdict(int)
    budgets = budget_turns(manifest)
    kept = chosen_questions(len(data.questions))
    spoken: list[Spoken] = []
    with Pipeline(bundle, Chain(engine, manifest, coder)) as pipe:
        for image, questions in data.pictures():
            with pipe.open(image) as session:
                for question in questions:
                    progress(question.prompt)
                    budget = budgets[turns[question.level] % len(budgets)]
                    turns[question.level] += 1
                    result = session.ask(question.prompt, budget, MAX_NEW_TOKENS)
                    if asked.total() in kept:
                        spoken.append(spoken_of(engine.heard))
                    level = question.level or result.granularity
                    asked[level, result.granularity, str(result.budget)] += 1
                    if level == "pixel" and not result.masks:
                        session.ask(question.prompt, budget, 1, FORCED_PREFIX)
    notes = list(data.notes)
    graphs = {}
    for name, tensors in engine.statistics.items():
        seen = {tensor: s for tensor, s in tensors.items() if s.histogram.seen}
        if tensors and not seen:
            notes.append(f"graph {name} never ran on this set: it stays wide")
        graphs[name] = GraphScales(
            graph_digests(bundle)[name],
            {tensor: s.scale() for tensor, s in seen.items()},
            {tensor: s.channels() for tensor, s in seen.items()},
        )
    about = describe(data) | {"levels": dict(Counter(level for level, _, _ in asked.elements()))}
    scales = Scales(about, settings(), graphs, notes, spoken)
    seconds = time.perf_counter() - start
    return Captured(scales, asked, engine.calls, seconds, _peak_memory_mb())


def _peak_memory_mb() -> float:
    """The largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def budget_turns(manifest: Manifest) -> list[TokenBudget | None]:
    """The budgets that questions take in turn; None is what the router asks for."""
    ordered = sorted(manifest.budgets.values(), key=lambda budget: budget.visual_tokens)
    return [None, ordered[0], None, ordered[-1]]


def describe(data: CalibrationSet) -> dict[str, Any]:
    """The set, as the scales and the manifest name it."""
    return {"name": data.name, "digest": data.digest, "questions": len(data.questions)}


def settings() -> dict[str, Any]:
    """All that the thresholds depend on beyond the set and the graphs."""
    return {
        "bins": BINS,
        "sample": SAMPLE,
        "percentile": PERCENTILE,
        "max_new_tokens": MAX_NEW_TOKENS,
        "sequences": COUNT,
        "budgets": "routed, smallest, routed, largest",
    }


def graph_digests(bundle: Bundle) -> dict[str, str]:
    """sha256 of every graph that is observed, its weights' file included where it has one."""
    digests = {}
    for name in CHAIN:
        record = bundle.record(name, "fp32")
        files = [record["file"], *record["data"]]
        digests[name] = "+".join(bundle.manifest.files[file][:16] for file in files)
    return digests
