"""`auto`: for every graph the engine that is fastest on this machine, by measurement.

No engine is the fastest for every graph (on a CPU, OpenVINO wins most encoders and ONNX Runtime
most decoders), and none is on every machine. So each candidate opens the graph, answers the
bundle's reference inputs, and is timed on them if its answers are within tolerance; the choice is
remembered (`runtime/remembered.py`). Between graphs values are numpy arrays.

With precision `auto`, every precision that the bundle has, and none that failed its gate, competes
too, and the LLM may be split: one form for the prompt, another for the answer's tokens, where that
gains enough to be worth two copies of its weights. Each recipe was judged alone; what the chosen
mixture loses is for `geomag-edge eval --engine auto --precision auto` to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

from geomag_edge.errors import EngineError, GeoMagError
from geomag_edge.graphs import CHAIN, TOLERANCES, Tolerance, present_names
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engine import (
    ANY,
    BF16,
    BF16_ENGINES,
    ENGINES,
    Engine,
    Session,
    graph_set,
    graph_sets,
    open_engine,
)
from geomag_edge.runtime.feeds import step_feeds
from geomag_edge.runtime.reference import FILES, Call, load_reference
from geomag_edge.runtime.remembered import conditions, place, recall, remember
from geomag_edge.runtime.split import HANDS_OVER, SplitSession
from geomag_edge.runtime.values import HOST, Values, values_of
from geomag_edge.runtime.verify import replay

CANDIDATES = tuple(name for name in ENGINES if name not in ("auto", "torch"))
"""Engines that `auto` tries; `torch` is the reference and needs the checkpoint."""

ANSWER_TOKENS = 16
"""A typical answer: how many decode steps count beside one prefill."""

TIMED_STEPS = 4
"""Decode steps that are really run; their mean stands for all `ANSWER_TOKENS`."""

ROUNDS, ENOUGH_S = (3, 20), 1.0
"""Least and most rounds of a timing, and the time after which the least is enough."""

_FORM_OF = {"ort-cpu": "onnxruntime", "ort-cuda": "onnxruntime", "openvino": "openvino"}
"""Which file of a graph an engine reads (`geomag_edge.graphs.FORMS`); others read TensorRT's."""

HOPELESS = 4
"""How many times another's time a form may take and still be timed again."""

Clock = Callable[[], float]
Parts = tuple[float, ...]
Work = Callable[[Session, Clock], Parts]
"""(open session, clock in seconds) -> milliseconds of the parts of one round of a graph's typical
work: for the LLM the prompt and the answer's tokens, else all in one."""

SPLIT_GAIN = 0.9
"""The LLM is split if that takes at most so much of its fastest single form's time."""


@dataclass(frozen=True)
class Measured:
    """One candidate: its best ms, whole and of each part, and its largest error over an output's
    scale. `engine` is an engine's name, or with precision `auto` ENGINE/PRECISION."""

    engine: str
    provider: str
    ms: float
    relative: float
    parts: Parts = ()


@dataclass(frozen=True)
class Choice:
    """A graph's engine, and why. `left_out` gives the reason of each candidate not measured;
    `decode` names what makes the answer's tokens, where that is another."""

    graph: str
    engine: str
    work: str
    measured: tuple[Measured, ...]
    left_out: dict[str, str]
    decode: str | None = None


def left_out_notes(choices: Sequence[Choice]) -> list[str]:
    """In plain words which engines and forms nobody measured: an engine that ran no graph at all is
    named once, with the first of its reasons."""
    ran = {_engine_of(one.engine) for choice in choices for one in choice.measured}
    absent: dict[str, str] = {}
    partly: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        for form, reason in choice.left_out.items():
            if _engine_of(form) in ran:
                partly.setdefault((form, reason), []).append(choice.graph)
            else:
                absent.setdefault(_engine_of(form), reason)
    listed = "; ".join(f"{name} ({reason})" for name, reason in absent.items())
    notes = [f"auto chose without {listed}"] if absent else []
    return notes + [
        f"auto left {form} out for {', '.join(graphs)}: {reason}"
        for (form, reason), graphs in partly.items()
    ]


def _engine_of(form: str) -> str:
    return form.partition("/")[0]


def choose(
    graph: str,
    candidates: Mapping[str, Callable[[], Session]],
    calls: list[Call],
    tolerance: Tolerance,
    layers: int,
    clock: Clock = time.perf_counter,
) -> Choice:
    """Opens each candidate alone, checks its answers, times it, closes it; the fastest is chosen.

    One at a time, because two copies of a language model may not fit; the best round counts,
    because what else the machine does can only slow a round down.

    Args:
        graph: the graph's name.
        candidates: engine name -> opens the graph in it.
        calls: the reference's calls of this graph.
        tolerance: what counts as the same answer.
        layers: of the LLM.
        clock: in seconds.

    Raises:
        EngineError: no candidate can run the graph within tolerance.
    """
    work, described = _work(graph, calls, layers)
    measured: list[Measured] = []
    left_out: dict[str, str] = {}
    for name, opened in candidates.items():
        try:
            session = opened()
        except GeoMagError as e:
            left_out[name] = str(e)
            continue
        try:
            drifts = replay(session, calls, tolerance)  # warms up, too
            if past := next((d for d in drifts if not d.ok), None):
                left_out[name] = (
                    f"its output {past.output} is {past.relative:.1e} of its scale off, "
                    f"{tolerance.relative:.0e} is allowed"
                )
                continue
            worst = max((d.relative for d in drifts), default=0.0)
            to_beat = min((m.ms for m in measured), default=float("inf"))
            parts = _best(session, work, clock, to_beat)
            measured.append(Measured(name, session.provider, sum(parts), worst, parts))
        except GeoMagError as e:
            left_out[name] = str(e)
        finally:
            session.close()
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise EngineError(f"no engine of this machine can run the graph {graph}: {reasons}")
    fastest = min(measured, key=lambda m: m.ms)
    return Choice(graph, fastest.engine, described, tuple(measured), left_out)


def fastest_of(graph: str, choices: list[Choice]) -> Choice:
    """One choice out of those among the forms of each precision; see `SPLIT_GAIN`.

    Raises:
        EngineError: nothing was measured.
    """
    measured = tuple(m for choice in choices for m in choice.measured)
    left_out = {name: why for choice in choices for name, why in choice.left_out.items()}
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise EngineError(f"no engine of this machine can run the graph {graph}: {reasons}")
    best = min(measured, key=lambda m: m.ms)
    whole = Choice(graph, best.engine, choices[0].work, measured, left_out)
    able = [m for m in measured if m.engine.partition("/")[0] in HANDS_OVER and len(m.parts) == 2]
    if graph != "llm" or not able:
        return whole
    first = min(able, key=lambda m: m.parts[0])
    rest = min(able, key=lambda m: m.parts[1])
    if first is rest or first.parts[0] + rest.parts[1] > SPLIT_GAIN * best.ms:
        return whole
    return replace(whole, engine=first.engine, decode=rest.engine)


def _best(session: Session, work: Work, clock: Clock, to_beat: float) -> Parts:
    """The fastest milliseconds of each part; two rounds are enough for a form that is far slower
    than another."""
    start = clock()
    rounds: list[Parts] = []
    while len(rounds) < ROUNDS[0] or (len(rounds) < ROUNDS[1] and clock() - start < ENOUGH_S):
        rounds.append(work(session, clock))
        if len(rounds) == 2 and min(map(sum, rounds)) > HOPELESS * to_beat:
            break
    return tuple(min(part) for part in zip(*rounds, strict=True))


def _work(graph: str, calls: list[Call], layers: int) -> tuple[Work, str]:
    """A graph's typical work, and what it is in plain words."""
    if not calls:
        raise EngineError(
            f"the bundle's reference never runs the graph {graph}, so engine auto has nothing to "
            "time: export the bundle again, or name an engine"
        )
    if graph == "llm":
        prefill = max((c.inputs for c in calls), key=lambda feeds: feeds["inputs_embeds"].shape[1])
        length = prefill["inputs_embeds"].shape[1]
        described = f"prefill of {length} tokens, {ANSWER_TOKENS} decode steps"
        return lambda session, clock: _answer_ms(session, prefill, layers, clock), described

    def every_call(session: Session, clock: Clock) -> Parts:
        start = clock()
        for call in calls:
            session.run(call.inputs)
        return ((clock() - start) * 1e3,)

    return every_call, f"the reference's {len(calls)} calls"


def _answer_ms(session: Session, prefill: Mapping[str, Any], layers: int, clock: Clock) -> Parts:
    """One prefill and a typical answer's decode steps, the cache kept by the engine."""
    kept = frozenset(present_names(layers))
    past = prefill["attention_mask"].shape[1]
    start = clock()
    out = session.run(prefill, keep=kept)
    filled = clock()
    for step in range(TIMED_STEPS):
        last = prefill["inputs_embeds"][:, -1:]
        out = session.run(step_feeds(last, past + step, layers, out), keep=kept)
    decoded = clock()
    return (filled - start) * 1e3, (decoded - filled) * ANSWER_TOKENS / TIMED_STEPS * 1e3


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
            threads: CPU threads of a graph; None leaves it to the engines.
            anew: measure even what is remembered.
            progress: called with a few words as each graph's turn comes.
            candidates: names of the engines to choose from.
        """
        self.bundle, self.precision, self.threads = bundle, precision, threads
        self.choices: dict[str, Choice] = {}
        self._not_remembered: str | None = None
        self._anew, self._candidates = anew, candidates
        self._engines: dict[tuple[str, str], Engine] = {}
        self._calls: list[Call] | None = None
        try:
            for graph in CHAIN:
                progress(graph)
                self._decide(graph)
        except BaseException:
            self.close()
            raise
        self._calls = None  # the reference is needed no more

    def session(self, graph: str) -> Session:
        """Opens one graph in its engine, whose name the session's provider begins with."""
        if graph not in self.choices:
            self._decide(graph)
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
        notes = left_out_notes([self.choices[graph] for graph in CHAIN])
        return notes + ([self._not_remembered] if self._not_remembered else [])

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
            self._engines[name, precision] = open_engine(name, self.bundle, precision, self.threads)
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
                    record = self.bundle.record(graph, stored, _FORM_OF.get(name, "tensorrt"))
                    sums = [
                        self.bundle.manifest.files[f] for f in (record["file"], *record["data"])
                    ]
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
        self.choices[graph] = choice

    def _measure(self, graph: str) -> Choice:
        if self.precision not in (*TOLERANCES, ANY):
            raise EngineError(
                f"engine auto knows no tolerance for {self.precision}: name an engine, such as "
                "ort-cpu"
            )
        if self._calls is None:
            samples = load_reference(*(self.bundle.file(f"reference/{name}") for name in FILES))
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
    except (KeyError, TypeError, AttributeError):
        return None
    known = choice.engine in candidates and choice.decode in (None, *candidates)
    return choice if choice.graph == graph and known else None
