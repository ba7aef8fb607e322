"""What the tests of exported graphs share: graphs opened, and PyTorch's own word on them."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from geomag_edge.model.geomag import load_checkpoint
from geomag_edge.runtime.engines.torch_engine import graph_function

GRAPHS = ("encoder", "psc", "psc_select", "projector", "embed", "llm", "mask_head")


@pytest.fixture(scope="session")
def ort_graph(exported):
    """(family, opset, graph) -> a function from named arrays to named arrays."""
    made = {}

    def opened(family, opset, graph):
        key = (family, opset, graph)
        if key not in made:
            path = str(exported(family, opset).graph(graph))
            made[key] = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        session = made[key]
        names = [o.name for o in session.get_outputs()]
        return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))

    return opened


@pytest.fixture(scope="session")
def torch_graph(checkpoint_of):
    """(family, graph) -> the same function in PyTorch."""
    models = {}

    def opened(family, graph):
        if family not in models:
            models[family] = load_checkpoint(checkpoint_of(family))
        call = graph_function(models[family], graph)

        @torch.inference_mode()
        def run(feeds):
            outputs = call({k: torch.from_numpy(v) for k, v in feeds.items()})
            return {k: v.numpy() for k, v in outputs.items()}

        return run

    return opened


@pytest.fixture
def rng():
    return np.random.default_rng(0)
