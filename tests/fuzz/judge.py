"""What a command may not do, whatever it was given."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

from .jail import Case, Outcome

LINE_CHARS, MEMORY_MB = 500, 1024
PROGRESS = re.compile(
    r"(export|compose|calibrate|quantize|eval|verify|build|plan|auto|bench|sweep|scenes|"
    r"measuring this machine|reading the set|doctor|note|hashing|rendering|looking)\b"
)
"""How lines begin that say what a long command is about."""
ANSWER = ("answer.json", "masks.tif", "masks.geojson", "overlay.png")


def faults(case: Case, outcome: Outcome, before: dict[str, tuple[int, int]]) -> list[str]:
    """Every rule that a case broke, a few words each; empty where all is well.

    Args:
        case: what was run.
        outcome: what it did.
        before: the inputs as `snapshot` saw them.
    """
    found = []
    if outcome.hung:
        found.append("hang" + (", and SIGTERM did not end it" if outcome.stubborn else ""))
    elif outcome.code < 0:
        found.append(f"killed by signal {-outcome.code}")
    if outcome.grown_mb > MEMORY_MB:
        found.append(f"memory: {outcome.grown_mb:.0f} MB")
    found += [f"outside: {name}" for name in outcome.outside]
    if not outcome.hung:
        found += _words(case, outcome)
    found += _files(case, outcome, before)
    if case.must_fail and outcome.code == 0:
        found.append("a change was not noticed")
    return found


def _words(case: Case, outcome: Outcome) -> list[str]:
    found = []
    for name in ("stdout", "stderr"):
        try:
            text = getattr(outcome, name).decode()
        except UnicodeDecodeError:
            found.append(f"{name} is not UTF-8")
            continue
        if "Traceback" in text or "panicked at" in text:
            found.append("traceback")
        if "--debug and report" in text:
            found.append("an error that nobody translated")
        if bad := {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n"}:
            found.append(f"control characters on {name}: {sorted(map(hex, map(ord, bad)))}")
        longest = max(map(len, text.splitlines()), default=0)
        if longest > LINE_CHARS and not (name == "stdout" and "--json" in case.argv):
            found.append(f"a line of {longest} characters on {name}")
    found += _complaint(outcome)
    return found


def _complaint(outcome: Outcome) -> list[str]:
    """One line where there is an error, none where there is not, but for progress."""
    lines = outcome.stderr.decode(errors="replace").splitlines()
    ours = [n for n in lines if n.startswith("geomag-edge")]
    stray = [n for n in lines if n not in ours and not PROGRESS.match(n)]
    found = [f"a stray line: {stray[0][:80]!r}"] if stray else []
    if outcome.code in (1, 2) and len(ours) != 1:
        found.append(f"exit {outcome.code} with {len(ours)} lines of its own")
    if outcome.code not in (0, 1, 2) and outcome.code >= 0:
        found.append(f"exit code {outcome.code}")
    return found


def _files(case: Case, outcome: Outcome, before: dict[str, tuple[int, int]]) -> list[str]:
    found = []
    now = snapshot(case)
    if changed := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
        found.append(f"changed its inputs: {changed[0]}")
    if any((case.folder / "cwd").iterdir()):
        found.append("wrote to the working folder")
    holder = case.folder / "out"
    written = sorted(p.relative_to(holder).as_posix() for p in holder.rglob("*"))
    if litter := [name for name in written if any(n.startswith(".") for n in name.split("/"))]:
        found.append(f"litter: {litter[0]}")
    elif outcome.code == 0 and case.argv[0] == "run" and case.out is not None:
        if absent := [name for name in ANSWER if not (case.out / name).is_file()]:
            found.append(f"half-written: no {absent[0]}")
        else:
            json.loads((case.out / "answer.json").read_text())
            json.loads((case.out / "masks.geojson").read_text())
    elif outcome.code == 2 and written:
        found.append(f"half-written: {written[0]}")
    return found


def snapshot(case: Case) -> dict[str, tuple[int, int]]:
    """Size and time of every input that the command has no business with changing."""
    found: dict[str, tuple[int, int]] = {}
    for path in (case.folder / "in").rglob("*"):
        if case.amends is not None and path.is_relative_to(case.amends):
            continue
        state = path.lstat()
        if not path.is_dir() or path.is_symlink():
            found[_name(path, case.folder)] = (state.st_size, state.st_mtime_ns)
    return found


def _name(path: Path, root: Path) -> str:
    return ascii(path.relative_to(root).as_posix())
