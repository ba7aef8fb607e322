"""`auto`: for every graph the engine that is fastest on this machine, by measurement.

No engine is the fastest for every graph (on a CPU, OpenVINO wins most encoders and ONNX Runtime
most decoders), and none is on every machine. So each candidate opens the graph, answers the
bundle's reference inputs, and is timed on them if its answers are within tolerance; the choice is
remembered (`runtime/engines/auto/remembered.py`). Between graphs values are numpy arrays.

With precision `auto`, every precision that the bundle has, and none that failed its gate, competes
too, and the LLM may be split: one form for the prompt, another for the answer's tokens, where that
gains enough to be worth two copies of its weights. Precisions are mixed only where what their
gates saw them lose leaves room for all (`runtime/engines/auto/mixture.py`); else the fastest
that may run together win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

from geomag_edge.errors import EngineError
from geomag_edge.graphs import CHAIN, TOLERANCES
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.auto.choice import (
    Choice,
    Measured,
    choose,
    fastest_of,
    left_out_notes,
    ms_of,
)
from geomag_edge.runtime.engines.auto.mixture import FLOAT, judged_by, mixtures
from geomag_edge.runtime.engines.auto.remembered import conditions, place, recall, remember
from geomag_edge.runtime.engines.auto.split import HANDS_OVER, SplitSession
from geomag_edge.runtime.engines.engine import (
    ANY,
    BF16,
    BF16_ENGINES,
    ENGINES,
    Engine,
    Session,
    graph_set,
    graph_sets,
)
from geomag_edge.runtime.engines.reference import Call, reference_of
from geomag_edge.runtime.engines.single import open_single
from geomag_edge.runtime.engines.values import HOST, Values, values_of

CANDIDATES = tuple(name for name in ENGINES if name not in ("auto", "torch"))
"""Engines that `auto` tries; `torch` is the reference and needs the checkpoint."""

_FORM_OF = {"ort-cpu": "onnxruntime", "ort-cuda": "onnxruntime", "openvino": "openvino"}
"""Which file of a graph an engine reads (`geomag_edge.graphs.FORMS`); others read TensorRT's."""


class AutoEngine:
    """Opens each graph in the engine that was measured to be the fastest for it.

    `choices` says which and why; `notes` says in plain words which engines were left out.
    """

    name = "auto"

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        anew: bool = False,
        progress: Callable[[str], None] = lambda step: None,
        candidates: tuple[str, ...] = CANDIDATES,
    ):
        """Measures the chain's graphs, those that are not remembered, before any is opened.

        Args:
            bundle: the bundle.
            precision: as of `open_engine`.
            threads: as of `open_engine`.
            anew: measure even what is remembered.
            progress: called with a few words as each graph's turn comes.
            candidates: names of the engines to choose from.
        """
        self.bundle, self.precision, self.threads = bundle, precision, threads
        self.choices: dict[str, Choice] = {}
        self._measured: dict[str, Choice] = {}
        self._together: set[str] = set()
        self._not_remembered: str | None = None
        self._anew, self._candidates = anew, candidates
        self._engines: dict[tuple[str, str], Engine] = {}
        self._calls: list[Call] | None = None
        try:
            for graph in CHAIN:
                progress(graph)
                self._decide(graph)
            self._mix()
        except BaseException:
            self.close()
            raise
        self._calls = None  # the reference is needed no more

    def session(self, graph: str) -> Session:
        """Opens one graph in its engine, whose name the session's provider begins with."""
        if graph not in self.choices:
            self._decide(graph)
            self._mix()
        choice = self.choices[graph]
        session = self._named(choice.engine, graph)
        if choice.decode is None:
            return session
        try:
            return SplitSession(session, self._named(choice.decode, graph))
        except BaseException:
            session.close()
            raise

    def _named(self, form: str, graph: str) -> Session:
        session = self._open(form, graph)
        session.provider = f"{form}: {session.provider}"
        return session

    def close(self) -> None:
        """Closes every engine that was opened."""
        for engine in self._engines.values():
            engine.close()
        self._engines = {}

    @property
    def notes(self) -> list[str]:
        """In plain words, one line each: engines left out, and a measurement not remembered."""
        notes = left_out_notes([self.choices[graph] for graph in CHAIN]) + self._not_mixed()
        return notes + ([self._not_remembered] if self._not_remembered else [])

    @property
    def opened(self) -> list[Engine]:
        """The engines that run graphs now."""
        forms = {x for c in self.choices.values() for x in (c.engine, c.decode) if x}
        return [self._engine(form) for form in sorted(forms)]

    @property
    def takes_several(self) -> bool:
        """As of `Engine`: only if all of those that run graphs do."""
        return all(getattr(engine, "takes_several", False) for engine in self.opened)

    @property
    def values(self) -> Values:
        """How the chain joins values: an engine's own way only if that engine runs every graph."""
        forms = {x for g in CHAIN for x in (self.choices[g].engine, self.choices[g].decode) if x}
        return values_of(self._engine(forms.pop())) if len(forms) == 1 else HOST

    def _engine(self, form: str) -> Engine:
        name, _, precision = form.partition("/")
        precision = precision or self.precision
        if name not in BF16_ENGINES:  # they compete with the plain graphs, which are no worse
            precision = graph_set(self.bundle, precision)
        if (name, precision) not in self._engines:
            self._engines[name, precision] = open_single(name, self.bundle, precision, self.threads)
        return self._engines[name, precision]

    def _open(self, form: str, graph: str) -> Session:
        return self._engine(form).session(graph)

    def _forms(self, graph: str) -> dict[str, list[str]]:
        """Precision -> the forms in it that compete for a graph, none of them twice."""
        if self.precision != ANY:
            return {self.precision: list(self._candidates)}
        forms: dict[str, list[str]] = {}
        seen = set()
        for stored in graph_sets(self.bundle, ANY):
            wide = BF16 if stored == "fp32" else f"{stored}+{BF16}"
            for precision in (stored, wide):
                for name in self._candidates:
                    if precision == wide and name not in BF16_ENGINES:
                        continue
                    if stored == "fp16" and name in HANDS_OVER:
                        continue  # on a CPU it is float32 with conversions, in minutes
                    sums = self._sums(graph, stored, _FORM_OF.get(name, "tensorrt"))
                    key = name, *sums, precision == wide
                    if precision in TOLERANCES and key not in seen:
                        seen.add(key)
                        forms.setdefault(precision, []).append(f"{name}/{precision}")
        return forms

    def _decide(self, graph: str) -> None:
        """Finds a graph's engine: remembered, or measured and then remembered."""
        stored = graph_sets(self.bundle, self.precision)
        for precision in stored:
            self.bundle.graph(graph, precision)  # a damaged bundle is no engine's fault
        forms = [form for listed in self._forms(graph).values() for form in listed]
        under = conditions(self.bundle, graph, stored, forms, self.threads)
        path = place(graph, self.precision, under)
        choice = None if self._anew else _from_record(recall(path), graph, forms)
        if choice is None:
            choice = self._measure(graph)
            self._not_remembered = remember(path, _to_record(choice, self.precision, under))
        self.choices[graph] = self._measured[graph] = choice

    def _mix(self) -> None:
        """Chooses again from the measured forms, among precisions that may run together."""
        if self.precision != ANY or self.bundle.manifest.untrained:
            return
        stored = graph_sets(self.bundle, ANY)
        found: list[tuple[float, set[str], dict[str, Choice]]] = []
        failed = ""
        for together in mixtures(self.bundle.manifest.accuracy, stored):
            try:
                chosen = {g: self._within(c, together) for g, c in self._measured.items()}
            except EngineError as e:
                failed = str(e)
                continue
            found.append((sum(map(ms_of, chosen.values())), together, chosen))
        if not found:
            raise EngineError(failed)
        _, self._together, self.choices = min(found, key=lambda one: one[0])

    def _within(self, choice: Choice, together: set[str]) -> Choice:
        """A graph's choice among the forms whose files belong to one of these precisions."""
        allowed = [m for m in choice.measured if self._sets_of(m.engine, choice.graph) & together]
        best = fastest_of(choice.graph, [replace(choice, measured=tuple(allowed), decode=None)])
        return replace(best, measured=choice.measured)

    def _sets_of(self, form: str, graph: str) -> set[str]:
        """The precisions as whose judged graph a form may pass; none for bfloat16.

        An engine that the gate asked may run its own file; another one the same file, since
        integers are exact in all of them, but no file that only its own runtime reads.
        """
        name, _, precision = form.partition("/")
        if graph_set(self.bundle, precision) != precision:
            return set()
        own = self._sums(graph, precision, _FORM_OF.get(name, "tensorrt"))
        found = set()
        for one in graph_sets(self.bundle, ANY):
            judges = judged_by(self.bundle.manifest.accuracy.get(one, {})) or ["ort-cpu"]
            judged = {_FORM_OF.get(judge, "tensorrt") for judge in judges}
            judged |= {_FORM_OF.get(name, "tensorrt")} if one == FLOAT else set()
            if any(self._sums(graph, one, kind) == own for kind in judged):
                found.add(one)
        return found

    def _sums(self, graph: str, precision: str, kind: str) -> list[str]:
        record = self.bundle.record(graph, precision, kind)
        return [self.bundle.manifest.files[f] for f in (record["file"], *record["data"])]

    def _not_mixed(self) -> list[str]:
        """Which faster forms were passed over because nobody has judged them beside the others."""
        passed: dict[str, list[str]] = {}
        for graph, choice in self.choices.items():
            fastest = self._measured[graph]
            for form in (fastest.engine, fastest.decode):
                if form is None or form in (choice.engine, choice.decode):
                    continue
                if self._together and not self._sets_of(form, graph) & self._together:
                    passed.setdefault(form.partition("/")[2], []).append(graph)
        beside = " and ".join(sorted(self._together))
        return [
            f"auto passed {precision} over for {', '.join(graphs)}, where it is faster: beside "
            f"{beside} its answers were never judged, or would lose more than the gate allows"
            for precision, graphs in passed.items()
        ]

    def _measure(self, graph: str) -> Choice:
        if self.precision not in (*TOLERANCES, ANY):
            raise EngineError(
                f"engine auto knows no tolerance for {self.precision}: name an engine, such as "
                "ort-cpu"
            )
        if self._calls is None:
            samples = reference_of(self.bundle)
            self._calls = [call for sample in samples for call in sample.calls]
        calls = [call for call in self._calls if call.graph == graph]
        layers = self.bundle.manifest.decoder.layers

        def among(precision: str, forms: list[str]) -> Choice:
            openers = {form: partial(self._open, form, graph) for form in forms}
            return choose(graph, openers, calls, TOLERANCES[precision], layers)

        if self.precision != ANY:
            return among(self.precision, list(self._candidates))
        found, failed = [], {}
        for precision, forms in self._forms(graph).items():
            try:
                found.append(among(precision, forms))
            except EngineError as e:
                failed[precision] = str(e)
        if not found:
            raise EngineError("; ".join(failed.values()))
        return fastest_of(graph, found)


def _to_record(choice: Choice, precision: str, under: dict[str, Any]) -> dict[str, Any]:
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return asdict(choice) | {"precision": precision, "measured_at": when, "under": under}


def _from_record(
    record: dict[str, Any] | None, graph: str, candidates: Sequence[str]
) -> Choice | None:
    """A remembered choice; None if it is not one, so that it gets measured anew."""
    if record is None:
        return None
    try:
        choice = Choice(
            graph=record["graph"],
            engine=record["engine"],
            work=str(record["work"]),
            measured=tuple(
                Measured(**{**m, "parts": tuple(m.get("parts", ()))}) for m in record["measured"]
            ),
            left_out={str(k): str(v) for k, v in record["left_out"].items()},
            decode=record.get("decode"),
        )
        named = {m.engine: sum(m.parts) + m.ms for m in choice.measured}  # numbers, or no record
    except (KeyError, TypeError, AttributeError):
        return None
    known = choice.engine in candidates and choice.decode in (None, *candidates)
    known = known and {choice.engine, choice.decode or choice.engine} <= named.keys()
    return choice if choice.graph == graph and known else None
