"""A program that calls `main` keeps its streams, whatever they are; a crash is never silent."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from geomag_edge.cli.main import main


class Bare:
    """All that `print` needs of a stream, as consoles of other programs have it."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)


class Tee(Bare):
    """Writes to a file of the system's as well; knows no encoding and no terminal."""

    def fileno(self):
        return 2

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("out", [Bare, Tee, closed, lambda: None])
@pytest.mark.parametrize("err", [Bare, Tee, closed, lambda: None])
def test_any_streams_will_do_and_are_given_back(bundle, monkeypatch, out, err):
    streams = out(), err()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    codes = [main(["inspect", str(bundle)]), main(["run", str(bundle), "none.png", "a"])]
    assert (sys.stdout, sys.stderr) == streams
    assert codes == [0, 2]
    if isinstance(streams[0], Bare):
        assert "all sha256 good" in streams[0].text
    if type(streams[1]) is Bare:
        assert streams[1].text.endswith("none.png: check the path\n")


def open_files():
    """Number and name of each; what lists them is gone by then."""
    links = {f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    return {(link, os.readlink(link)) for link in links if os.path.lexists(link)}


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="Linux")
@pytest.mark.parametrize("what", ["pipe", "thread"])
def test_a_system_without_files_or_threads_to_spare_is_served(bundle, monkeypatch, what):
    def none_left(*args, **more):
        raise OSError(24, "Too many open files") if what == "pipe" else RuntimeError("can't start")

    gc.collect()  # files that earlier tests left to the collector are closed here, not in between
    handler, before = signal.getsignal(signal.SIGINT), open_files()
    if what == "pipe":
        monkeypatch.setattr(os, "pipe", none_left)
    else:
        monkeypatch.setattr(threading.Thread, "start", none_left)
    assert main(["inspect", str(bundle)]) == 0
    assert signal.getsignal(signal.SIGINT) == handler
    assert open_files() <= before


FULL = """
import os, sys
from geomag_edge.cli import main
with open("/dev/full", "w") as full:
    os.dup2(full.fileno(), 1)
code = main(["inspect", sys.argv[1]])
print(code, os.readlink("/proc/self/fd/1"), file=sys.stderr)
os._exit(0)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_stdout_that_is_full_stays_the_program_s_own(bundle):
    done = subprocess.run([sys.executable, "-c", FULL, bundle], capture_output=True, text=True)
    error, rest = done.stderr.splitlines()
    assert error.endswith("cannot write to standard output: No space left on device")
    assert rest == "2 /dev/full"


CRASH = """
import os, sys
from geomag_edge.cli import main
from geomag_edge.cli.commands import inspect
def crash(args):
    os.write(2, b"a library's chatter")
    os.abort()
inspect.execute = crash
main()
"""


def test_a_crash_says_where_it_was(bundle):
    done = subprocess.run(
        [sys.executable, "-c", CRASH, "inspect", bundle], capture_output=True, text=True
    )
    assert done.returncode == -6
    assert done.stderr.startswith("Fatal Python error: Aborted")
    assert " in crash\n" in done.stderr
