"""The picture of a search."""

import sys

import numpy as np
import pytest
from PIL import Image

from geomag_edge.calibration.gate.gate import Gate, Verdict
from geomag_edge.calibration.gate.pareto import draw_pareto
from geomag_edge.calibration.gate.sensitivity import Layer, Point, Search
from geomag_edge.errors import MissingExtraError


def found(error=0.01, miou=0.5):
    layers = [Layer("encoder", f"node_{i}", error * i, 0.0, 0.01, i - 2.0) for i in range(8)]
    curve = [Point(n, float(n), miou, 1 - n / 100) for n in (0, 3, 5)]
    verdict = Verdict(True, "ort-cpu", {}, "set", 100, None, None, 0.99, 0.9, Gate())
    return Search("openvino", layers, curve, [("encoder", f"node_{i}") for i in range(3)], verdict)


@pytest.mark.parametrize("drawn", [found(), found(error=0.0), found(miou=None)],
                         ids=["usual", "no errors", "no masks"])  # fmt: skip
def test_it_is_a_picture_with_something_on_it(drawn, tmp_path):
    pytest.importorskip("matplotlib")
    draw_pareto(drawn, tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"geomag-edge\[plot\]"):
        draw_pareto(found(), tmp_path / "pareto.png")
    assert not (tmp_path / "pareto.png").exists()
