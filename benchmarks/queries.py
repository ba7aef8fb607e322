"""Whole queries, timed stage by stage: what `geomag-edge bench` measures.

A query is what a user waits for: the image is opened, asked about, the mask pasted into its frame
and the answer's files written. All cases of an image size take turns, so that whatever else the
machine does hits all alike; nothing is reused from an earlier query.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.energy import Energy
from geomag_edge.benchmarks.machine import peak_mb, reset_peak, resident_mb
from geomag_edge.benchmarks.timing import percentiles
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.answers.outputs import write_outputs
from geomag_edge.runtime.answers.overlay import Looked
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.chain.result import Result
from geomag_edge.runtime.engines.engine import Session

FORMAT, FORMAT_VERSION = "geomag-edge bench", 1

STAGES = (
    "read", "crop", "encode", "select", "project", "prefill", "decode", "mask", "paste", "write",
    "other",
)  # fmt: skip
"""What a query's time is made of; `other` is the rest, so that the stages add up to the total."""

DERIVED = ("total", "first_token", "token", "outside")
"""The whole, the time to the first token, of one decode step, and of all but engines and op."""


@dataclass(frozen=True)
class Ask:
    """The question of every case; a forced prefix and length make forms do the same work."""

    prompt: str = "segment the ships near the pier"
    prefix: str = "[SEG]"
    new_tokens: int = 16


def case_name(engine: str, precision: str, budget: str | None, image_px: int) -> str:
    """A case in words, the same in every run."""
    return f"{engine} {precision}, budget {budget or 'as routed'}, {image_px} px"


@dataclass
class Case:
    """One combination of what is varied, and its measured rounds.

    Attributes:
        engine, precision: what ran.
        budget: as asked for, None for the router's choice.
        image_px: longer side.
        rounds: milliseconds by stage, one record a round.
    """

    engine: str
    precision: str
    budget: str | None
    image_px: int
    rounds: list[dict[str, float]] = field(default_factory=list)
    peaks_mb: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    last: Result | None = None

    @property
    def name(self) -> str:
        """As of `case_name`."""
        return case_name(self.engine, self.precision, self.budget, self.image_px)

    def to_json(self) -> dict[str, Any]:
        """Percentiles, rounds, and what the last answer was."""
        assert self.last is not None
        steps = self.last.decode_steps
        token = percentiles(r["token"] for r in self.rounds)["p50"] if steps else None
        return {
            "engine": self.engine,
            "precision": self.precision,
            "budget": self.budget,
            "image_px": self.image_px,
            "ran_budget": self.last.budget.to_json(),
            "views": 1 + len(self.last.crop_boxes),
            "decode_steps": steps,
            "masks": len(self.last.masks),
            "providers": self.last.providers,
            "stages_ms": {
                stage: percentiles(r[stage] for r in self.rounds)
                | {"rounds": [round(r[stage], 4) for r in self.rounds]}
                for stage in (*STAGES, *DERIVED)
            },
            "tokens_per_s": None if not token else 1e3 / token,
            "query_peak_mb": max(self.peaks_mb) if self.peaks_mb else None,
            "energy_j": percentiles(self.joules)["p50"] if self.joules else None,
        }


class Inside:
    """Adds up the time that a pipeline spends in its graphs."""

    def __init__(self, pipe: Pipeline):
        self.seconds = 0.0
        sessions = pipe.chain.sessions
        for graph, session in list(sessions.items()):
            sessions[graph] = _Counted(session, self)


class _Counted:
    """A session that reports its time."""

    def __init__(self, session: Session, inside: Inside):
        self._session, self._inside = session, inside
        self.provider = session.provider

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """As the session's own."""
        start = time.perf_counter()
        out = self._session.run(feeds, keep)
        self._inside.seconds += time.perf_counter() - start
        return out

    def close(self) -> None:
        """As the session's own."""
        self._session.close()


def query(
    pipe: Pipeline,
    inside: Inside,
    image: Path | str,
    ask: Ask,
    budget: str | None,
    out: Path,
    nodata: float | None = None,
) -> tuple[dict[str, float], Result]:
    """One whole query: milliseconds of `STAGES` and `DERIVED`, and the answer.

    Args:
        pipe: an open pipeline.
        inside: of this pipeline.
        image: a file's path, or another name that `Pipeline.open` takes.
        ask: the question.
        budget: as of `SceneSession.ask`.
        out: where the answer's files go.
        nodata: as of `Pipeline.open`.
    """
    inside.seconds = 0.0
    begin = time.perf_counter()
    with pipe.open(image, nodata=nodata) as session:
        opened = time.perf_counter()
        result = session.ask(ask.prompt, budget, ask.new_tokens, ask.prefix)
        answered = time.perf_counter()
        for mask in result.masks:
            _ = mask.area_px  # goes over every block that the mask touches
        pasted = time.perf_counter()
        seen = Looked(result.view_box, result.crop_boxes, result.relevance)
        write_outputs(
            out, session.scene, {"prompt": ask.prompt, "text": result.text, "boxes": result.boxes},
            result.masks, result.labels, seen,
        )  # fmt: skip
    end = time.perf_counter()
    asked = (answered - opened) * 1e3
    ms = {
        "read": (opened - begin) * 1e3,
        **{stage: value for stage, value in result.timings_ms.items() if stage != "total"},
        "paste": (pasted - answered) * 1e3,
        "write": (end - pasted) * 1e3,
    }
    total = (end - begin) * 1e3
    ms["other"] = total - sum(ms.values())
    before = ("read", "crop", "encode", "select", "project", "prefill")
    return ms | {
        "total": total,
        "first_token": sum(ms[stage] for stage in before),
        "token": ms["decode"] / max(1, result.decode_steps),
        "outside": max(0.0, asked - inside.seconds * 1e3 - ms["crop"]),
    }, result


def measure(
    bundle: Bundle,
    pipes: Mapping[tuple[str, str], Pipeline],
    images: Mapping[int, Path | str],
    budgets: Sequence[str | None],
    ask: Ask,
    rounds: int,
    progress: Callable[[str], None] = lambda name: None,
    nodata: float | None = None,
) -> list[Case]:
    """Times every combination, all of an image size in turn.

    Args:
        bundle: whose context limits the budgets.
        pipes: open pipelines by (engine, precision).
        images: a file for each longer side in px.
        budgets: as of `SceneSession.ask`.
        ask: the question.
        rounds: timed queries of each; one more warms up.
        progress: called with each case's name before a query.
        nodata: of the images, as of `Pipeline.open`.
    """
    if not pipes or not images or not budgets or rounds < 1:
        raise InputError("nothing to measure: give an engine, an image, a budget and a round")
    inside = {key: Inside(pipe) for key, pipe in pipes.items()}
    energy = Energy.of_this_machine()
    every: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="geomag-edge-bench.") as folder:
        for px, image in images.items():
            cases = [Case(*key, budget, px) for key in pipes for budget in budgets]
            for turn in range(rounds + 1):
                for case in cases:
                    progress(case.name)
                    key = case.engine, case.precision
                    fresh, before = reset_peak(), resident_mb()
                    used = energy.joules()
                    ms, case.last = query(
                        pipes[key], inside[key], image, ask, case.budget, Path(folder), nodata
                    )
                    spent = energy.joules()
                    if turn == 0:
                        continue
                    case.rounds.append(ms)
                    if spent is not None and used is not None and spent >= used:
                        case.joules.append(spent - used)
                    if fresh and before is not None and (peak := peak_mb()) is not None:
                        case.peaks_mb.append(round(peak - before, 1))
            every += cases
    return every


def report(
    bundle: Bundle,
    cases: Sequence[Case],
    ask: Ask,
    rounds: int,
    command: str,
    host: dict[str, Any],
    loaded_mb: Mapping[tuple[str, str], float | None],
) -> dict[str, Any]:
    """The JSON of a run.

    Args:
        bundle: what was measured.
        cases: all of them.
        ask, rounds: as measured.
        command: that was given.
        host: `machine`'s record, taken before.
        loaded_mb: how much memory each pipeline took to open.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": command,
        "machine": host,
        "bundle": bundle.root.resolve().name,
        "checkpoint_sha256": str(bundle.manifest.checkpoint.get("sha256", "")),
        "prompt": ask.prompt,
        "answer_prefix": ask.prefix,
        "new_tokens": ask.new_tokens,
        "rounds": rounds,
        "loaded_mb": {" ".join(key): mb for key, mb in loaded_mb.items()},
        "cases": [case.to_json() for case in cases],
    }


def read_report(path: Path) -> dict[str, Any]:
    """Reads a run's JSON.

    Raises:
        InputError: not such a file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"cannot read {path}: {e}") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is not a report of `geomag-edge bench`")
    if data.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {data.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}: measure again"
        )
    return data
