"""A few kills of every kind of command; `python -m tests.fuzz.kills` is the campaign."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and watches by /proc")
def test_kills_leave_old_or_new_and_no_litter(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.kills", "--count", "24", "--work", tmp_path / "work"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] > 12
