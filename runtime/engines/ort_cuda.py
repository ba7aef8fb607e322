"""ONNX Runtime on an NVIDIA GPU as an engine: `ort-cuda`, with nothing left to the CPU unsaid.

Inputs and outputs are bound in device memory and everything runs on the device's one stream, so a
stage's outputs are the next one's inputs as they lie.

State of proof: the binding, the checks and the chain are tested with the CPU provider and a
stand-in for CUDA; the CUDA provider itself has not been run.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from geomag_edge.disk.onnx_file import read_wiring
from geomag_edge.errors import EngineError, GeoMagError, MissingExtraError
from geomag_edge.graphs import ENCODER
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.cuda.array import DeviceArray
from geomag_edge.runtime.engines.cuda.device import Device
from geomag_edge.runtime.engines.cuda.driver import CudaDriver
from geomag_edge.runtime.engines.cuda.feeds import on_device
from geomag_edge.runtime.engines.cuda.refusals import first_line
from geomag_edge.runtime.engines.cuda.values import DeviceValues
from geomag_edge.runtime.engines.ort import quiet_options, set_threads
from geomag_edge.runtime.engines.sharing import has_threads
from geomag_edge.targets.cuda import driver_cuda

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

CUDA_OPSET, ANY_OPSET = 20, (1, 27)
"""The newest opset that every onnxruntime-gpu from 1.23 on runs on the GPU but for small nodes, and
the version from which on it runs the later ones, too, so. Seen in where the wheels 1.23.2 to 1.31.1
place the nodes of our graphs: of opset 23, 1.23 leaves most of the encoder on the CPU, 1.24
Attention, and all before 1.27 ConvTranspose, Sin and Cos."""

MADE_ON_SHAPES = frozenset({"Gather"})
"""What ONNX Runtime itself puts behind a Shape, where it has moved a Transpose past it. Any other
node that is not in the file counts as one on data."""

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
        EngineError: no driver or no GPU, or an ONNX Runtime that lacks kernels for the graphs.
    """

    name = "ort-cuda"

    def __init__(self, bundle: Bundle, precision: str, device: Device | None = None) -> None:
        if device is None:
            if reason := lacking():
                raise MissingExtraError(reason)
            if reason := kernels_for(_opset(bundle, precision), ort.__version__):
                raise EngineError(reason)
            device = Device(CudaDriver())
            ort.preload_dlls()  # CUDA and cuDNN from pip's packages, where those are installed
        self.bundle, self.precision, self.device = bundle, precision, device
        views = bundle.record(ENCODER.name, precision, "onnxruntime")["inputs"][0]
        self.values = DeviceValues(device, views["dtype"])

    def session(self, graph: str) -> OrtCudaSession:
        """Opens one graph, its files checked first."""
        path = self.bundle.graph(graph, self.precision, "onnxruntime")
        return OrtCudaSession(path, self.device, cuda_provider(self.device))

    def close(self) -> None:
        """Nothing is held beyond the sessions."""


def lacking() -> str | None:
    """What this installation of ONNX Runtime lacks to run on a GPU, in one line, or None."""
    if PROVIDER not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no {PROVIDER}: {install_line()}"
    cuda = driver_cuda()
    if cuda is not None and int(cuda.split(".")[0]) < 13 and _numbers(ort.__version__) >= ANY_OPSET:
        return (
            f"onnxruntime-gpu {ort.__version__} is for CUDA 13, and this driver knows CUDA {cuda}: "
            f"{install_line()}, or install a newer driver"
        )
    return None


def install_line() -> str:
    """The command that leaves one working ONNX Runtime with CUDA, for this machine's driver.

    Both packages own the module `onnxruntime`: to remove one alone takes files of the other along,
    and pip then finds the other installed and leaves the hole. So both go, then one comes.
    """
    return (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install "
        f"'onnxruntime-gpu{_wheels()}' (they share one module, so only one may be installed)"
    )


def _wheels() -> str:
    """Which versions the driver can run: those on PyPI are for CUDA 13 from `ANY_OPSET` on."""
    cuda = driver_cuda()
    old = cuda is not None and int(cuda.split(".")[0]) < 13
    newest = ".".join(map(str, ANY_OPSET))
    return f"<{newest}" if old else f">={newest}"


def kernels_for(opset: int, version: str) -> str | None:
    """Why an ONNX Runtime would not run graphs of an opset whole on the GPU, or None.

    Asked before a graph is opened, since what ONNX Runtime says of a session leaves out the nodes
    in half precision that neither provider has: those it casts and runs on the CPU.

    Args:
        opset: of the graphs.
        version: of onnxruntime-gpu.
    """
    if opset <= CUDA_OPSET or _numbers(version) >= ANY_OPSET:
        return None
    newest = ".".join(map(str, ANY_OPSET))
    return (
        f"onnxruntime-gpu {version} has no GPU kernels for all of opset {opset}, which these "
        f"graphs have: export the bundle with --target older (opset {CUDA_OPSET}), or install "
        f"onnxruntime-gpu {newest} or later, which needs a driver of CUDA 13"
    )


Provider = tuple[str, dict[str, str]]


def cuda_provider(device: Device) -> Provider:
    """The CUDA provider on a device's stream. What is float32 stays float32 (no TF32), in half
    graphs too: PSC's sums over windows, which decide where to look."""
    return PROVIDER, {
        "device_id": str(device.driver.device_id),
        "user_compute_stream": str(device.driver.stream),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
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
            self.provider = described(path, wanted, _elsewhere(self._session, wanted))
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
        with contextlib.suppress(EngineError):  # of a device that failed nobody waits for anything
            self._device.sync()
        del self._session


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def _opset(bundle: Bundle, precision: str) -> int:
    """The newest opset of a precision's graphs."""
    graphs = bundle.manifest.graphs[precision]
    return max(bundle.record(name, precision, "onnxruntime")["opset"] for name in graphs)


Node = tuple[str, str]
"""Name and operator."""


def _elsewhere(session: Any, wanted: str) -> list[Node]:
    """Nodes that another provider runs."""
    return [
        (node.name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != wanted
        for node in part.get_nodes()
    ]


def described(path: Path, provider: str, elsewhere: Sequence[Node]) -> str:
    """The provider in words, with what runs on the CPU: arithmetic on shapes, whose values are
    there anyway, and nodes on data, each of which costs a copy to the host and one back.

    Args:
        path: the graph.
        provider: its name.
        elsewhere: the nodes that it leaves to the CPU.

    Raises:
        EngineError: one of them is heavy.
    """
    heavy = [f"{name} ({op})" for name, op in elsewhere if op in HEAVY]
    if heavy:
        raise EngineError(
            f"{len(heavy)} nodes of {path.name} would run on the CPU, {heavy[0]} first: this "
            f"onnxruntime-gpu has no kernel for them; export with --target older (opset "
            f"{CUDA_OPSET}), use a newer onnxruntime-gpu, another precision, or --engine ort-cpu"
        )
    if not elsewhere:
        return provider
    on_shapes, own = _on_shapes(path)
    trips = [
        op
        for name, op in elsewhere
        if name not in on_shapes and (name in own or op not in MADE_ON_SHAPES)
    ]
    said = [f"{len(elsewhere) - len(trips)} nodes on shapes on the CPU"]
    if trips:
        kinds = ", ".join(f"{n} {op}" for op, n in Counter(trips).most_common(3))
        said.append(f"{len(trips)} round trips to the host: {kinds}")
    return f"{provider} ({'; '.join(said)})"


def _on_shapes(path: Path) -> tuple[set[str], set[str]]:
    """Names of the nodes that read no values of the inputs, but for their shapes; and of all."""
    nodes, data = read_wiring(path)
    found = set()
    for node in nodes:  # in order: each after those whose values it takes
        if node.operator in ("Shape", "Size") or data.isdisjoint(node.inputs):
            found.add(node.name)
        else:
            data.update(node.outputs)
    return found - {""}, {node.name for node in nodes}
