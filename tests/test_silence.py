"""Nothing phones home, and nothing is written outside the folders that a command names.

Seen from outside, by the system calls of whole processes: what a dependency does when it is
imported counts as ours.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NETWORK = re.compile(r"AF_INET6?\b|sin6?_port")
WRITES = re.compile(r"^\d+ +(?:openat|open|creat|mkdir|mkdirat|rename|renameat2?)\(.*")
"""Calls that make or change a file, where their flags say so."""

ENGINES = """
import sys
from geomag_edge import Pipeline
with Pipeline.load(sys.argv[1], engine=sys.argv[2], threads=1) as pipe:
    pipe(sys.argv[3], "segment the ships", max_new_tokens=2)
"""
LONG_LIVED = (
    ENGINES
    + """
import time
time.sleep(5)  # onnxruntime's report is sent by a thread that waits a little
"""
)


@pytest.fixture
def traced(tmp_path):
    """argv -> (lines that touch the network, files written outside tmp_path)."""
    if shutil.which("strace") is None:
        pytest.skip("apt install strace")
    home = tmp_path / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_DISABLE", "CI"))}
    env |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path)}

    def run(*argv):
        log = tmp_path / "calls"
        calls = "connect,sendto,sendmsg,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2"
        done = subprocess.run(
            ["strace", "-f", "-qq", "-e", f"trace={calls}", "-o", log, *map(str, argv)],
            capture_output=True, text=True, env=env, timeout=300, cwd=tmp_path,
        )  # fmt: skip
        if "ptrace" in done.stderr.lower():
            pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
        assert done.returncode == 0, done.stderr[-2000:]
        lines = log.read_text(errors="replace").splitlines()
        return [x for x in lines if NETWORK.search(x)], written(lines, tmp_path), home

    return run


def written(lines, inside):
    found = []
    for line in lines:
        if not WRITES.match(line) or " = -1 " in line:
            continue
        opens = re.search(r"\b(?:openat|open)\(", line)
        if opens and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", line):
            continue
        names = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        found += [n for n in names if n.startswith("/") and not n.startswith(("/dev/", "/proc/"))]
    return sorted({n for n in found if not Path(n).is_relative_to(inside)})


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def python(code, *args):
    return [sys.executable, "-c", code, *args]


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino", "auto"])
def test_an_answer_of_any_engine_connects_to_nothing_and_writes_only_its_own_memory(
    traced, bundle, picture, engine
):
    if engine == "openvino":
        pytest.importorskip("openvino")
    network, outside, home = traced(*python(ENGINES, bundle, engine, picture))
    assert network == []
    assert outside == []
    mine = home / ".cache" / "geomag-edge"
    assert all(p.is_relative_to(mine) for p in home.rglob("*") if p.is_file())


def test_a_process_that_lives_longer_connects_to_nothing_either(traced, bundle, picture):
    network, outside, home = traced(*python(LONG_LIVED, bundle, "ort-cpu", picture))
    assert (network, outside, [*home.rglob("*")]) == ([], [], [])


@pytest.mark.parametrize(
    "words",
    [["doctor"], ["inspect", "{bundle}"], ["run", "{bundle}", "{picture}", "ships", "-o", "{out}"],
     ["targets"], ["eval", "{bundle}", "--data", "scenes:3:1:64", "--limit", "1"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_no_command_connects_to_anything_or_writes_where_it_was_not_told(
    traced, bundle, picture, tmp_path, words
):
    names = {"bundle": bundle, "picture": picture, "out": tmp_path / "out"}
    argv = [word.format(**names) for word in words]
    network, outside, home = traced(sys.executable, "-m", "geomag_edge", *argv)
    assert (network, outside) == ([], [])
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_benchmarks_take_the_same_way_in(traced):
    code = "import geomag_edge.benchmarks.queries, onnxruntime, openvino"
    pytest.importorskip("openvino")
    network, outside, home = traced(*python(code))
    assert (network, outside, [*home.rglob("*")]) == ([], [], [])
