"""An ONNX file -> TensorRT's network, strongly typed, with refusals that name the node."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour, started
from geomag_edge.runtime.engines.tensorrt.log import first_error, is_noise, logger_of, tidy


class Network:
    """A parsed graph and what must live as long as it does."""

    def __init__(self, flavour: Flavour, path: Path, model: bytes | None = None):
        """Parses a graph.

        Args:
            flavour: what parses.
            path: the ONNX file.
            model: a form of it to parse instead; external data lies beside `path`.

        Raises:
            EngineError: the parser refuses; names the graph, the ONNX node and the reason.
        """
        module = flavour.module
        self.flavour, self.path, self.logger = flavour, path, logger_of(flavour)
        self.logger.lines.clear()
        self.builder = started(flavour, lambda: module.Builder(self.logger))
        self.network = self.builder.create_network(_creation_flags(module))
        self._parser = module.OnnxParser(self.network, self.logger)
        try:
            if model is None:
                parsed = self._parser.parse_from_file(str(path))
            else:
                parsed = self._parser.parse(model, str(path))
        except Exception as e:  # a binding that raises instead of returning False
            raise EngineError(f"{flavour.name} cannot read {path.name}: {tidy(str(e))}") from e
        if not parsed:
            raise EngineError(f"{flavour.name} {flavour.version} refuses {self._refusal()}")
        _allow_decomposed_attention(module, self.network)

    def inputs(self) -> list[Any]:
        """The network's input tensors."""
        return [self.network.get_input(i) for i in range(self.network.num_inputs)]

    def layer_precisions(self) -> dict[str, int]:
        """How many of the layers that multiply matrices run in each type.

        The type is that of the layer's input, or of the quantised tensor behind it.
        """
        return dict(Counter(_multiplying_types(self.network)))

    def _refusal(self) -> str:
        """`llm.onnx at node X (Op): reason`."""
        for i in range(self._parser.num_errors):
            error = self._parser.get_error(i)
            said = [x for x in error.desc().split("\n") if not is_noise(x)]
            reason = tidy("\n".join(said)).removeprefix(
                f"Invalid Node - {_call(error, 'node_name')}"
            )
            if reason.strip() or i + 1 == self._parser.num_errors:
                name, operator = _call(error, "node_name"), _call(error, "node_operator")
                place = f" at node {name} ({operator})" if name else ""
                return f"{self.path.name}{place}: {reason.strip()}"
        return f"{self.path.name}: {first_error(self.logger.lines) or 'no reason given'}"


def _call(error: Any, method: str) -> str:
    """A parser error's field; older versions lack some."""
    return str(getattr(error, method)()) if hasattr(error, method) else ""


def _creation_flags(module: Any) -> int:
    """Strongly typed, and explicit batch where the version still has the other kind."""
    flags = 0
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        flag = getattr(module.NetworkDefinitionCreationFlag, name, None)
        if flag is not None:
            flags |= 1 << int(flag)
    return flags


def _allow_decomposed_attention(module: Any, network: Any) -> None:
    """Lets an Attention without a fused kernel (float32, narrow heads) become separate layers.

    Without this the build fails; where a fused kernel exists it is still taken.
    """
    kind = getattr(module.LayerType, "ATTENTION_OUTPUT", None)
    boundary = getattr(module, "IAttentionOutputLayer", None)
    if kind is None or boundary is None:
        return
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == kind:
            layer.__class__ = boundary
            if hasattr(layer.attention, "decomposable"):
                layer.attention.decomposable = True


_MULTIPLYING = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "ATTENTION_INPUT", "EINSUM")
_PASSING = ("SHUFFLE", "SLICE", "CAST", "CONCATENATION", "IDENTITY")


def _multiplying_types(network: Any) -> list[str]:
    maker, found = {}, []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for j in range(layer.num_outputs):
            maker[layer.get_output(j).name] = layer
        if layer.type.name in _MULTIPLYING and layer.num_inputs:
            # The second operand is the weight where there is one: int4 has no other trace.
            operands = [layer.get_input(k) for k in range(min(2, layer.num_inputs))]
            found.append("*".join(dict.fromkeys(_type_behind(t, maker) for t in operands if t)))
    return found


def _type_behind(tensor: Any, maker: dict[str, Any]) -> str:
    """A tensor's type; behind a dequantise layer, that of what it reads."""
    while (layer := maker.get(tensor.name)) is not None and layer.num_inputs:
        name = layer.type.name
        if name == "DEQUANTIZE":
            return str(layer.get_input(0).dtype.name)
        if name not in _PASSING or layer.get_input(0) is None:
            break
        tensor = layer.get_input(0)
    return str(tensor.dtype.name)
