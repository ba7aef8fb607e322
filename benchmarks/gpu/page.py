"""One page of plain text about a `gpu_check`: what to do next, what was found, every step."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from geomag_edge.printing import one_line

WIDTH = 100
Report = Mapping[str, Any]


def page_of(report: Report, advice: Mapping[str, str]) -> str:
    """The page.

    Args:
        report: as it is written, finished or not.
        advice: by step, what to do where it is wrong.
    """
    steps = report["steps"]
    lines = [f"gpu_check, {report['when']}", report["command"], ""]
    lines += _wrapped(verdict(report), "")
    lines += ["", "WHAT TO DO NEXT", ""]
    for number, text in enumerate(next_of(report, advice), 1):
        lines += _wrapped(text, f"{number}. ")
    lines += ["", "FOUND", "", *_found(steps.get("machine", {}), steps.get("driver", {}))]
    lines += ["", "STEPS", ""]
    for name, step in steps.items():
        if step["ran"]:
            seconds = f"{step['seconds']:.1f} s" if "seconds" in step else ""
            lines += _wrapped(f"{name}: {said(step)}", f"{word(step):<6}{seconds:>9}  ")
    for reason, names in _reasons(steps).items():
        lines += ["", *_wrapped(reason, ""), *_wrapped(", ".join(names), "    ")]
    return "\n".join(lines) + "\n"


def word(step: Report) -> str:
    """One word for a step's outcome."""
    if not step["ran"]:
        return "not run"
    return "ok" if step["ok"] else "WRONG"


def said(step: Report) -> str:
    """What a step came to, in one line."""
    if not step["ran"]:
        return str(step["reason"])
    if not step["ok"]:
        return str(step.get("error") or step.get("wrong") or "wrong")
    return _figures(step) or "right"


def _figures(step: Report) -> str:
    """Of what went well, the few figures that a reader looks for."""
    parts = []
    if "gpus" in step:
        gpus = (
            f"{g['name']}, sm {g['sm']}, {g['memory_bytes'] / 1e9:.1f} GB" for g in step["gpus"]
        )
        parts.append(f"CUDA {step['cuda']}, {'; '.join(gpus)}")
    if "free_bytes" in step:
        parts.append(f"{step['free_bytes'] / 1e9:.1f} GB free")
    if "compiler" in step:
        parts.append(
            f"NVRTC {step['compiler']['nvrtc']}, {sum(step['seconds_by_file'].values()):.1f} s"
        )
    if "already" in step:
        parts.append(f"built already in {step['already']}")
    if "built" in step:
        megabytes = sum(e["bytes"] for e in step["engines"]) / 1e6
        parts.append(f"{len(step['built'])} engines, {megabytes:.1f} MB")
    if "copy_gb_s" in step:
        shares = ", ".join(f"{d} {step[d]['share_of_copy']:.2f}" for d in ("float32", "float16"))
        parts.append(f"copy {step['copy_gb_s']:.0f} GB/s, of which the crop reaches {shares}")
    if "cuda_graphs_replayed" in step:
        parts.append(f"replayed {sum(step['cuda_graphs_replayed'].values())} calls")
    if "decode_step_ms" in step:
        total = step["stages_ms_by_budget"][step["budget"]].get("total")
        parts.append(f"a token {step['decode_step_ms']:.2f} ms")
        parts += [] if total is None else [f"a query at budget {step['budget']} {total:.1f} ms"]
    return ", ".join(parts)


def verdict(report: Report) -> str:
    """What it came to, in a sentence."""
    steps = report["steps"]
    if report["running"] is not None:
        return (
            f"NOT FINISHED: it was in the step '{report['running']}' when this was written. If the "
            "machine went down meanwhile, that step is the first suspect."
        )
    if not report["usable"]:
        return "NO GPU THAT CAN BE USED HERE."
    wrong = [name for name, step in steps.items() if word(step) == "WRONG"]
    if wrong:
        return f"{len(wrong)} of {len(steps)} steps are WRONG, first '{wrong[0]}'."
    done = sum(step["ran"] for step in steps.values())
    return f"Nothing is wrong of what ran: {done} of {len(steps)} steps."


def _why_not(steps: Mapping[str, Report]) -> str:
    for name in ("driver", "memory"):
        if name in steps and word(steps[name]) != "ok":
            return said(steps[name])
    return "the first steps did not run"


def next_of(report: Report, advice: Mapping[str, str]) -> list[str]:
    """What to do, first things first; always at least one thing."""
    steps, todo = report["steps"], []
    if not report["usable"] and report["running"] is None:
        todo.append(f"{_why_not(steps)}. Then run this again.")
    for name, step in steps.items():
        if word(step) == "WRONG" and (report["usable"] or name not in ("driver", "memory")):
            hint = f" - {advice[name]}" if advice.get(name) else ""
            todo.append(f"{name}: {said(step)}{hint}")
    root = {n: s for n, s in steps.items() if "blocked" not in s and n not in ("driver", "memory")}
    for reason, names in _reasons(root).items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        todo.append(f"to have also '{names[0]}'{more}: {reason}")
    todo += _of_machine(steps.get("machine", {}))
    todo.append(
        "Send this page and the .json beside it to whoever looks after geomag-edge: they hold the "
        "machine's names and versions, and no pictures."
    )
    return todo


def _reasons(steps: Mapping[str, Report]) -> dict[str, list[str]]:
    """Why steps did not run, and which ones, in their order."""
    found: dict[str, list[str]] = {}
    for name, step in steps.items():
        if not step["ran"]:
            found.setdefault(step["reason"], []).append(name)
    return found


def _of_machine(machine: Report) -> list[str]:
    """What of the machine's state spoils figures or builds."""
    if not (machine.get("ran") and machine.get("ok")):
        return []
    found, seen = [], machine["seen"]
    mode = seen.get("power_mode")
    if mode and not mode.upper().startswith("MAXN"):
        found.append(
            f"the power mode is {mode}: times are not this board's best "
            "(docs/jetson/prepare.sh takes the largest)"
        )
    if seen.get("jetpack") and not machine["memory_kb"].get("SwapTotal"):
        found.append("no swap: a build that needs more memory is ended (docs/jetson/prepare.sh 8)")
    return found


def _found(machine: Report, driver: Report) -> list[str]:
    """The machine in a few lines."""
    if not machine.get("ran") or not machine["ok"]:
        return [f"nothing: {said(machine)}" if machine else "nothing yet"]
    seen, memory = machine["seen"], machine["memory_kb"]
    container = ", in a container" if machine["container"] else ""
    gpus = [g["name"] for g in driver.get("gpus", [])] or [seen["gpu"]]
    tensorrt = ", ".join(f"{k} {v}" for k, v in (seen["versions"] or {}).items())
    jetpack = (seen["jetpack"], machine["jetpack_package"], machine["l4t"])
    rows = {
        "system": f"{machine['platform']}, Python {machine['python']}{container}",
        "GPU": ", ".join(g or "none" for g in gpus),
        "driver": f"{seen['driver'] or '-'}, CUDA {driver.get('cuda', '-')}",
        "TensorRT": tensorrt or "none",
        "JetPack": " / ".join(x for x in jetpack if x) or "-",
        "power mode": seen["power_mode"] or "-",
        "GPU clocks": "; ".join(
            f"{n}: {_mhz(c['cur'])} of {_mhz(c['max'])} MHz"
            for n, c in machine["gpu_clocks_hz"].items()
        ) or "-",
        "nvidia-smi": " | ".join((machine["nvidia_smi"] or "-").splitlines()[1:] or ["-"]),
        "memory": ", ".join(f"{k} {v / 1e6:.1f} GB" for k, v in memory.items()),
        "tools": ", ".join(f"{k} {v}" for k, v in machine["tools"].items() if v) or "none",
        "fat binary": machine["fat_binary"] or "none: kernels are compiled at first use",
        "packages": ", ".join(f"{k} {v}" for k, v in machine["versions"].items()),
    }  # fmt: skip
    return [line for name, text in rows.items() for line in _wrapped(text, f"{name:<12}")]


def _mhz(hertz: str | None) -> str:
    return str(int(hertz) // 1_000_000) if hertz and hertz.isdigit() else "?"


def _wrapped(text: str, head: str) -> list[str]:
    indent = " " * len(head)
    lines = wrap(one_line(text, 4000), WIDTH, initial_indent=head, subsequent_indent=indent,
                 break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return lines or [head.rstrip()]
