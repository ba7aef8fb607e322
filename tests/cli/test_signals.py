"""A signal ends a command at any moment: one line, the conventional code, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

AT_IMPORT = """
import os, sys
module, kind = sys.argv[1], int(sys.argv[2])
class Finder:
    def find_spec(self, name, path, target=None):
        if name == module and "geomag_edge.cli.signals" in sys.modules:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), kind)
sys.meta_path.insert(0, Finder())
from geomag_edge.cli import main
del sys.argv[1:3]
"""
RUN = "\nsys.exit(main())\n"


def python(code, *argv, prepare=lambda: None):
    def usual():
        # A shell's background jobs are started with SIGINT ignored, and so is what they start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()

    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, timeout=120,
        preexec_fn=usual,
    )  # fmt: skip


def assert_interrupted(done, kind):
    assert done.returncode == 128 + kind
    assert done.stderr in (
        "geomag-edge: interrupted, nothing half-written\n",
        "geomag-edge run: interrupted, nothing half-written\n",
    )


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("geomag_edge.cli.console", signal.SIGINT),
        ("json", signal.SIGHUP),
        ("geomag_edge.cli.parser", signal.SIGTERM),
        ("argparse", signal.SIGINT),
        ("numpy", signal.SIGTERM),
        ("numpy.linalg", signal.SIGINT),
        ("tokenizers", signal.SIGHUP),
        ("rasterio._env", signal.SIGINT),
        ("onnxruntime.capi.onnxruntime_pybind11_state", signal.SIGTERM),
        ("geomag_edge.runtime.answers.overlay", signal.SIGINT),
    ],
)
def test_a_signal_counts_during_imports(bundle, picture, tmp_path, module, kind):
    out = tmp_path / "out"
    done = python(AT_IMPORT + RUN, module, int(kind), "run", bundle, picture, "ships", "-o", out)
    assert_interrupted(done, kind)
    assert list(tmp_path.iterdir()) == []


OPENS = """
import os, signal, sys, time
from geomag_edge.manifest import Bundle
import geomag_edge.cli.signals as signals
from geomag_edge.cli import main
sys.argv[1:] = ["run", "bundle", "image", "prompt"]
def me(kind):
    os.kill(os.getpid(), kind)
"""


def test_a_signal_that_is_lost_in_a_callback_comes_again():
    body = """
class Callback:
    def __del__(self):
        me(signal.SIGTERM)  # what is raised here, Python can but print
def opened(path, trust):
    Callback()
    time.sleep(60)
Bundle.open = opened
"""
    assert_interrupted(python(OPENS + body + RUN), signal.SIGTERM)


def test_a_library_may_turn_a_signal_into_its_own_exception():
    body = """
def opened(path, trust):
    try:
        me(signal.SIGHUP)
        time.sleep(60)
    except BaseException as e:
        raise ImportError("initialisation failed") from e
Bundle.open = opened
"""
    assert_interrupted(python(OPENS + body + RUN), signal.SIGHUP)


def test_a_second_signal_does_not_disturb_the_tidying():
    body = """
def opened(path, trust):
    try:
        me(signal.SIGINT)
        time.sleep(60)
    finally:
        me(signal.SIGTERM)
        me(signal.SIGINT)
        time.sleep(0.1)
Bundle.open = opened
"""
    assert_interrupted(python(OPENS + body + RUN), signal.SIGINT)


def test_a_call_that_never_returns_is_ended_all_the_same():
    body = """
import ctypes, threading
signals.GRACE_S = 0.3
def opened(path, trust):
    threading.Timer(0.2, me, (signal.SIGTERM,)).start()
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
Bundle.open = opened
"""
    done = python(OPENS + body + RUN)
    assert done.returncode == 143
    assert done.stderr.startswith("geomag-edge: stopped in a call that did not return within")


def test_a_signal_after_the_last_word_ends_without_a_trace():
    body = """
import atexit
atexit.register(me, signal.SIGINT)
Bundle.open = lambda path, trust: sys.exit("never")
"""
    done = python(OPENS.replace('"run", "bundle", "image", "prompt"', '"--version"') + body + RUN)
    assert done.returncode in (-signal.SIGINT, 130)
    assert done.stderr == ""


def test_a_signal_that_was_ignored_stays_so(bundle):
    def ignored():  # as `nohup` does
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    body = "\nopened = Bundle.open\n"
    body += "Bundle.open = lambda path, trust: (me(signal.SIGHUP), opened(path, trust))[1]\n"
    body += "sys.argv[1:] = ['inspect', sys.argv[-1]]\n"
    code = OPENS.replace('sys.argv[1:] = ["run", "bundle", "image", "prompt"]', "")
    done = python(code + body + RUN, bundle, prepare=ignored)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_gets_its_own_signals_and_streams_back(command, bundle):
    def state():
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        hooks = (sys.unraisablehook, signal.set_wakeup_fd(-1))
        return [signal.getsignal(kind) for kind in kinds], hooks, sys.stdout, sys.stderr

    before = state()
    assert command("inspect", bundle)[0] == 0
    assert command("inspect", "nowhere")[0] == 2
    assert state() == before


def test_a_program_may_run_any_number_of_commands(command):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        command("inspect", "nowhere")
    time.sleep(0.2)  # the thread that waits for a signal closes its end
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [t for t in threading.enumerate() if "_end_at_last" in t.name]
