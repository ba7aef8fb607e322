"""A layer's gain on an engine: its shape alone, in float32 and with Q/DQ."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from geomag_edge.calibration.gate import linear_times
from geomag_edge.calibration.gate.linear_times import (
    ROUNDS,
    activation_shapes,
    gain_ms,
    openers,
    shape_of,
)
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.runtime.engines.reference import FILES, load_reference


@pytest.fixture
def linear():
    """A strided convolution, as a layer of its own model."""
    rng = np.random.default_rng(0)
    weight = ir.tensor(rng.normal(size=(8, 4, 3, 3)).astype("f4"), name="weight")
    held = ir.Value(
        name="weight", type=ir.TensorType(weight.dtype), shape=weight.shape, const_value=weight
    )
    image = ir.Value(
        name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 4, 10, 10])
    )
    node = ir.node("Conv", [image, held], {"strides": [2, 2]}, name="conv")
    graph = ir.Graph(
        [image], node.outputs, nodes=[node], initializers=[held], opset_imports={"": 21}, name="g"
    )
    [found] = find_linears(ir.Model(graph, ir_version=10))
    return found


def test_the_gain_is_the_difference_of_medians_after_a_warm_up(linear, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(linear_times, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    models, closed = [], []

    def opened(path):
        models.append(onnx.load(str(path)))
        narrow = any(n.op_type == "QuantizeLinear" for n in models[-1].graph.node)
        runs = []

        def run(feeds):
            assert feeds["x"].shape == (1, 4, 10, 10)
            runs.append(0)
            slow = 100 if len(runs) == 1 else (50 if len(runs) == 3 else 0)  # seconds
            clock.now += slow + (0.002 if narrow else 0.005)

        return SimpleNamespace(run=run, close=lambda: closed.append(len(runs)))

    assert gain_ms(linear, (1, 4, 10, 10), opened, tmp_path) == pytest.approx(3.0)
    assert closed == [ROUNDS + 1] * 2
    assert len(models) == 2
    for model in models:
        [conv] = [n for n in model.graph.node if n.op_type == "Conv"]
        assert [list(a.ints) for a in conv.attribute if a.name == "strides"] == [[2, 2]]


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_a_layer_runs_on_every_engine_that_can_be_asked(linear, tmp_path, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    assert np.isfinite(gain_ms(linear, (1, 4, 10, 10), openers(1)[engine], tmp_path))


def test_layers_are_alike_if_their_operator_shapes_and_attributes_are(linear):
    one = shape_of(linear, (1, 4, 10, 10))
    assert one == shape_of(linear, (1, 4, 10, 10))
    assert one != shape_of(linear, (1, 4, 12, 12))
    linear.node.attributes["strides"] = ir.AttrInt64s("strides", [1, 1])
    assert one != shape_of(linear, (1, 4, 10, 10))


def test_every_layer_of_a_graph_has_the_shape_that_it_reads(bundle):
    from geomag_edge.manifest import Bundle

    opened = Bundle.open(bundle)
    samples = load_reference(*(opened.file(f"reference/{name}") for name in FILES))
    for graph in ("encoder", "llm", "mask_head"):
        path = opened.graph(graph, "fp32")
        call = next(c for s in samples for c in s.calls if c.graph == graph)
        shapes = activation_shapes(path, call.inputs)
        linears = find_linears(ir.load(path))
        assert set(shapes) == {x.name for x in linears}
        for x in linears:
            rows = x.weight.const_value.shape.numpy()[x.in_axis]
            group = x.node.attributes.get_int("group", 1)
            assert shapes[x.name][x.channel_axis] == rows * group
