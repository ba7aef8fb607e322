"""A minute of the long campaign, as anybody would start it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")
def test_a_minute_of_what_strangers_send_breaks_no_rule(tmp_path):
    """The seed is fixed, so that a red run can be run again; long campaigns try others."""
    command = [sys.executable, "-m", "tests.fuzz.campaign", "--share", "0.01"]
    done = subprocess.run(
        [*command, "--work", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["cases"] > 100
    assert all(report["targets"][name]["answered"] for name in ("images", "bundles", "sets"))
