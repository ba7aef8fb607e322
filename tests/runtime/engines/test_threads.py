"""Every engine takes the threads that this process is good for, and so does what is remembered."""

import pytest

from geomag_edge import cores, machine
from geomag_edge.errors import InputError
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.chain import probe
from geomag_edge.runtime.chain.pipeline import Pipeline
from geomag_edge.runtime.engines.auto import remembered
from geomag_edge.runtime.engines.engine import ENGINES
from geomag_edge.runtime.engines.opening import open_engine


@pytest.fixture
def half_a_core(monkeypatch):
    """As in a container with `--cpus 0.5`."""
    for module in (cores, machine):
        monkeypatch.setattr(module, "quota", lambda root=None: 0.5)


def options_of(bundle, threads=None):
    session = open_engine("ort-cpu", bundle, threads=threads).session("projector")
    options = session._session.get_session_options()
    try:
        spins = options.get_session_config_entry("session.intra_op.allow_spinning")
    except RuntimeError:  # nobody set it
        spins = "1"
    return options.intra_op_num_threads, spins


def test_onnx_runtime_keeps_to_the_quota(bundle, half_a_core):
    bundle = Bundle.open(bundle)
    assert options_of(bundle) == (1, "0")
    assert options_of(bundle, 2) == (2, "0")


def test_onnx_runtime_is_left_its_own_choice_on_a_machine_of_ones_own(bundle, monkeypatch):
    monkeypatch.setattr(cores, "quota", lambda root=None: None)
    monkeypatch.setattr(cores, "cores", cores.os.cpu_count)
    assert options_of(Bundle.open(bundle)) == (0, "1")


def test_openvino_keeps_to_the_quota(bundle, half_a_core):
    pytest.importorskip("openvino")
    engine = open_engine("openvino", Bundle.open(bundle))
    assert engine.session("projector")._compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_torch_keeps_to_the_quota(exported, half_a_core):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        open_engine("torch", Bundle.open(exported().bundle)).close()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [0, True, "2", 10**12, 2.0])
def test_no_engine_takes_what_is_no_number_of_threads(bundle, engine, threads):
    with pytest.raises(InputError, match="threads is "):
        open_engine(engine, Bundle.open(bundle), threads=threads)


def test_what_was_measured_under_another_quota_is_not_reused(bundle, monkeypatch):
    """Neither by `auto` nor by `plan` and `--latency-ms`."""
    places = set()
    with Pipeline.load(bundle, threads=1) as pipe:
        for share, own in ((None, 2), (0.5, 2), (0.25, 2), (None, 1)):
            monkeypatch.setattr(machine, "quota", lambda root=None, share=share: share)
            monkeypatch.setattr(machine, "cores", lambda own=own: own)
            under = remembered.conditions(pipe.bundle, "llm", ["fp32"], ["ort-cpu"], None)
            places |= {remembered.place("llm", "fp32", under), probe.place(pipe, None)}
    assert len(places) == 8


def test_a_default_of_one_thread_is_remembered_as_what_it_is(bundle, half_a_core):
    bundle = Bundle.open(bundle)
    by_default, by_name = (
        remembered.conditions(bundle, "llm", ["fp32"], ["ort-cpu"], n) for n in (None, 1)
    )
    assert by_default == by_name
