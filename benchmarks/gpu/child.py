"""A step in a process of its own: one that crashes, hangs or spoils its GPU context takes no other
step with it.

    python -m geomag_edge.benchmarks.gpu.child STEP SETTINGS RESULT

is how it is started: the step's name, its settings as JSON, and the file that its result goes to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from geomag_edge.benchmarks.gpu.outcome import Result, ran
from geomag_edge.printing import one_line

LINES_KEPT = 30
GRACE_S = 10.0
"""Between asking a step that has run too long to say where it is, and ending it."""


def in_a_process(name: str, settings: Result, limit_s: float) -> Result:
    """A step by name, in a process of its own, for at most so many seconds."""
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        into = Path(folder) / "result.json"
        module = f"{__package__}.child"
        command = [sys.executable, "-X", "faulthandler", "-m", module, name, json.dumps(settings)]
        return watched([*command, str(into)], into, limit_s)


def watched(command: Sequence[str], into: Path, limit_s: float) -> Result:
    """What a command leaves in a file, or how it ended without leaving anything.

    Args:
        command: is started in a session of its own, with no input.
        into: the file, JSON; what it prints is kept beside it.
        limit_s: after that it is asked where it is (SIGABRT: Python prints its stack) and ended.
    """
    start = time.perf_counter()
    said = into.with_name("said.txt")
    with said.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        late = False
        try:
            child.wait(limit_s)
        except subprocess.TimeoutExpired:
            late = True
            ended(child, signal.SIGABRT)
        finally:
            ended(child, signal.SIGKILL)
    seconds = round(time.perf_counter() - start, 2)
    try:
        result = json.loads(into.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = None
    if result is not None and not late:
        return {**result, "seconds": seconds}
    error = f"did not end within {limit_s:.0f} s" if late else how_it_ended(child.returncode)
    return {"ran": True, "ok": False, "error": error, "seconds": seconds, "said": _last_lines(said)}


def ended(child: subprocess.Popen[bytes], by: signal.Signals) -> None:
    """Ends a child and what it started; one that hangs in the kernel is left to it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, by)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)


def how_it_ended(code: int | None) -> str:
    """An exit code without a result, in words."""
    if code is None:
        return "hangs in the kernel and cannot be ended"
    if code >= 0:
        return f"ended with exit code {code} and left no result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        return f"was ended from outside ({name}), as the system does when memory runs out"
    return f"crashed ({name})"


def _last_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes()[-20_000:].decode("utf-8", "replace")
    except OSError:
        return []
    return [one_line(line) for line in text.splitlines() if line.strip()][-LINES_KEPT:]


def main(argv: Sequence[str]) -> int:
    """Runs one step here and leaves its result in the file."""
    from geomag_edge.benchmarks.gpu.steps import Settings, steps_of

    name, given, into = argv
    settings = Settings(**json.loads(given))
    result = ran(lambda: steps_of(settings)[name].act(settings))
    Path(into).write_text(json.dumps(result), encoding="utf-8")
    # Not through Python's and the GPU libraries' clean-up: it may crash after the work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
