"""`geomag-edge quantize`: float32 graphs -> another precision, judged before it is kept."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import inf
from typing import Any

from geomag_edge.calibration.evaluation.evaluate import evaluate
from geomag_edge.calibration.evaluation.report import Report
from geomag_edge.calibration.gate.blame import Blame, blame
from geomag_edge.calibration.gate.forced import activation_losses, layer_losses
from geomag_edge.calibration.gate.gate import Gate, Verdict, judge
from geomag_edge.calibration.gate.relax import Node, fewest, layers_by_noise
from geomag_edge.calibration.gate.sensitivity import (
    FirstQuestions,
    Probe,
    Search,
    layer_gains,
    measure_layers,
    search,
)
from geomag_edge.calibration.quantization.formats.int4 import BlockWeight, bits_of
from geomag_edge.calibration.quantization.recipes import CALIBRATED, in_4_bits
from geomag_edge.calibration.quantization.scales import load_scales
from geomag_edge.calibration.quantization.write import SOURCE, fit_weights, method_of, write_graphs
from geomag_edge.calibration.sets.items import Dataset
from geomag_edge.disk.amend import amended
from geomag_edge.disk.onnx_model import load_ir
from geomag_edge.errors import InputError
from geomag_edge.graphs import CHAIN, TOLERANCES
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.reference import reference_of
from geomag_edge.runtime.proof.verify import Report as Parity
from geomag_edge.runtime.proof.verify import verify

SEARCH_QUESTIONS = 24
"""A search asks so many for every layer, and the whole set for every choice."""

STEPS = len(CHAIN) + 1
"""How often `progress` is called, plus twice for every engine."""


@dataclass
class Quantized:
    """What came of a recipe.

    Attributes:
        precision: the recipe's name.
        quantized: graph -> ONNX nodes that are narrow now.
        bits: of the LLM's nodes whose weights are in blocks, 4 or 8.
        given_back: what `relax` gave back, as `graph/node`.
        bytes: of the precision's graphs, files shared with another precision included.
        source_bytes: of the float32 graphs.
        special_bytes: of the files that one runtime alone reads.
        parity: engine -> drift at every graph's boundary.
        verdicts: engine -> the gate's outcome; empty for a model that was never trained.
        blamed: where the gate refused, the layers with quantised activations, the worst first.
        search: every layer's loss and gain, where they were asked for.
    """

    precision: str
    quantized: dict[str, list[str]]
    bytes: int
    source_bytes: int
    special_bytes: int
    bits: dict[str, int] = field(default_factory=dict)
    given_back: list[str] = field(default_factory=list)
    parity: dict[str, Parity] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    blamed: list[Blame] = field(default_factory=list)
    search: Search | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the gate let it pass on every engine."""
        return all(v.ok for v in self.verdicts.values())

    def is_narrow(self, graph: str, node: str) -> bool:
        """Whether a node could be given back: to float32, or to 8 bits from 4."""
        if graph == "llm" and self.bits:
            return self.bits.get(node) == 4
        return node in self.quantized.get(graph, ())

    def record(self, method: str | None, keep: Collection[str]) -> dict[str, Any]:
        """What the manifest keeps of it."""
        return {
            "gate": {engine: v.to_json() for engine, v in self.verdicts.items()},
            "quantized": self.quantized,
            "bits": self.bits,
            "given_back": self.given_back,
            "search": self.search.to_json() if self.search else None,
            "method": method,
            "keep": sorted(keep),
            "notes": self.notes,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "precision": self.precision,
            "ok": self.ok,
            "quantized": self.quantized,
            "bits": self.bits,
            "given_back": self.given_back,
            "bytes": self.bytes,
            "source_bytes": self.source_bytes,
            "parity": {engine: p.to_json() for engine, p in self.parity.items()},
            "special_bytes": self.special_bytes,
            "blamed": [b.to_json() for b in self.blamed],
            "search": self.search.to_json() if self.search else None,
            "gate": {engine: v.to_json() for engine, v in self.verdicts.items()},
            "notes": self.notes,
        }


def quantize(
    bundle: Bundle,
    recipe: str,
    data: Dataset | None,
    gate: Gate,
    engines: Sequence[str] = ("ort-cpu",),
    method: str | None = None,
    keep: Collection[str] = (),
    threads: int | None = None,
    search_for: str | None = None,
    relax: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Quantized:
    """Adds a precision to a bundle if it passes the gate; else the bundle stays as it is.

    Args:
        bundle: holds float32 graphs, and scales where the recipe needs them.
        recipe: one of `recipes.RECIPES`; also the precision's name.
        data: what to ask; None only for a model that was never trained, whose answers mean
            nothing: such a precision is kept without a verdict.
        gate: what may be lost.
        engines: what the precision is judged on, each against float32 on `ort-cpu`.
        method, keep: see `write_graphs`.
        threads: CPU threads of a graph.
        search_for: an engine: measure every layer on it, and quantise those alone that gain time
            there and that the gate lets pass.
        relax: if the gate refuses, give back the noisiest layers, as few as let it pass; see
            `relax`.
        progress: called with a few words as each step starts.

    Raises:
        BundleError: no float32 graphs, or no scales.
        InputError: a trained model and no data.
    """
    task = _Task(bundle, recipe, data, gate, tuple(engines), method, threads, progress)
    task.asked()
    try:
        with amended(bundle, f"onnx/{recipe}") as change:
            fitted = None
            if in_4_bits(recipe):
                fitted = fit_weights(bundle, load_scales(bundle), threads, progress)
            found = None
            if search_for is not None:
                write_graphs(change, recipe, method, keep, progress, fitted)
                found = task.searched(change.bundle, search_for)
                keep = [*keep, *map(_pattern, found.wide)]

            def attempt(back: Sequence[Node] = ()) -> Quantized:
                """Writes and judges the precision with some layers given back."""
                change.empty()
                kept = [*keep, *map(_pattern, back)]
                narrow = write_graphs(change, recipe, method, kept, progress, fitted)
                result = Quantized(recipe, narrow, *_sizes(change.bundle, recipe), search=found)
                result.given_back = [f"{graph}/{node}" for graph, node in back]
                if fitted is not None:
                    result.bits = bits_of(load_ir(change.bundle.graph("llm", recipe)))
                task.judged(change.bundle, result)
                return result

            result = attempt()
            if relax and not result.ok and recipe in CALIBRATED:
                order = task.noisiest(change.bundle, fitted)
                result = _relaxed([n for n in order if result.is_narrow(*n)], attempt, result)
            if not result.ok:
                result.blamed = blame(change.bundle, recipe, reference_of(bundle))
                raise _Refused(result)
            result.notes += past_tolerance(result.parity)
            change.bundle.manifest.parity[recipe] = {
                engine: parity.to_json() for engine, parity in result.parity.items()
            }
            change.bundle.manifest.accuracy[recipe] = result.record(method, keep)
    except _Refused as refused:
        return refused.result
    return result


def _pattern(node: Node) -> str:
    """A node as `keep` names it, and no other."""
    return f"{node[0]}/{glob.escape(node[1])}"


@dataclass
class _Task:
    """What a precision is made of and judged by; see `quantize` for the fields."""

    bundle: Bundle
    recipe: str
    data: Dataset | None
    gate: Gate
    engines: tuple[str, ...]
    method: str | None
    threads: int | None
    progress: Callable[[str], None]
    reference: Report | None = None
    """What float32 answers; None for a model that was never trained."""

    def asked(self) -> None:
        """Asks float32.

        Raises:
            InputError: a trained model and no data.
        """
        untrained = self.bundle.manifest.untrained
        if self.data is None and not untrained:
            raise InputError(
                "a precision is judged by its answers: give --data with a set of questions, such "
                "as scenes:7:24"
            )
        if self.data is not None and not untrained:
            self.progress(f"asking {SOURCE}")
            with Pipeline.load(self.bundle, "ort-cpu", SOURCE, self.threads) as pipe:
                self.reference = evaluate(pipe, self.data)

    def judged(self, made: Bundle, result: Quantized) -> None:
        """Parity and the gate's verdict on every engine, up to the first that refuses.

        Args:
            made: the bundle with the precision.
            result: takes both.
        """
        samples, recipe = reference_of(made), self.recipe
        if self.reference is None:
            result.notes.append(
                f"never trained: {', '.join(made.manifest.untrained)}; not judged by its answers"
            )
        for engine in self.engines:
            with Pipeline.load(made, engine, recipe, self.threads) as pipe:
                self.progress(f"parity on {engine}")
                result.parity[engine] = verify(pipe.chain, samples, TOLERANCES[recipe])
                if self.reference is None or self.data is None:
                    continue
                self.progress(f"asking {recipe} on {engine}")
                verdict = judge(evaluate(pipe, self.data), self.reference, self.gate)
                verdict.exact_integers = getattr(pipe.chain.engine, "exact_integers", None)
            result.verdicts[engine] = verdict
            if not verdict.ok:
                self.progress(f"refused on {engine}: {'; '.join(verdict.reasons)}")
                return

    def noisiest(self, made: Bundle, fitted: Mapping[str, BlockWeight] | None) -> list[Node]:
        """What to give back first, of the precision that `made` holds."""
        scales, graph = load_scales(self.bundle), self.bundle.graph("llm", SOURCE)

        def weighing(node: str) -> None:
            self.progress(f"weighing {node}")

        if fitted:
            four = {node: weight for node, weight in fitted.items() if weight.bits == 4}
            losses = layer_losses(graph, scales.spoken, four, self.threads, weighing)
        else:
            losses = activation_losses(
                graph, made, self.recipe, scales.spoken, self.threads, weighing
            )
        method = method_of(self.bundle, self.method)
        return layers_by_noise(self.bundle, self.recipe, SOURCE, scales, method, losses)

    def searched(self, made: Bundle, engine: str) -> Search:
        """Every layer's loss and gain on an engine, and the choice.

        Raises:
            InputError: a model that was never trained, or no data.
        """
        if self.reference is None or self.data is None:
            raise InputError("a search weighs answers: it needs a trained model and --data")
        samples, recipe = reference_of(made), self.recipe
        self.progress("timing layers")
        gains = layer_gains(made, SOURCE, samples, engine, self.threads)
        blamed = blame(made, recipe, samples)
        few = FirstQuestions(self.data, SEARCH_QUESTIONS)
        with closing(Probe(made, recipe, few, self.threads)) as probe:
            layers = measure_layers(probe, gains, blamed, self.progress)
        with closing(Probe(made, recipe, self.data, self.threads)) as probe:
            return search(layers, probe, self.reference, self.gate, engine, self.progress)


def past_tolerance(parity: Mapping[str, Parity]) -> list[str]:
    """What `verify` will say of a precision that was kept for its answers."""
    notes = []
    for engine, report in parity.items():
        if not report.ok:
            notes.append(
                f"kept, because its answers hold, though `verify` will call it past tolerance on "
                f"{engine}: {report.first_drift}"
            )
        moved = max((c.max_crop_px for c in report.chain), default=0.0)
        if moved >= 1:
            place = f"another place, {moved:.0f} px away" if moved < inf else "more or fewer places"
            notes.append(
                f"on {engine} a reference question magnifies {place}, which is no drift: the gate "
                "has judged the answers"
            )
    return notes


def _relaxed(
    order: Sequence[Node], attempt: Callable[[Sequence[Node]], Quantized], refused: Quantized
) -> Quantized:
    """The precision with as few layers given back as the gate wants, or as it was refused last."""
    last = refused

    def passes(count: int) -> bool:
        nonlocal last
        last = attempt(order[:count])
        return last.ok

    count = fewest(len(order), passes)
    if count is None or len(last.given_back) == count:
        return last
    return attempt(order[:count])


class _Refused(Exception):
    """Leaves `amended` without a change."""

    def __init__(self, result: Quantized):
        self.result = result


def _sizes(bundle: Bundle, precision: str) -> tuple[int, int, int]:
    """Bytes of the precision, of float32, and of what one runtime alone reads."""

    def of(names: set[str]) -> int:
        return sum(bundle.file(name).stat().st_size for name in names)

    portable = bundle.graph_files(precision, forms=False)
    special = bundle.graph_files(precision) - portable
    return of(portable), of(bundle.graph_files(SOURCE)), of(special)
