"""Arguments of a wrong type are refused at the Python API's doors, in one short line each."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geomag_edge import Pipeline
from geomag_edge.budgets import TokenBudget
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.opening import open_engine
from geomag_edge.runtime.images.scene import Scene
from geomag_edge.runtime.planning.planner import check_latency

PROMPT = "segment the ships"
IMAGE = np.zeros((64, 80, 3), np.uint8)


class Thing:
    """Something that no door takes."""


ODD = (
    None, True, False, 0, -1, 10**5000, 2.5, float("nan"), float("inf"), 1e308, "", "x", "a\0b",
    "x" * 5000, b"bytes", bytearray(2), [], [1], ["x"], (None,), {}, {"a": 1}, {1, 2}, object(),
    Thing(), len, 1j, np.nan, np.float32(2.5), np.int64(-3), np.bool_(True), np.zeros(3),
    np.array("x"), np.array([{}]), Path("x"), iter([1]), range(3), slice(1), Ellipsis, "\ud800",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe(bundle):
    with Pipeline.load(bundle, threads=1) as pipe:
        yield pipe


def doors(bundle, pipe):
    """Every public door and what goes in there when all is well."""
    of_image = {"bands": [1], "value_range": (0, 1), "nodata": 0}
    ask = {
        "budget": "1", "max_new_tokens": 1, "answer_prefix": "", "on_text": None, "sweep_px": None,
    }  # fmt: skip
    load = {"engine": "ort-cpu", "precision": "fp32", "threads": 1, "checkpoint": None}
    session = pipe.open(IMAGE)
    return {
        "call": (pipe, {"image": IMAGE, "prompt": PROMPT, **ask, **of_image, "latency_ms": None}),
        "open": (pipe.open, {"image": IMAGE, **of_image}),
        "ask": (session.ask, {"prompt": PROMPT, **ask, "deadline": None, "on_view": print}),
        "scene": (Scene.open, {"source": IMAGE, **of_image}),
        "bundle": (Bundle.open, {"root": bundle}),
        "load": (Pipeline.load, {"bundle": bundle, **load, "latency_ms": None}),
        "engine": (open_engine, {"name": load.pop("engine"), "bundle": pipe.bundle, **load}),
        "deadline": (pipe.deadline, {"budget": None, "latency_ms": None}),
        "tokens": (TokenBudget, {"global_grid": 2, "crops": 1, "crop_grid": 1}),
        "latency": (check_latency, {"latency_ms": 5.0}),
    }  # fmt: skip


DOORS = [
    "call", "open", "ask", "scene", "bundle", "load", "engine", "deadline", "tokens", "latency",
]  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_each_argument_of_each_door_in_turn(bundle, pipe, door, monkeypatch):
    def unmeasured(self):
        raise InputError("measuring takes too long here")

    monkeypatch.setattr(Pipeline, "planner", unmeasured)
    call, usual = doors(bundle, pipe)[door]
    assert usual.keys() <= inspect.signature(call).parameters.keys()
    for name in usual:
        for odd in ODD:
            refused_or_done(call, usual | {name: odd}, (name, odd))


def refused_or_done(call, arguments, what):
    """No other error than ours, and that in one line."""
    made = refusal = None
    try:
        made = call(**arguments)
    except Exception as e:
        refusal = e
    if refusal is not None:
        said = f"{type(refusal).__name__} from {what[0]} {type(what[1])}: {refusal!s:.200}"
        assert isinstance(refusal, InputError), said
        assert str(refusal).isprintable(), said
        assert len(str(refusal)) < 500, said
    elif close := getattr(made, "close", None):
        close()


@given(
    shape=st.lists(st.integers(0, 6), max_size=4),
    kind=st.sampled_from(["f2", "f4", "f8", "u1", "i8", "u8", "?", "c8", "M8[s]", "S3", "U2", "O"]),
    fill=st.sampled_from([0, 1, np.nan, np.inf, -np.inf, 1e300, -1]),
)
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_arrays_of_any_shape_and_type(shape, kind, fill):
    with np.errstate(all="ignore"):
        array = np.zeros(shape, kind)
        if array.size and np.dtype(kind).kind in "fiu?":
            array.flat[::2] = np.array(fill).astype(kind)
    refused_or_done(Scene.open, {"source": array}, (shape, kind, fill))


def test_numpys_numbers_are_numbers(pipe):
    found = pipe(IMAGE, PROMPT, np.int64(4), np.int32(1), bands=np.array([1, 2, 3]))
    assert found.budget == pipe(IMAGE, PROMPT, 4, 1).budget
    assert found.decode_steps <= 1


def test_paths_may_be_text_or_paths(bundle, tmp_path):
    for root in (str(bundle), Path(bundle)):
        assert Bundle.open(root).root == Path(bundle)
