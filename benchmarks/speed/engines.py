"""How fast each graph runs on a CPU in each engine: what `--engine auto` chooses among.

    python -m geomag_edge.benchmarks.speed.engines --bundle BUNDLE [--rounds 9] [--threads 1]
        [--forms torch:fp32,ort-cpu:fp32,openvino:int8] [--graphs llm] [--prefill 576]

What is measured: every graph of the chain on the reference inputs of the largest budget it runs at,
and the LLM apart as its prefill and one decode step after it, the cache kept by the engine; in
PyTorch eager (the `torch` engine), `ort-cpu`, `openvino` in float32 and `openvino` in bfloat16.
Forms run in turn in one process, medians; a form's outputs must be within the tolerance of its
precision before it is timed, which also warms it up. Wall time, and the process's CPU time, which
at one thread is what the graph costs even if the machine has other work.

What bounds it: the encoder and the prefill are matrix products, so bfloat16 units (AMX) are
what gains; a decode step reads every weight once, so half the bytes gain at most 2x. Graphs of
less than a millisecond (embed, projector) measure what a call costs.

Tried and left out: OpenVINO's own state instead of cache inputs and outputs (its MakeStateful pass,
cache in the arithmetic's precision). On the 12-layer decoder of `base` at 744 past tokens, one
thread beside other work, a step took 181 ms against 177 (float32) and 121 against 114 (bfloat16):
the cache's copies are not what a step waits for.

The last line of stdout is one JSON.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from geomag_edge.benchmarks.arguments import REQUIRED, parser_of
from geomag_edge.benchmarks.machine import machine
from geomag_edge.benchmarks.publish import page_of, publish, table_of
from geomag_edge.benchmarks.timing import Form, interleaved, medians
from geomag_edge.graphs import CHAIN, TOLERANCES, present_names
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.engine import Session
from geomag_edge.runtime.engines.feeds import step_feeds
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.engines.reference import Call, reference_of
from geomag_edge.runtime.engines.replay import replay

FORMS = "torch:fp32,ort-cpu:fp32,openvino:fp32,openvino:bf16"


def main() -> None:
    """Parses, measures, writes the result, prints the table and one JSON line."""
    parser = parser_of(__doc__, bundle=REQUIRED, name="base", rounds=9, threads=2, checkpoint=None)
    parser.add_argument("--forms", default=FORMS, help="engine:precision, the first the baseline")
    parser.add_argument("--graphs", default=",".join(CHAIN), help="which of them")
    parser.add_argument("--prefill", type=int, help="tokens of the LLM's prompt (default: all)")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    forms = [tuple(form.split(":")) for form in args.forms.split(",")]
    prefill = "" if args.prefill is None else f" --prefill {args.prefill}"
    graphs = "" if args.graphs == ",".join(CHAIN) else f" --graphs {args.graphs}"
    report = {
        "name": args.name,
        "command": f"python -m geomag_edge.benchmarks.speed.engines --bundle {args.name} "
        f"--rounds {args.rounds} --threads {args.threads} --forms {args.forms}{graphs}{prefill}",
        "machine": machine(args.threads, ("torch", "onnxruntime", "openvino", "numpy")),
        "rounds": args.rounds,
        "load_average_before": load,
        "graphs": measure(
            Bundle.open(args.bundle),
            forms,
            args.rounds,
            args.threads,
            args.checkpoint,
            args.graphs.split(","),
            args.prefill,
        ),
        "bytes": sizes(Bundle.open(args.bundle)),
    }
    publish(report, as_markdown(report), args.results, f"engines_{args.name}")


def measure(
    bundle: Bundle,
    forms: list[tuple[str, ...]],
    rounds: int,
    threads: int,
    checkpoint: Path | None,
    graphs: Sequence[str] = CHAIN,
    length: int | None = None,
) -> list[dict[str, Any]]:
    """Median milliseconds and largest error of each form of each graph, one graph at a time.

    With a `length`, the LLM is timed on the first so many tokens of the prompt it is checked on.
    """
    samples = reference_of(bundle)
    samples.sort(key=lambda s: bundle.manifest.budgets[s.budget].visual_tokens, reverse=True)
    engines = {
        f"{name} {precision}": open_engine(name, bundle, precision, threads, checkpoint)
        for name, precision in forms
    }
    rows = []
    for graph in graphs:
        print(f"{graph}: opening", file=sys.stderr)
        made = ([c for c in s.calls if c.graph == graph] for s in samples)
        calls = next(calls for calls in made if calls)
        sessions, errors, cosines = {}, {}, {}
        for name, engine in engines.items():
            sessions[name] = engine.session(graph)
            drifts = replay(sessions[name], calls, TOLERANCES[engine.precision])
            errors[name] = max(d.relative for d in drifts)
            cosines[name] = min(d.cosine for d in drifts)
            if not all(d.ok for d in drifts):
                raise SystemExit(f"{graph} on {name} is past its tolerance: nothing was timed")
        for work, done in works(graph, sessions, calls, bundle.manifest.decoder.layers, length):
            print(f"{work}: timing", file=sys.stderr)
            taken = interleaved(done, rounds, warmup=0)  # the parity check has warmed them up
            ms = {clock: medians(taken, clock) for clock in ("wall_ms", "cpu_ms")}
            rows.append({"work": work, **ms, "error": errors, "cosine": cosines})
        for session in sessions.values():
            session.close()
    return rows


def sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of each precision's graphs in their portable form."""
    return {
        precision: sum(
            bundle.file(name).stat().st_size for name in bundle.graph_files(precision, forms=False)
        )
        for precision in bundle.manifest.graphs
    }


def works(
    graph: str,
    sessions: dict[str, Session],
    calls: list[Call],
    layers: int,
    length: int | None = None,
) -> list[tuple[str, dict[str, Form]]]:
    """What of a graph is timed: a description, and how each form does it."""
    if graph != "llm":
        described = f"{graph}, {len(calls)} call{'s' if len(calls) > 1 else ''}"
        return [(described, {name: partial(_all, s, calls) for name, s in sessions.items()})]
    kept = frozenset(present_names(layers))
    whole = ("inputs_embeds", "attention_mask", "position_ids")
    prefill = {k: v[:, :length] if k in whole else v for k, v in calls[0].inputs.items()}
    length = prefill["attention_mask"].shape[1]
    steps = {name: _decode_step(session, prefill, layers) for name, session in sessions.items()}
    fills: dict[str, Form] = {
        name: partial(session.run, prefill, kept) for name, session in sessions.items()
    }
    return [
        (f"llm, prefill of {length} tokens", fills),
        (f"llm, decode step at {length} past tokens", steps),
    ]


def _all(session: Session, calls: list[Call]) -> None:
    for call in calls:
        session.run(call.inputs)


def _decode_step(session: Session, prefill: dict[str, Any], layers: int) -> Form:
    kept = frozenset(present_names(layers))
    filled, past = session.run(prefill, keep=kept), prefill["attention_mask"].shape[1]
    feeds = step_feeds(prefill["inputs_embeds"][:, -1:], past, layers, filled)
    return lambda: session.run(feeds, keep=kept)


def as_markdown(report: dict[str, Any]) -> str:
    """The committed table: CPU time at one thread, else wall time."""
    first, *others = report["graphs"][0]["wall_ms"]
    host = report["machine"]
    clock = "cpu_ms" if host["threads"] == 1 else "wall_ms"
    versions = ", ".join(f"{k} {v}" for k, v in host["versions"].items())
    said = (
        f"{host['cpu']}, {host['threads']} thread(s); {versions}. Milliseconds of "
        f"{'CPU' if clock == 'cpu_ms' else 'wall'} time, medians of {report['rounds']} interleaved "
        "rounds; in brackets the speed against the first and the largest error over an "
        f"output's scale. Load average before: {report['load_average_before']:.1f}."
    )

    def cell(row: dict[str, Any], name: str) -> str:
        ms = row[clock]
        return f"{ms[name]:.2f} ({ms[first] / ms[name]:.2f}x, {row['error'][name]:.0e})"

    rows = (
        (row["work"], f"{row[clock][first]:.2f}", *(cell(row, name) for name in others))
        for row in report["graphs"]
    )
    whole = report["bytes"]["fp32"]
    sizes = ((k, f"{v / 1e6:.1f}", f"{v / whole:.3f}") for k, v in report["bytes"].items())
    return page_of(
        f"Engines on `{report['name']}`, CPU",
        report,
        said,
        table_of(" | ".join(("graph", first, *others)), rows),
        table_of("precision | MB | of fp32", sizes),
    )


if __name__ == "__main__":
    main()
