"""What `geomag_edge` itself gives, as programs and their type checkers see it."""

import subprocess
import sys
from typing import Any, assert_type

import pytest

import geomag_edge
from geomag_edge import GeoMagError, Mask, Pipeline, Result, SceneSession, TokenBudget


@pytest.mark.parametrize("name", geomag_edge.__all__)
def test_every_public_name_opens(name: str) -> None:
    assert getattr(geomag_edge, name)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'onnxruntime', 'rasterio', 'torch', 'PIL'}"
    code = f"import sys, geomag_edge; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        _ = geomag_edge.Pipelin  # type: ignore[attr-defined]


def test_errors_have_one_base() -> None:
    with pytest.raises(GeoMagError, match="no bundle"):
        Pipeline.load("/no/such/bundle")


def read_by_mypy(pipe: Pipeline, image: Any) -> None:
    """Never called: mypy reads it, and an unused `type: ignore` is an error there, so that a
    public thing which turns into `Any` is found."""
    result = pipe(image, "segment the ships", TokenBudget(8, 4, 4), latency_ms=None)
    assert_type(result, Result)
    assert_type(result.masks, list[Mask])
    assert_type(result.labels, list[str])
    assert_type(result.masks[0].area_px, int)
    _ = result.maskz  # type: ignore[attr-defined]
    with pipe.open(image) as session:
        assert_type(session, SceneSession)
        assert_type(session.ask("how many ships are there?", latency_ms=300), Result)
        session.ask(3)  # type: ignore[arg-type]
