"""ONNX Runtime on an NVIDIA GPU as an engine: `ort-cuda`, with nothing left to the CPU unsaid.

Inputs and outputs are bound in device memory and everything runs on the device's one stream, so a
stage's outputs are the next one's inputs as they lie.

State of proof: the binding, the checks and the chain are tested with the CPU provider and a
stand-in for CUDA; the CUDA provider itself has not been run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from geomag_edge.errors import EngineError, GeoMagError, MissingExtraError
from geomag_edge.graphs import ENCODER
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.driver import CudaDriver, first_line
from geomag_edge.runtime.engines.cuda.feeds import on_device
from geomag_edge.runtime.engines.cuda.values import DeviceValues
from geomag_edge.runtime.engines.ort import quiet_options, set_threads
from geomag_edge.runtime.engines.sharing import has_threads

PROVIDER = "CUDAExecutionProvider"

HEAVY = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "GroupQueryAttention",
        "LayerNormalization",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "MultiHeadAttention",
        "QLinearConv",
        "QLinearMatMul",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "Softmax",
    }
)
"""Operators that must be on the GPU. ONNX Runtime itself puts arithmetic on shapes on the CPU,
where it belongs; that is reported and not refused."""

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


class OrtCudaEngine:
    """Opens a bundle's graphs as ONNX Runtime sessions on the GPU.

    Args:
        bundle: the bundle.
        precision: which set of graphs.
        device: where to run; None for the first GPU.

    Raises:
        MissingExtraError: onnxruntime-gpu or cuda-python is not installed.
        EngineError: no driver or no GPU.
    """

    name = "ort-cuda"

    def __init__(self, bundle: Bundle, precision: str, device: Device | None = None) -> None:
        if device is None:
            if reason := lacking():
                raise MissingExtraError(reason)
            device = Device(CudaDriver())
            ort.preload_dlls()  # CUDA and cuDNN from pip's packages, where those are installed
        self.bundle, self.precision, self.device = bundle, precision, device
        views = bundle.record(ENCODER.name, precision, "onnxruntime")["inputs"][0]
        self.values = DeviceValues(device, views["dtype"])

    def session(self, graph: str) -> OrtCudaSession:
        """Opens one graph, its files checked first."""
        path = self.bundle.graph(graph, self.precision, "onnxruntime")
        return OrtCudaSession(path, self.device, cuda_provider(self.device, self.precision))

    def close(self) -> None:
        """Nothing is held beyond the sessions."""


def lacking() -> str | None:
    """What this installation of ONNX Runtime lacks to run on a GPU, in one line, or None."""
    if PROVIDER in ort.get_available_providers():
        return None
    return (
        f"the installed onnxruntime {ort.__version__} has no {PROVIDER}: pip uninstall onnxruntime "
        "&& pip install onnxruntime-gpu (they share one module, so only one may be installed)"
    )


Provider = tuple[str, dict[str, str]]


def cuda_provider(device: Device, precision: str) -> Provider:
    """The CUDA provider on a device's stream; float32 graphs stay float32 (no TF32)."""
    return PROVIDER, {
        "device_id": str(device.driver.device_id),
        "user_compute_stream": str(device.driver.stream),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0" if precision == "fp32" else "1",
    }


class OrtCudaSession:
    """One ONNX Runtime session whose inputs and outputs are device arrays.

    Args:
        path: the graph.
        device: where arrays live.
        provider: what must run the graph.
        memory: ONNX Runtime's name of the device's memory.

    Raises:
        EngineError: the graph cannot be loaded, or would not run where it should.
    """

    def __init__(
        self, path: Path, device: Device, provider: Provider, memory: str = "cuda"
    ) -> None:
        options = quiet_options()
        set_threads(options, None)  # of the small nodes that stay on the CPU
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            # The CPU provider is not named: ONNX Runtime adds it itself, and what it takes is seen
            # below.
            self._session = ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as e:
            raise EngineError(f"ONNX Runtime cannot load {path.name}: {first_line(e)}") from e
        has_threads(self._session)
        wanted = provider[0]
        used = self._session.get_providers()[0]
        if used != wanted:
            raise EngineError(
                f"ONNX Runtime would run {path.name} on {used}: {wanted} could not be loaded; "
                "check that the CUDA and cuDNN of this onnxruntime-gpu are installed "
                "(pip install 'onnxruntime-gpu[cuda,cudnn]'), or use --engine ort-cpu"
            )
        if hasattr(self._session, "get_provider_graph_assignment_info"):
            self.provider = described(path.name, wanted, _elsewhere(self._session, wanted))
        else:
            self.provider = f"{wanted} (onnxruntime {ort.__version__} does not say for which nodes)"
        self._device, self._memory = device, memory
        self._name = path.stem
        self._dtypes = {i.name: np.dtype(_NUMPY[i.type]) for i in self._session.get_inputs()}
        self._outputs = {o.name: np.dtype(_NUMPY[o.type]) for o in self._session.get_outputs()}
        self._options = ort.RunOptions()
        # All that follows is on the same stream; only a copy to the host waits for it.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, feeds: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
        """See `Session.run`; kept values are `DeviceArray`s, and arrays of other libraries in
        device memory are taken as they are."""
        try:
            arrays = on_device(self._device, feeds, self._dtypes)
            outputs = self._run_bound(arrays)
        except GeoMagError:
            raise
        except Exception as e:
            raise EngineError(f"ONNX Runtime failed on {self._name}: {first_line(e)}") from e
        wanted = {name: value for name, value in outputs.items() if name not in keep}
        return outputs | self._device.download(wanted) if wanted else dict(outputs)

    def _run_bound(self, arrays: Mapping[str, DeviceArray]) -> dict[str, Any]:
        """Outputs are ONNX Runtime's own memory, which the arrays keep alive."""
        number = self._device.driver.device_id
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_input(
                name, self._memory, number, array.dtype.type, array.shape, array.pointer
            )
        for name in self._outputs:
            binding.bind_output(name, self._memory, number)
        self._session.run_with_iobinding(binding, self._options)
        made = zip(self._outputs.items(), binding.get_outputs(), strict=True)
        return {
            name: DeviceArray(
                self._device, value.data_ptr(), tuple(value.shape()), dtype, (value, self._session)
            )
            for (name, dtype), value in made
        }

    def close(self) -> None:
        """Drops the session, and with it its memory, once all that was asked of it is done."""
        self._device.sync()
        del self._session


def _elsewhere(session: Any, wanted: str) -> dict[str, str]:
    """Nodes that another provider runs: name -> operator."""
    return {
        node.name or node.op_type: node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != wanted
        for node in part.get_nodes()
    }


def described(graph: str, provider: str, elsewhere: Mapping[str, str]) -> str:
    """The provider in words, with the small nodes that run on the CPU.

    Raises:
        EngineError: one of them is not small.
    """
    heavy = [f"{name} ({op})" for name, op in elsewhere.items() if op in HEAVY]
    if heavy:
        raise EngineError(
            f"{len(heavy)} nodes of {graph} would run on the CPU, {heavy[0]} first: this "
            f"onnxruntime-gpu has no kernel for them; use a newer one, another precision, or "
            "--engine ort-cpu"
        )
    if not elsewhere:
        return provider
    kinds = ", ".join(f"{n} {op}" for op, n in Counter(elsewhere.values()).most_common(3))
    return f"{provider} ({len(elsewhere)} small nodes on the CPU: {kinds})"
