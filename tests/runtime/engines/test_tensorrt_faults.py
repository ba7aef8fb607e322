"""TensorRT engines where something fails: recordings that are refused, calls that raise, memory
that ends, a device that dies; and from whichever thread they are used. All on the stand-ins.
"""

import mmap
import shutil
import threading

import numpy as np
import pytest

from geomag_edge.errors import EngineError
from geomag_edge.graphs import past_names, present_names
from geomag_edge.manifest import Bundle, sha256_of
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.tensorrt import log as log_module
from geomag_edge.runtime.engines.tensorrt.engine import TensorRtEngine
from tests.runtime.built import built, pipeline
from tests.runtime.late_cuda import CAPTURE


@pytest.fixture(autouse=True)
def own_logger(monkeypatch):
    monkeypatch.setattr(log_module, "_LOGGERS", {})


@pytest.fixture(scope="module")
def opened(bundle):
    return Bundle.open(bundle)


@pytest.fixture(scope="module", params=["growing", "fixed"])
def engines(request, opened, tmp_path_factory):
    return built(opened, tmp_path_factory.mktemp("built"), cache=request.param)


@pytest.fixture(scope="module")
def growing(opened, tmp_path_factory):
    return built(opened, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def reference(opened):
    with Pipeline.load(opened, "ort-cpu") as pipe:
        yield pipe


def opened_on(bundle, device, make_tensorrt, **how):
    flavour = make_tensorrt(device.driver, **how)
    return TensorRtEngine("tensorrt-rtx", bundle, "fp32", device, flavour)


IDS = {"input_ids": np.array([[5, 6, 7]])}


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# recordings


@pytest.mark.parametrize("where", CAPTURE)
def test_a_refused_recording_is_remembered_and_said_once(
    where, growing, reference, make_device, make_tensorrt
):
    device = make_device(refuses=where)
    engine = opened_on(growing, device, make_tensorrt, capturable=None)
    session = engine.session("embed")
    expected = reference.chain.sessions["embed"].run(IDS)["inputs_embeds"]
    for _ in range(5):
        np.testing.assert_array_equal(session.run(IDS)["inputs_embeds"], expected)
    other = {"input_ids": np.array([[9]])}
    for _ in range(3):
        session.run(other)
    assert session.provider.count("not replayed as CUDA graphs: ") == 1
    assert ("operation not permitted when stream is capturing" in session.provider) == (
        where == "during"
    )
    # One for each profile, and one for the one attempt.
    assert engine.flavour.module._contexts == len(session._works) + 1
    session.close()
    engine.close()
    device.driver.check()


@pytest.mark.parametrize("where", ["during", "replay"])
def test_answers_without_recordings_are_the_same(
    where, engines, reference, make_device, make_tensorrt, picture
):
    device = make_device(refuses=where)
    engine = opened_on(engines, device, make_tensorrt, capturable=None)
    with pipeline(engine) as pipe:
        for _ in range(3):
            ours = pipe(picture, "segment the ships", "image", 3, "[SEG]")
        theirs = reference(picture, "segment the ships", "image", 3, "[SEG]")
        assert ours.token_ids == theirs.token_ids
        for one, other in zip(ours.masks, theirs.masks, strict=True):
            assert np.mean(np.asarray(one) != np.asarray(other)) < 1e-3
        assert "not replayed as CUDA graphs" in ours.providers["encoder"]
        assert device.driver.replays == 0
    device.driver.check()


# what the bindings raise or return


@pytest.mark.parametrize(
    "call",
    ["set_optimization_profile_async", "set_input_shape", "infer_shapes", "get_tensor_shape",
     "set_tensor_address", "execute_async_v3", "create_execution_context"],
)  # fmt: skip
def test_what_the_bindings_raise_is_one_line(call, growing, device, make_tensorrt):
    fails = {call: RuntimeError("Error in it.\nAnd more.")}
    session = opened_on(growing, device, make_tensorrt, fails=fails).session("embed")
    with pytest.raises(EngineError, match=r"TensorRT failed on embed, .*: Error in it") as caught:
        session.run(IDS)
    one_line(caught)


@pytest.mark.parametrize(
    "call", ["set_optimization_profile_async", "set_input_shape", "set_tensor_address",
             "execute_async_v3", "infer_shapes"],
)  # fmt: skip
def test_what_is_not_done_is_one_line(call, growing, device, make_tensorrt):
    fails = {call: ["input_ids"] if call == "infer_shapes" else False}
    session = opened_on(growing, device, make_tensorrt, fails=fails).session("embed")
    with pytest.raises(EngineError, match=r"TensorRT .*embed.*(no reason given|input_ids)"):
        session.run(IDS)


def test_no_context_is_one_line(growing, device, make_tensorrt):
    fails = {"create_execution_context": None}
    session = opened_on(growing, device, make_tensorrt, fails=fails).session("embed")
    with pytest.raises(EngineError, match=r"makes no context for embed: no reason given; use a sm"):
        session.run(IDS)


@pytest.mark.parametrize("fails", [None, RuntimeError("Out of memory.\nAnd more.")])
def test_an_engine_that_cannot_be_loaded_is_one_line(fails, growing, device, make_tensorrt):
    engine = opened_on(growing, device, make_tensorrt, fails={"deserialize_cuda_engine": fails})
    said = "it does not say why" if fails is None else "Out of memory"
    with pytest.raises(EngineError, match=rf"cannot load .*embed\.engine: {said}; build") as caught:
        engine.session("embed")
    one_line(caught)


def test_engines_are_mapped_and_an_empty_one_is_refused(growing, tmp_path, device, make_tensorrt):
    engine = opened_on(growing, device, make_tensorrt)
    engine.session("embed")
    assert engine.flavour.module._read == [mmap.mmap]
    bundle = Bundle.open(shutil.copytree(growing.root, tmp_path / "b"))
    file = "engines/tensorrt-rtx/fp32/embed.engine"
    (bundle.root / file).write_bytes(b"")
    bundle.manifest.files[file] = sha256_of(bundle.root / file)
    with pytest.raises(EngineError, match=r"cannot load .*embed\.engine: cannot mmap an empty"):
        opened_on(bundle, device, make_tensorrt).session("embed")


def test_tensorrt_is_asked_for_the_outputs_shapes_once(growing, device, make_tensorrt):
    engine = opened_on(growing, device, make_tensorrt)
    llm, shape = engine.session("llm"), growing.manifest.decoder
    names, asked = present_names(shape.layers), engine.flavour.module._asked
    past = {
        n: np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
        for n in past_names(shape.layers)
    }
    for step in range(6):
        out = llm.run(
            {
                "inputs_embeds": np.full((1, 1, shape.hidden), 0.1, np.float32),
                "attention_mask": np.ones((1, step + 1), np.int64),
                "position_ids": np.array([[step]]), **past,
            },
            frozenset(names),
        )  # fmt: skip
        past = dict(zip(past_names(shape.layers), (out[n] for n in names), strict=True))
        assert out["logits"].shape[:2] == (1, 1)
        assert out[names[0]].shape == (1, shape.kv_heads, step + 1, shape.head_dim)
    assert asked.count("infer_shapes") == len(llm._works) <= 2


# memory that ends, a device that dies


def test_no_memory_at_load_is_one_line(growing, make_device, make_tensorrt):
    with pytest.raises(EngineError, match=r"the GPU has no .* MB of memory left: ") as caught:
        opened_on(growing, make_device(memory_bytes=100), make_tensorrt)
    one_line(caught)


def test_no_memory_at_run_is_one_line_and_passes(growing, device, make_tensorrt, picture):
    with pipeline(opened_on(growing, device, make_tensorrt)) as pipe:
        device.driver.memory_bytes = device.driver.used_bytes + 1000
        with pytest.raises(EngineError, match=r"no .* MB of (page-locked )?memory left") as caught:
            pipe(picture, "segment the ships", "image", 2)
        one_line(caught)
        device.driver.memory_bytes = 1 << 30
        assert pipe(picture, "segment the ships", "image", 2).token_ids


def test_what_was_freed_serves_again_before_there_is_no_memory(
    growing, device, make_tensorrt, picture
):
    with pipeline(opened_on(growing, device, make_tensorrt)) as pipe:
        pipe(picture, "segment the ships", "image", 2)
        device.sync()
        device.driver.memory_bytes = device.driver.used_bytes + device.driver.pooled_bytes
        assert pipe(picture, "segment the ships", "image", 2).token_ids


def test_all_is_given_back_when_it_is_closed(engines, make_device, make_tensorrt, picture):
    for integrated in (False, True):
        device = make_device(integrated=integrated)
        with pipeline(opened_on(engines, device, make_tensorrt)) as pipe:
            pipe(picture, "segment the ships", "image", 2, "[SEG]")
        device.sync()
        assert device.driver.used_bytes == 0
        device.driver.check()


def test_a_device_that_died_says_so_at_every_call_and_closes(growing, device, make_tensorrt):
    engine = opened_on(growing, device, make_tensorrt)
    session = engine.session("embed")
    session.run(IDS)
    device.driver.dies = "CUDA_ERROR_ILLEGAL_ADDRESS"
    for _ in range(4):
        with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*start the process aga"):
            session.run(IDS)
    with pytest.raises(EngineError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.session("embed")
    session.close()
    engine.close()


# threads


def in_threads(*work):
    """Does each in a thread of its own, all at once; raises what one of them raised."""
    caught = []

    def run(do):
        try:
            do()
        except BaseException as e:
            caught.append(e)

    threads = [threading.Thread(target=run, args=(do,)) for do in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if caught:
        raise caught[0]


def test_any_thread_may_open_ask_and_close(engines, reference, make_device, make_tensorrt, picture):
    device, made, answers = make_device(), [], []
    theirs = reference(picture, "segment the ships", "image", 3)
    in_threads(lambda: made.append(pipeline(opened_on(engines, device, make_tensorrt))))
    for _ in range(3):
        in_threads(lambda: answers.append(made[0](picture, "segment the ships", "image", 3)))
    in_threads(made[0].close)
    assert [a.token_ids for a in answers] == [theirs.token_ids] * 3
    assert device.driver.replays
    device.driver.check()


def test_several_pipelines_in_one_process(growing, reference, make_device, make_tensorrt, picture):
    devices, answers = [make_device() for _ in range(2)], {}
    theirs = reference(picture, "segment the ships", "image", 3)

    def ask(number):
        with pipeline(opened_on(growing, devices[number], make_tensorrt)) as pipe:
            answers[number] = [
                pipe(picture, "segment the ships", "image", 3).token_ids for _ in range(3)
            ]

    in_threads(lambda: ask(0), lambda: ask(1))
    assert answers == {0: [theirs.token_ids] * 3, 1: [theirs.token_ids] * 3}
    for device in devices:
        device.driver.check()
