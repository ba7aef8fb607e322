"""The stand-ins for CUDA and TensorRT catch what a real device would punish: a test for each."""

import gc
import threading

import numpy as np
import pytest

from geomag_edge.runtime.engines.cuda.device import Device
from tests.runtime.built import built
from tests.runtime.late_cuda import LateCuda, Misuse
from tests.runtime.tensorrt_stand_in import FACES, TensorRtStandIn, faces


@pytest.fixture
def cuda():
    return LateCuda()


def put(cuda, **how):
    cuda.put(lambda: None, **how)


def in_a_thread(do):
    """What it raised in a thread of its own."""
    caught = []

    def run():
        try:
            do()
        except BaseException as e:
            caught.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught


def test_work_without_a_current_context(cuda):
    [caught] = in_a_thread(lambda: put(cuda))
    assert isinstance(caught, Misuse)
    assert "no context is current in this thread" in str(caught)
    assert not in_a_thread(lambda: (cuda.make_current(), put(cuda)))


def test_work_on_another_stream(cuda):
    with pytest.raises(Misuse, match="put on stream 5, where nothing orders it"):
        put(cuda, stream=5)
    with pytest.raises(Misuse, match="put on stream 78, where nothing orders it"):
        put(cuda, stream=cuda.recording_stream)
    with pytest.raises(Misuse, match="legacy stream"):
        put(cuda, stream=0)


@pytest.mark.parametrize("rule", ["allocate", "allocate_host", "sync", "trim", "event"])
def test_what_must_not_be_done_while_a_graph_is_recorded(cuda, rule):
    arguments = (1,) if rule.startswith("allocate") else ()
    with pytest.raises(Misuse, match="while a CUDA graph is recorded"):
        cuda.capture(lambda stream: getattr(cuda, rule)(*arguments))


def test_work_beside_a_recording_or_on_the_legacy_stream(cuda):
    with pytest.raises(Misuse, match="beside the recording"):
        cuda.capture(lambda stream: put(cuda))
    with pytest.raises(Misuse, match="legacy stream"):
        cuda.capture(lambda stream: put(cuda, stream=0))


def test_page_locked_memory_freed_while_a_graph_is_recorded(cuda):
    held = [cuda.allocate_host(8)]
    cuda.capture(lambda stream: held.clear())
    with pytest.raises(Misuse, match="page-locked memory is freed while a CUDA graph"):
        cuda.sync()


def test_a_recording_before_its_rehearsal_is_done(cuda):
    put(cuda)
    with pytest.raises(Misuse, match="rehearsal is not done"):
        cuda.capture(lambda stream: None)


def test_page_locked_memory_freed_while_a_copy_is_queued(cuda):
    device, host = cuda.allocate(8), cuda.allocate_host(8)
    cuda.to_device(device.pointer, host.bytes[:4])
    del host
    with pytest.raises(Misuse, match="freed that a copy over has yet to use"):
        cuda.sync()


def test_device_memory_used_after_it_was_freed(cuda):
    target, source = cuda.allocate(8), cuda.allocate(8)
    pointer = source.pointer
    del source
    cuda.on_device(target.pointer, pointer, 8)
    with pytest.raises(Misuse, match="a copy on the device touches memory that is not the device"):
        cuda.sync()


def test_memory_past_its_end(cuda):
    memory = cuda.allocate(8)
    cuda.clear(memory.pointer, 9)
    with pytest.raises(Misuse, match="clearing touches memory"):
        cuda.sync()


def test_the_host_reads_before_a_sync(cuda):
    device, host = cuda.allocate(8), cuda.allocate_host(8)
    cuda.to_host(host.bytes[:8], device.pointer)
    for read in (lambda: host.bytes[:4].copy(), lambda: host.bytes + 1):
        with pytest.raises(Misuse, match="the host uses memory that a copy back has yet to write"):
            read()
    cuda.sync()
    assert host.bytes[:4].copy().size == 4


def test_the_host_writes_before_a_sync(cuda):
    device, host = cuda.allocate(8), cuda.allocate_host(8)
    cuda.to_device(device.pointer, host.bytes[:8])
    with pytest.raises(Misuse, match="the host writes memory that a copy over has yet to read"):
        host.bytes[2:3] = 1
    cuda.sync()
    host.bytes[2:3] = 1


def test_a_copy_back_to_memory_that_is_not_page_locked(cuda):
    device = cuda.allocate(8)
    with pytest.raises(Misuse, match="not page-locked"):
        cuda.to_host(np.zeros(8, np.uint8), device.pointer)


def test_pageable_memory_is_read_at_its_turn_only(cuda):
    device, source = cuda.allocate(8), np.arange(8, dtype=np.uint8)
    cuda.to_device(device.pointer, source)
    source[:] = 9
    host = cuda.allocate_host(8)
    cuda.to_host(host.bytes[:8], device.pointer)
    cuda.sync()
    assert host.bytes.copy().tolist() == [9] * 8


def test_a_graph_destroyed_while_it_is_to_be_launched(cuda):
    graph = cuda.capture(lambda stream: put(cuda, stream=stream))
    cuda.replay(graph)
    del graph
    with pytest.raises(Misuse, match="graph is destroyed while it is still to be launched"):
        cuda.sync()


# TensorRT


class Log:
    def __init__(self):
        self.lines = []

    def log(self, severity, text):
        self.lines.append(text)


class Run:
    """A graph's engine on the stand-in, one call away from running."""

    def __init__(self, bundle, graph, cuda, **how):
        self.cuda, self.module, self.log = cuda, TensorRtStandIn(cuda, **how), Log()
        self.device, file = Device(cuda), f"engines/tensorrt-rtx/fp32/{graph}.engine"
        self.engine = self.module.Runtime(self.log).deserialize_cuda_engine(
            (bundle.root / file).read_bytes()
        )
        self.context = self.engine.create_execution_context(self.config())
        self.context.set_optimization_profile_async(0, cuda.stream)
        self.workspace = cuda.allocate(4096)
        self.context.set_device_memory(self.workspace.pointer, 4096)
        self.arrays = {}

    def config(self):
        config = self.engine.create_runtime_config()
        strategies = self.module.ExecutionContextAllocationStrategy
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        return config

    def bind(self, shapes):
        for name, shape in shapes.items():
            assert self.context.set_input_shape(name, shape)
            self.arrays[name] = self.device.upload(np.zeros(shape, self.dtype(name)), name)
        assert self.context.infer_shapes() == []
        for i in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(i)
            if name not in self.arrays:
                shape = self.context.get_tensor_shape(name)
                self.arrays[name] = self.device.empty(shape, self.dtype(name))
            self.context.set_tensor_address(name, self.arrays[name].pointer)

    def dtype(self, name):
        return np.dtype(self.engine.get_tensor_dtype(name).value)


@pytest.fixture(scope="module")
def engines(bundle, tmp_path_factory):
    from geomag_edge.manifest import Bundle

    return built(Bundle.open(bundle), tmp_path_factory.mktemp("built"), cache="fixed")


@pytest.fixture
def embed(engines, cuda):
    return Run(engines, "embed", cuda)


def test_the_stand_in_runs_what_is_right(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    assert embed.context.execute_async_v3(cuda.stream)
    assert np.isfinite(embed.arrays["inputs_embeds"].numpy()).all()


def test_a_shape_outside_of_the_profile(embed):
    assert not embed.context.set_input_shape("input_ids", (9, 1))
    assert "does not satisfy the profile" in embed.log.lines[0]


def test_no_profile(engines, cuda):
    run = Run(engines, "embed", cuda)
    context = run.engine.create_execution_context(run.config())
    with pytest.raises(Misuse, match="a shape is given before the profile"):
        context.set_input_shape("input_ids", (1, 1))
    with pytest.raises(RuntimeError, match="set optimization profile"):
        context.set_optimization_profile_async(7, cuda.stream)
    with pytest.raises(Misuse, match="another stream"):
        context.set_optimization_profile_async(0, 0)


def test_no_shape_and_no_address(embed, cuda):
    assert not embed.context.execute_async_v3(cuda.stream)
    assert embed.log.lines == ["no shape for ['input_ids']"]
    embed.context.set_input_shape("input_ids", (1, 3))
    assert not embed.context.execute_async_v3(cuda.stream)
    assert embed.log.lines[-1] == "no address for ['input_ids', 'inputs_embeds']"


def test_an_address_that_is_null_or_misaligned(embed):
    for address in (0, 257):
        with pytest.raises(Misuse, match="address of input_ids is null or no multiple of 256"):
            embed.context.set_tensor_address("input_ids", address)


def test_activation_memory_that_is_too_small(embed):
    with pytest.raises(Misuse, match="misaligned or too small"):
        embed.context.set_device_memory(embed.workspace.pointer, 10)


def test_an_output_that_is_too_short(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    short = cuda.allocate(8)
    embed.context.set_tensor_address("inputs_embeds", short.pointer)
    embed.context.execute_async_v3(cuda.stream)
    with pytest.raises(Misuse, match="an engine touches memory"):
        cuda.sync()


def test_activation_memory_freed_while_work_is_queued(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    del embed.workspace
    embed.context.execute_async_v3(cuda.stream)
    with pytest.raises(Misuse, match="an engine touches memory that is not the device's"):
        cuda.sync()


def test_an_output_over_an_input(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    embed.context.set_tensor_address("inputs_embeds", embed.arrays["input_ids"].pointer)
    with pytest.raises(Misuse, match="inputs_embeds lies over another"):
        embed.context.execute_async_v3(cuda.stream)


def test_a_cache_that_is_not_updated_in_place(engines, cuda):
    run, shape = Run(engines, "llm", cuda), engines.manifest.decoder
    past = next(p for p in engines.record("llm", "fp32")["inputs"] if "past" in p["name"])
    capacity = run.engine._session.get_inputs()[-2].shape[2]
    assert past["axes"][2] == "N"
    run.bind({"inputs_embeds": (1, 1, shape.hidden), "position_ids": (1, 1), "write_indices": (1,),
              "attention_mask": (1, capacity),
              **{n: tuple(i.shape) if isinstance(i.shape[0], int) else (1, *i.shape[1:])
                 for n, i in run.engine._inputs.items() if "past" in n}})  # fmt: skip
    with pytest.raises(Misuse, match=r"present\.0\.key updates past_key_values\.0\.key in place"):
        run.context.execute_async_v3(cuda.stream)


def test_an_engine_in_a_thread_without_a_context(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    [caught] = in_a_thread(lambda: embed.context.execute_async_v3(cuda.stream))
    assert isinstance(caught, Misuse)
    assert "execute_async_v3: no context is current" in str(caught)


def test_an_engine_on_another_stream(embed):
    embed.bind({"input_ids": (1, 3)})
    with pytest.raises(Misuse, match="an engine is put on stream 3"):
        embed.context.execute_async_v3(3)


def test_a_context_destroyed_while_its_work_is_queued(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    embed.context.execute_async_v3(cuda.stream)
    embed.context = None
    gc.collect()
    with pytest.raises(Misuse, match="a context is destroyed whose work is still queued"):
        cuda.sync()


def test_a_context_changed_after_it_was_recorded(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    cuda.sync()
    graph = cuda.capture(embed.context.execute_async_v3)
    embed.context.set_input_shape("input_ids", (1, 2))
    cuda.replay(graph)
    with pytest.raises(Misuse, match="recording runs whose context was changed"):
        cuda.sync()


def test_a_recording_whose_context_is_gone(embed, cuda):
    embed.bind({"input_ids": (1, 3)})
    cuda.sync()
    graph = cuda.capture(embed.context.execute_async_v3)
    embed.context = None
    gc.collect()
    cuda.replay(graph)
    with pytest.raises(Misuse, match="work runs whose context was destroyed"):
        cuda.sync()


def test_the_stand_in_has_no_method_that_tensorrt_lacks():
    module = pytest.importorskip("tensorrt_rtx")
    for theirs, names in faces().items():
        real = getattr(module, theirs) if theirs else module
        assert [name for name in names if not hasattr(real, name)] == []
    kinds = ("TensorIOMode", "TensorLocation", "DataType", "ExecutionContextAllocationStrategy")
    for kind in kinds:
        ours, real = getattr(FACES[""], kind), getattr(module, kind)
        assert [m.name for m in ours if not hasattr(real, m.name)] == []
