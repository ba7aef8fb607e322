import shutil

import numpy as np
import pytest
from PIL import Image

from geomag_edge.cli.main import main


@pytest.fixture
def command(capsys):
    """Runs a command in this process: (code, stdout, stderr)."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as e:  # argparse ends so
            code = e.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def bundle_copy(bundle, tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "copy")


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """A PNG of 200 x 150 px with something to see."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (150, 200, 3), np.uint8)).save(path)
    return path
