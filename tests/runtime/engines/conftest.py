"""A stand-in for TensorRT's builder that fails, runs short or prints as it is told."""

import enum
import types

import pytest

from geomag_edge.runtime.engines.tensorrt import log as log_module
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour


class BuilderFlag(enum.Enum):
    REFIT, TF32, VERSION_COMPATIBLE, STRIP_PLAN, REFIT_IDENTICAL = range(5)


class RtxFlag(enum.Enum):
    REFIT, TF32, VERSION_COMPATIBLE, STRIP_PLAN, REFIT_IDENTICAL, REQUIRE_USER_ALLOCATION = range(6)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class LayerType(enum.Enum):
    CONSTANT = 0


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class ILogger:
    def __init__(self):
        pass


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[input] = min, opt, max


class IBuilderConfig:
    def __init__(self, outer):
        self.set = {outer.BuilderFlag.TF32}  # as a new config has it
        self.pools, self.profiles, self.profiling_verbosity = {}, [], None

    def set_flag(self, flag):
        self.set.add(flag)

    def clear_flag(self, flag):
        self.set.discard(flag)

    def set_memory_pool_limit(self, pool, pool_size):
        self.pools[pool] = pool_size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1


class ITensor:
    name, shape = "x", (-1, 4)


class INetworkDefinition:
    num_inputs, num_layers = 1, 0

    def get_input(self, index):
        return ITensor()

    def get_layer(self, index):
        raise IndexError(index)


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        pass

    def parse_from_file(self, model):
        return True

    def parse(self, model, path):
        return True


class ICudaEngine:
    def __init__(self, sizes):
        self.num_optimization_profiles, self._sizes = len(sizes), sizes

    def get_device_memory_size_for_profile_v2(self, profile_index):
        return self._sizes[profile_index]


class BuilderStandIn:
    """The part of `tensorrt` that a build uses.

    Args:
        says: attempt -> (plan or None, lines of its log); called with the config.
        engine: bytes of each profile, if the plan loads here.
        rtx: with the flag that TensorRT for RTX alone has.
    """

    __name__, __version__ = "tensorrt", "10.3.0"
    ILogger, OnnxParser = ILogger, OnnxParser
    MemoryPoolType, LayerType, ProfilingVerbosity = MemoryPoolType, LayerType, ProfilingVerbosity
    NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag

    def __init__(self, says, engine=None, rtx=False):
        self.BuilderFlag = RtxFlag if rtx else BuilderFlag
        self.configs, outer = [], self

        class Builder:
            def __init__(self, logger):
                self._logger = logger

            def create_network(self, flags):
                return INetworkDefinition()

            def create_builder_config(self):
                return IBuilderConfig(outer)

            def create_optimization_profile(self):
                return IOptimizationProfile()

            def build_serialized_network(self, network, config):
                outer.configs.append(config)
                plan, lines = says(config)
                for severity, text in lines:
                    self._logger.log(Severity[severity], text)
                return plan

        class Runtime:
            def __init__(self, logger):
                self._logger = logger

            def deserialize_cuda_engine(self, serialized_engine):
                if engine is None:
                    self._logger.log(Severity.ERROR, "Error Code 1: Cuda Runtime (cudaError 35)")
                    return None
                return ICudaEngine(engine)

        self.Builder, self.Runtime = Builder, Runtime


@pytest.fixture
def make_builder(monkeypatch):
    """(says, **how) -> (the stand-in as a `Flavour`, its module)."""
    monkeypatch.setattr(log_module, "_LOGGERS", {})

    def make(says, **how):
        module = BuilderStandIn(says, **how)
        return Flavour(module.__name__, types.SimpleNamespace(**_names(module)), "10.3.0"), module

    return make


def _names(module):
    return {n: getattr(module, n) for n in dir(module) if n[0].isupper()} | {
        "__name__": module.__name__, "__version__": module.__version__,
    }  # fmt: skip
