"""Devices and TensorRT on machines without a GPU: see `late_cuda` and `tensorrt_stand_in`."""

import pytest

from geomag_edge.runtime.engines.cuda.device import Device
from tests.runtime.late_cuda import LateCuda
from tests.runtime.tensorrt_stand_in import TensorRtStandIn


@pytest.fixture(scope="session")
def make_device():
    """(late, integrated, ...) -> a `Device` on the stand-in."""
    return lambda **how: Device(LateCuda(**how))


@pytest.fixture
def device(make_device):
    """A device that is late and has memory of its own; nothing was misused in the end."""
    made = make_device()
    yield made
    made.driver.check()


@pytest.fixture
def make_tensorrt():
    """(cuda, **how) -> the stand-in as a `Flavour`."""
    from geomag_edge.runtime.engines.tensorrt.flavour import Flavour

    def make(cuda, **how):
        module = TensorRtStandIn(cuda, **how)
        return Flavour(module.__name__, module, module.__version__)

    return make
