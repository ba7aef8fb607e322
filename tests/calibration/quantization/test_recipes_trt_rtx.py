"""Every recipe's graphs build as TensorRT for RTX engines, on a machine without a GPU."""

import onnx
import onnx_ir as ir
import pytest

from geomag_edge.calibration.quantization.formats.fp8 import quantize_fp8
from geomag_edge.calibration.quantization.formats.half import to_half
from geomag_edge.calibration.quantization.formats.int4 import as_qdq, quantize_blocks
from geomag_edge.calibration.quantization.linears import find_linears
from geomag_edge.calibration.quantization.scales import GraphScales, TensorScale
from geomag_edge.graphs import all_graphs

trt = pytest.importorskip("tensorrt_rtx")

SIZES = {"n": (1, 2, 5), "q": (1, 9, 16), "B": (1, 1, 1), "T": (1, 1, 64), "N": (0, 16, 64),
         "N+T": (1, 17, 128), "m": (1, 1, 4)}  # fmt: skip


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.Logger.ERROR:
            self.errors.append(message)


def build(path):
    """The engine's bytes, strongly typed, with one profile.

    Raises:
        AssertionError: what the parser or the builder said.
    """
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)  # TensorRT 11: always strongly typed
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(path))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for port in onnx.load(str(path), load_external_data=False).graph.input:
        dims = port.type.tensor_type.shape.dim
        sizes = [[SIZES[d.dim_param][i] if d.dim_param else d.dim_value for d in dims]
                 for i in range(3)]  # fmt: skip
        profile.set_shape(port.name, *sizes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, log.errors
    return engine.nbytes


def fp8(model, spec):
    seen = {x.tensor: TensorScale({"minmax": 8.0}, 1) for x in find_linears(model)}
    assert quantize_fp8(model, GraphScales("", seen))


def int4(model, spec):
    as_qdq(model, quantize_blocks(model))


@pytest.mark.parametrize(
    ("graph", "recipe"),
    [("embed", None), ("projector", None), ("encoder", None), ("encoder", fp8), ("llm", int4)],
)
def test_it_builds(exported, manifest, tmp_path, graph, recipe):
    spec = next(s for s in all_graphs(manifest.decoder.layers) if s.name == graph)
    # Attention as one node has kernels for real heads only; the tiny model's are decomposed.
    model = ir.load(exported("qwen2-clip", 23 if recipe is int4 else 20).graph(graph))
    if recipe:
        recipe(model, spec)
    to_half(model, spec)
    path = tmp_path / spec.file
    ir.save(model, path, external_data=f"{spec.file}.data")
    assert build(path) > 0
