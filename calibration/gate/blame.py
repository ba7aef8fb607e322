"""Which layers a precision's errors come from: each one set free in turn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from geomag_edge.calibration.quantization.switch import SwitchEngine, SwitchSession
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.reference import Call, Sample
from geomag_edge.runtime.engines.replay import difference


@dataclass(frozen=True)
class Blame:
    """What one node's quantised input costs its graph; nodes that read the same have the same.

    Attributes:
        graph, node: the ONNX node.
        alone: error of the graph's outputs with this node alone quantised, over their scale.
        saved: how much the error of the whole graph falls when this node is set free.
    """

    graph: str
    node: str
    alone: float
    saved: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def blame(bundle: Bundle, precision: str, samples: list[Sample]) -> list[Blame]:
    """Every node that reads a quantised activation, the worst first.

    Each graph is replayed on the reference's inputs, one call of each kind, so a graph is blamed
    for its own errors alone.

    Args:
        bundle: with the precision's graphs and reference samples.
        precision: the one to look into.
        samples: of `load_reference`.
    """
    engine = SwitchEngine(bundle, precision)
    found: list[Blame] = []
    for graph in bundle.manifest.graphs[precision]:
        calls = [
            next(c for c in s.calls if c.graph == graph)
            for s in samples
            if any(c.graph == graph for c in s.calls)
        ]
        if graph == "psc" or not calls:
            continue
        session = engine.session(graph)
        nodes = [(g, node) for g, node in engine.nodes() if g == graph]
        if nodes:
            engine.wide = frozenset()
            whole = _error(session, calls)
            for key in nodes:
                shared = engine.sharing(key)
                engine.wide = shared
                saved = whole - _error(session, calls)
                engine.wide = set(nodes) - shared
                found.append(Blame(graph, key[1], _error(session, calls), saved))
        session.close()
    return sorted(found, key=lambda b: max(b.alone, b.saved), reverse=True)


def _error(session: SwitchSession, calls: list[Call]) -> float:
    """The mean over calls and outputs of the largest error over the output's scale."""
    errors = []
    for call in calls:
        outputs = session.run(call.inputs)
        errors += [
            difference(expected, outputs[name])[1]
            for name, expected in call.outputs.items()
            if not name.startswith("present.")
        ]
    return sum(errors) / len(errors)
