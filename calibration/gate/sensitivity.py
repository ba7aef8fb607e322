"""Layer by layer: what quantising it costs in answers and gains in time, and which to keep narrow.

The costs come from the whole chain with one layer quantised at a time (`switch`), the gains from
timing each layer's shape on the chosen engine (`linear_times`). The search keeps a layer narrow
only if it gains time there, then gives up the worst ones until the gate lets the rest pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from geomag_edge.calibration.evaluation.compare import compare
from geomag_edge.calibration.evaluation.evaluate import evaluate
from geomag_edge.calibration.evaluation.report import Report
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.switch import SwitchEngine
from geomag_edge.calibration.sets.items import Dataset, Picture
from geomag_edge.disk.onnx_model import load_ir
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.prompts import PromptCoder
from geomag_edge.runtime.chain.chain import Chain
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.reference import Sample

from .blame import Blame
from .gate import Gate, Verdict, judge, same_words
from .linear_times import Shape, activation_shapes, gain_ms, openers, shape_of

Node = tuple[str, str]
"""Graph and ONNX node."""

ANSWER_TOKENS = 12
"""Decode steps of a typical answer: a layer of the LLM runs once in the prefill and so often."""

POINTS = 8
"""Measured points of the curve from nothing quantised to everything."""


@dataclass(frozen=True)
class Layer:
    """What quantising one layer does.

    Attributes:
        graph, node: the ONNX node.
        error: of its graph's outputs with this layer alone quantised, over their scale.
        miou_drop: in points, of the chain with this layer alone quantised.
        changed: share of answers that change then.
        gain_ms: time gained a question on the chosen engine; negative where it costs time.
    """

    graph: str
    node: str
    error: float
    miou_drop: float
    changed: float
    gain_ms: float

    @property
    def loss(self) -> float:
        """Points of mIoU and of answers together; the graph's own error decides between equals."""
        return max(self.miou_drop, 0.0) + 100 * self.changed + self.error

    @property
    def price(self) -> float:
        """Loss for a millisecond: what is given up first."""
        return self.loss / max(self.gain_ms, 1e-6)


@dataclass(frozen=True)
class Point:
    """The chain with the first `layers` of the search's order quantised."""

    layers: int
    gain_ms: float
    miou: float | None
    agreement: float


@dataclass
class Search:
    """The outcome: every layer, the curve, what stays wide, and the gate's verdict on the rest."""

    engine: str
    layers: list[Layer]
    curve: list[Point]
    wide: list[Node]
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class FirstQuestions:
    """The first questions of a set, its pictures kept in memory."""

    def __init__(self, data: Dataset, questions: int):
        self.name = data.name
        self._pictures: list[Picture] = []
        left = questions
        for picture in data.pictures():
            # A scene too large for memory lies in a file that goes with the iteration.
            if not isinstance(picture.image, Path) or picture.image.parent.name == "images":
                self._pictures.append(replace(picture, items=picture.items[:left]))
                left -= len(picture.items)
            if left <= 0:
                self.name = f"{data.name}, first {questions}"
                break

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def pictures(self) -> Iterator[Picture]:
        """The pictures in the set's order."""
        return iter(self._pictures)


class Probe:
    """A quantised precision's chain with switches, asked the same set again and again."""

    def __init__(self, bundle: Bundle, precision: str, data: Dataset, threads: int | None):
        self.engine = SwitchEngine(bundle, precision, threads)
        coder = PromptCoder.load(
            bundle.manifest.prompt, bundle.file("tokenizer.json"), bundle.file("psc_tokenizer.json")
        )
        self.pipe = Pipeline(bundle, Chain(self.engine, bundle.manifest, coder))
        self.data = data
        self.nodes = self.engine.nodes()

    def ask(self, narrow: Collection[Node]) -> Report:
        """The set's answers with only these layers' activations quantised."""
        self.engine.wide = set(self.nodes) - set(narrow)
        return evaluate(self.pipe, self.data)

    def close(self) -> None:
        """Frees the chain."""
        self.pipe.close()


def measure_layers(
    probe: Probe,
    gains: dict[Node, float],
    blamed: Sequence[Blame],
    progress: Callable[[str], None] = lambda name: None,
) -> list[Layer]:
    """Every layer alone against none at all.

    Args:
        probe: on a small set, since the set is asked once for every layer.
        gains: of `layer_gains`.
        blamed: of `blame`: the errors of the graphs' own outputs.
        progress: called with each node's name.
    """
    none = probe.ask(())
    errors = {(b.graph, b.node): b.alone for b in blamed}
    layers = []
    alone: dict[frozenset[Node], Report] = {}
    for graph, node in probe.nodes:
        progress(f"{graph}/{node}")
        shared = frozenset(probe.engine.sharing((graph, node)))
        report = alone.get(shared) or probe.ask(shared)
        alone[shared] = report
        theirs = {r.id: r.text for r in none.records}
        changed = sum(not same_words(r.text, theirs[r.id]) for r in report.records)
        key = (graph, node)
        layers.append(
            Layer(
                graph, node, errors.get(key, 0.0), _drop(report, none),
                changed / len(report.records), gains.get(key, 0.0),
            )
        )  # fmt: skip
    return layers


def _drop(report: Report, reference: Report) -> float:
    try:
        difference = compare(report, reference)["mIoU"].difference
    except KeyError:
        return 0.0
    return 0.0 if difference is None else -100 * difference


def layer_gains(
    bundle: Bundle, source: str, samples: list[Sample], engine: str, threads: int | None
) -> dict[Node, float]:
    """Milliseconds that each layer gains in a typical question, by its shape on an engine.

    Args:
        bundle: with the float32 graphs.
        source: their precision's name.
        samples: reference inputs; the last one's calls stand for a question.
        engine: one of `linear_times.openers`.
        threads: CPU threads.
    """
    open_session = openers(threads).get(engine)
    if open_session is None:
        raise InputError(f"layers cannot be timed on {engine!r}: choose ort-cpu or openvino")
    known: dict[Shape, float] = {}
    gains: dict[Node, float] = {}
    with tempfile.TemporaryDirectory(prefix="geomag-layers-") as folder:
        for graph in bundle.manifest.graphs[source]:
            calls = [c for c in samples[-1].calls if c.graph == graph]
            if graph == "psc" or not calls:
                continue
            path = bundle.graph(graph, source)
            linears = find_linears(load_ir(path))
            decode = [
                c for c in calls if graph == "llm" and c.inputs["inputs_embeds"].shape[1] == 1
            ]
            for call in calls:
                times = ANSWER_TOKENS / len(decode) if any(call is d for d in decode) else 1.0
                shapes = activation_shapes(path, call.inputs)
                for linear in linears:
                    shape = shape_of(linear, shapes[linear.name])
                    if shape not in known:
                        known[shape] = gain_ms(linear, shape.activation, open_session, Path(folder))
                    key = (graph, linear.name)
                    gains[key] = gains.get(key, 0.0) + times * known[shape]
    return gains


def search(
    layers: Sequence[Layer],
    probe: Probe,
    reference: Report,
    gate: Gate,
    engine: str,
    progress: Callable[[str], None] = lambda name: None,
) -> Search:
    """Which layers to quantise: those that gain time, less the dearest, until the gate passes.

    Where narrow weights alone do not pass, the layers' inputs are weighed against them; `quantize`
    judges the outcome against float32 anyway.

    Args:
        layers: of `measure_layers`.
        probe: on the gate's whole set.
        reference: float32's answers on that set.
        gate: what may be lost.
        engine: on which the gains were timed; for the record.
        progress: called with a few words for every run of the set.
    """
    order = sorted((x for x in layers if x.gain_ms > 0), key=lambda x: x.price)
    kept, given_up = len(order), 1
    # Weights and tables are narrow in every run: what they lose, no layer can give back.
    progress("no layer narrow")
    free = probe.ask(())
    against = reference if judge(free, reference, gate).ok else free
    while True:
        progress(f"{kept} layers narrow")
        verdict = judge(probe.ask(_nodes(order[:kept])), against, gate)
        if verdict.ok or kept == 0:
            break
        kept, given_up = max(0, kept - given_up), given_up * 2
    curve = []
    for count in sorted({round(i * len(order) / POINTS) for i in range(POINTS + 1)} | {kept}):
        progress(f"curve at {count} layers")
        point = judge(probe.ask(_nodes(order[:count])), reference, gate)
        gained = sum(x.gain_ms for x in order[:count])
        miou = point.masks.value if point.masks else None
        curve.append(Point(count, gained, miou, point.agreement))
    narrow = set(_nodes(order[:kept]))
    wide = [(x.graph, x.node) for x in layers if (x.graph, x.node) not in narrow]
    return Search(engine, list(layers), curve, wide, verdict)


def _nodes(layers: Sequence[Layer]) -> list[Node]:
    return [(x.graph, x.node) for x in layers]
