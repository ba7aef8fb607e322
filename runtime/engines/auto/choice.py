"""Choosing a graph's engine by measurement: candidates are opened, checked, timed, compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from geomag_edge.errors import EngineError, GeoMagError
from geomag_edge.graphs import Tolerance, present_names
from geomag_edge.runtime.engines.auto.split import HANDS_OVER
from geomag_edge.runtime.engines.engine import Session
from geomag_edge.runtime.engines.feeds import step_feeds
from geomag_edge.runtime.engines.reference import Call
from geomag_edge.runtime.engines.replay import replay

ANSWER_TOKENS = 16
"""A typical answer: how many decode steps count beside one prefill."""

TIMED_STEPS = 4
"""Decode steps that are really run; their mean stands for all `ANSWER_TOKENS`."""

ROUNDS, ENOUGH_S = (3, 20), 1.0
"""Least and most rounds of a timing, and the time after which the least is enough."""

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


def ms_of(choice: Choice) -> float:
    """What a choice takes, as it was measured."""
    by_form = {m.engine: m for m in choice.measured}
    if choice.decode is None:
        return by_form[choice.engine].ms
    return by_form[choice.engine].parts[0] + by_form[choice.decode].parts[1]
