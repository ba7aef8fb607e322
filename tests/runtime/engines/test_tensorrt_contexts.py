"""What contexts are made with, and where the kernels compiled for TensorRT for RTX are kept."""

import enum
import types

import pytest

from geomag_edge.runtime.engines.tensorrt import contexts as module
from geomag_edge.runtime.engines.tensorrt.contexts import Contexts, kernels_in, place_of
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour


class Strategy(enum.Enum):
    USER_MANAGED = 2


class Kinds(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class Cache:
    def __init__(self):
        self.given, self.kernels = None, b""

    def deserialize(self, blob):
        self.given = bytes(blob)
        return not blob.startswith(b"other")

    def serialize(self):
        return memoryview(self.kernels)


class Config:
    def __init__(self):
        self.made, self.cache, self.strategy = Cache(), None, None
        self.dynamic_shapes_kernel_specialization_strategy = Kinds.LAZY

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return self.made

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class Engine:
    """One of TensorRT for RTX."""

    def __init__(self):
        self.config = Config()

    def create_runtime_config(self):
        return self.config

    def create_execution_context(self, how):
        return "context", how


RTX = Flavour(
    "tensorrt_rtx",
    types.SimpleNamespace(
        ExecutionContextAllocationStrategy=Strategy,
        DynamicShapesKernelSpecializationStrategy=Kinds,
    ),
    "1.7.1.116",
)
FILE = types.SimpleNamespace(sha256="ab" * 32)


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "cache_root", lambda: tmp_path)
    return tmp_path


def opened(graph="encoder"):
    engine = Engine()
    return engine, Contexts(RTX, engine, FILE, graph, "8.6")


def compiled(kernels):
    """As a process leaves the cache that compiled so much."""
    engine, contexts = opened()
    engine.config.made.kernels = kernels
    contexts.keep()


def test_full_tensorrt_makes_contexts_whose_memory_is_given():
    plain = types.SimpleNamespace(create_execution_context=lambda how: how)
    flavour = Flavour("tensorrt", RTX.module, "10.3.0")
    contexts = Contexts(flavour, plain, FILE, "llm", "8.7")
    assert contexts.make() is Strategy.USER_MANAGED
    contexts.keep()


def test_full_tensorrt_of_later_versions_is_left_as_it_is():
    """From 10.14 on it has a runtime configuration too, of which nothing is needed here."""
    engine = Engine()
    contexts = Contexts(Flavour("tensorrt", RTX.module, "11.1.0"), engine, FILE, "llm", "9.0")
    assert contexts.make() == ("context", Strategy.USER_MANAGED)


@pytest.mark.parametrize(("graph", "kind"), [("llm", Kinds.NONE), ("encoder", Kinds.EAGER)])
def test_kernels_are_specialised_at_once_or_never_so_that_graphs_may_hold_them(graph, kind):
    engine, contexts = opened(graph)
    assert contexts.make() == ("context", engine.config)
    assert engine.config.strategy is Strategy.USER_MANAGED
    assert engine.config.dynamic_shapes_kernel_specialization_strategy is kind
    assert engine.config.cache is engine.config.made


def test_kernels_are_compiled_once_and_given_to_the_next_process(root):
    assert opened()[0].config.made.given is None
    compiled(b"kernels")
    assert opened()[0].config.made.given == b"kernels"
    [file] = (root / "kernels").iterdir()
    assert file.name == f"{'ab' * 16}-tensorrt_rtx-1.7.1.116-8.6.cache"


def test_every_engine_version_and_gpu_has_a_file_of_its_own():
    other = Flavour("tensorrt_rtx", RTX.module, "1.8.0")
    places = {
        place_of(RTX, FILE, "8.6"), place_of(RTX, FILE, "8.9"), place_of(other, FILE, "8.6"),
        place_of(RTX, types.SimpleNamespace(sha256="cd" * 32), "8.6"),
    }  # fmt: skip
    assert len(places) == 4


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "huge", "a folder"])
def test_a_damaged_file_is_never_shown_to_tensorrt(harm, monkeypatch):
    compiled(b"kernels")
    place = place_of(RTX, FILE, "8.6")
    whole = place.read_bytes()
    if harm == "a folder":
        place.unlink()
        place.mkdir()
    elif harm == "huge":
        monkeypatch.setattr(module, "MOST_BYTES", 8)
    else:
        place.write_bytes({"cut": whole[:-1], "changed": whole[:-1] + b"x", "empty": b""}[harm])
    assert kernels_in(place) == b""
    engine, contexts = opened()
    assert engine.config.made.given is None
    engine.config.made.kernels = b"kernels"
    contexts.keep()  # where a folder stands in its place, nothing is kept and nothing is raised


def test_kernels_of_another_driver_are_written_over():
    compiled(b"other driver's")
    engine, contexts = opened()
    assert engine.config.made.given == b"other driver's"
    engine.config.made.kernels = b"kernels"
    contexts.keep()
    assert kernels_in(place_of(RTX, FILE, "8.6")) == b"kernels"


def test_nothing_is_written_where_nothing_was_compiled_or_nobody_has_a_home(root, monkeypatch):
    opened()[1].keep()
    assert not (root / "kernels").exists()
    compiled(b"kernels")
    place = place_of(RTX, FILE, "8.6")
    before = place.stat().st_mtime_ns
    compiled(b"kernels")
    assert place.stat().st_mtime_ns == before
    monkeypatch.setattr(module, "cache_root", lambda: None)
    compiled(b"kernels")
