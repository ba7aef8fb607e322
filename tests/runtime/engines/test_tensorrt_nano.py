"""The whole chain of the shipped checkpoint as TensorRT would run it, with either cache, in every
precision that the stand-in's ONNX Runtime can execute: random prompts and budgets are answered as
`ort-cpu` answers them. Where `ort-cpu` has files of its own in a precision, it is ONNX Runtime with
TensorRT's, straight from numpy. Nothing is said of TensorRT's own arithmetic.
"""

import shutil

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from geomag_edge.calibration.quantization.recipes import RECIPES
from geomag_edge.calibration.quantize import write_graphs
from geomag_edge.disk.amend import amended
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.tensorrt import log as log_module
from geomag_edge.runtime.engines.tensorrt.engine import TensorRtEngine
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour
from tests.runtime.built import built, pipeline
from tests.runtime.late_cuda import LateCuda
from tests.runtime.tensorrt_stand_in import TensorRtStandIn, session_options

SAME_FILES = ("fp32", "fp16")
"""Where `ort-cpu` runs what TensorRT is given."""

QUESTIONS = st.tuples(
    st.sampled_from(["segment the ships", "how many planes are there?", "where is the pier?",
                     "Find all storage tanks!"]),
    st.sampled_from(["image", "region", "pixel"]),
    st.sampled_from(["", "[SEG]"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def every_precision(nano, tmp_path_factory):
    """(precision) -> the bundle, with its graphs written, unjudged."""
    root = shutil.copytree(nano, tmp_path_factory.mktemp("nano") / "bundle")

    def bundle(precision):
        if precision not in Bundle.open(root).manifest.graphs:
            with amended(Bundle.open(root), f"onnx/{precision}") as change:
                write_graphs(change, precision)
        return Bundle.open(root)

    return bundle


def runnable(bundle, precision):
    """Whether ONNX Runtime can execute what TensorRT would be given."""
    for graph in CHAIN:
        try:
            path = bundle.graph(graph, precision, "tensorrt")
            PlainSession(path)
        except Exception as e:
            return f"{graph}: {str(e).splitlines()[0]}"
    return None


class Plain:
    """TensorRT's files in ONNX Runtime, with nothing between."""

    name, provider = "plain", "CPU"

    def __init__(self, bundle, precision):
        self.bundle, self.precision = bundle, precision

    def session(self, graph):
        return PlainSession(self.bundle.graph(graph, self.precision, "tensorrt"))

    def close(self):
        pass


class PlainSession:
    provider = "CPU"

    def __init__(self, path):
        self._session = ort.InferenceSession(
            str(path), session_options(), providers=["CPUExecutionProvider"]
        )
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16,
                 "tensor(int64)": np.int64}  # fmt: skip
        self._dtypes = {i.name: types[i.type] for i in self._session.get_inputs()}
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds, keep=frozenset()):
        feeds = {name: np.asarray(v, self._dtypes[name]) for name, v in feeds.items()}
        return dict(zip(self._names, self._session.run(None, feeds), strict=True))

    def close(self):
        pass


def by_onnx_runtime(bundle, precision):
    if precision in SAME_FILES:
        return Pipeline.load(bundle, "ort-cpu", precision, threads=1)
    return pipeline(Plain(bundle, precision))


@pytest.fixture(scope="module", params=["fp32", *RECIPES])
def both(request, every_precision, tmp_path_factory):
    """The pipeline to compare with, and one on the stand-in for each kind of cache."""
    bundle = every_precision(request.param)
    if reason := runnable(bundle, request.param):
        pytest.skip(f"ONNX Runtime cannot execute {request.param} for TensorRT: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "_LOGGERS", {})
        pipes = {}
        for cache in ("growing", "fixed"):
            cuda = LateCuda(integrated=cache == "fixed")
            module = TensorRtStandIn(cuda)
            flavour = Flavour(module.__name__, module, module.__version__)
            folder = tmp_path_factory.mktemp("engines")
            made = built(bundle, folder, request.param, cache)
            engine = TensorRtEngine("tensorrt-rtx", made, request.param, Device(cuda), flavour)
            pipes[cache] = pipeline(engine)
        with by_onnx_runtime(bundle, request.param) as reference:
            yield reference, pipes
        for pipe in pipes.values():
            pipe.close()
            pipe.chain.engine.device.driver.check()


@settings(
    max_examples=1, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # what fails is not made smaller: each try is a whole chain
)  # fmt: skip
@given(questions=st.lists(QUESTIONS, min_size=4, max_size=4, unique=True))
def test_random_questions_are_answered_as_by_onnx_runtime(both, picture, questions):
    reference, pipes = both
    for prompt, budget, start in questions:
        theirs = reference(picture, prompt, budget, 4, start)
        for cache, pipe in pipes.items():
            ours = pipe(picture, prompt, budget, 4, start)
            assert ours.granularity == theirs.granularity
            assert ours.token_ids == theirs.token_ids, (cache, prompt, budget, start)
            for one, other in zip(ours.masks, theirs.masks, strict=True):
                assert np.mean(np.asarray(one) != np.asarray(other)) < 1e-2
