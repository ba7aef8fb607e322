"""What the builder is told and what is made of its answer, on a stand-in for the builder."""

import subprocess
from pathlib import Path

import pytest

from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.tensorrt import workspace
from geomag_edge.runtime.engines.tensorrt.build import OWN_MEMORY, BuildOptions, build_engine
from geomag_edge.runtime.engines.tensorrt.profiles import Profile
from geomag_edge.runtime.engines.tensorrt.workspace import LEAST_BYTES, MOST_BYTES, workspace_for
from geomag_edge.targets.detect import Machine

AXES = {"x": ["n", 4]}
PROFILES = [Profile("one", {"n": (1, 1, 1)}), Profile("more", {"n": (2, 3, 4)})]
WEIGHTS = ("INFO", "Total Weights Memory: 100 bytes")


def activations(*sizes):
    return [("INFO", f"Total Activation Memory: {n} bytes") for n in sizes]


def built(flavour, options=None, profiles=PROFILES):
    return build_engine(flavour, Path("some.onnx"), AXES, profiles, options or BuildOptions())


def fine(config):
    return b"plan", [*activations(10, 20), WEIGHTS]


@pytest.mark.parametrize("asked", [False, True])
def test_float32_is_computed_in_float32_unless_tf32_is_asked_for(make_builder, asked):
    flavour, module = make_builder(fine)
    built(flavour, BuildOptions(tf32=asked))
    assert (module.BuilderFlag.TF32 in module.configs[0].set) == asked
    assert BuildOptions(tf32=asked).to_json()["tf32"] is asked


def test_scratch_memory_is_limited(make_builder):
    flavour, module = make_builder(fine)
    built(flavour, BuildOptions(workspace_bytes=1 << 30))
    assert module.configs[0].pools == {module.MemoryPoolType.WORKSPACE: 1 << 30}


GPU = Machine("linux-aarch64", gpu="Orin", sm="8.7")


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (64 << 30, MOST_BYTES), (8 << 30, MOST_BYTES), (6 << 30, 6 << 28), (None, MOST_BYTES),
        (100 << 20, LEAST_BYTES),
    ],
)  # fmt: skip
def test_the_limit_is_a_quarter_of_what_is_free_and_two_gib_at_most(free, expected):
    assert workspace_for(GPU, lambda: free) == expected


def test_without_a_gpu_nothing_is_asked():
    assert workspace_for(Machine("linux-x86_64"), lambda: 1) == MOST_BYTES


def test_free_memory_is_the_gpus_own_or_the_systems(monkeypatch, tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  8000 kB\nMemAvailable:   2000 kB\n")
    shared = workspace._shared_bytes
    monkeypatch.setattr(workspace, "_shared_bytes", lambda path: shared(file))
    for said, expected in (
        ("4000\n6000\n", 4000 << 20),
        ("[N/A]\n", 2000 << 10),
        (None, 2000 << 10),
    ):
        monkeypatch.setattr(workspace, "_nvidia_smi", lambda said=said: said)
        assert workspace.free_bytes() == expected
    file.write_text("")
    assert workspace.free_bytes() is None
    file.unlink()
    assert workspace.free_bytes() is None


def test_a_tool_that_hangs_or_fails_is_as_good_as_none(monkeypatch):
    monkeypatch.setattr(workspace.shutil, "which", lambda name: name)

    def hang(*arguments, **how):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(workspace.subprocess, "run", hang)
    assert workspace._nvidia_smi() is None


# As TensorRT 8.4 (DeepStream), 10.3 (a laptop and a Jetson) and 1.7 for RTX print it.
SHORT_OF_MEMORY = {
    "10.3": [
        ("ERROR", "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of "
         "memory)"),
        ("WARNING", "Requested amount of GPU memory (15485030400 bytes) could not be allocated. "
         "There may not be enough free memory for allocation to succeed."),
        ("ERROR", "Error Code: 9: Skipping tactic 0x0000000000000000 due to exception "
         "[tunable_graph.cpp:create:117] autotuning: User allocator error allocating "
         "15485030400-byte buffer"),
        ("ERROR", "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find "
         "any implementation for node {ForeignNode[/1/Constant_36_output_0.../1/Slice_4]}.)"),
    ],
    "8.4": [
        ("ERROR", "[virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no "
         "further information)"),
    ],
    "a board, tactics skipped": [
        ("WARNING", "Tactic Device request: 4229MB Available: 2658MB. Device memory is "
         "insufficient to use tactic."),
        ("WARNING", "Skipping tactic 13 due to insufficient memory on requested size of 4229 "
         "detected for tactic 0x0000000000000074."),
        ("ERROR", "Error Code 10: Internal Error (Could not find any implementation for node "
         "{ForeignNode[x]}.)"),
    ],
    "1.7 for RTX": [
        ("ERROR", "[codeGenerator.cpp::createMyelinGraph::1203] Error Code 2: Internal Error "
         "(Assertion mContext.maxScratchSize > 0 failed. Compiling this graph requires workspace "
         "memory greater than 0. In createMyelinGraph at /_src/optimizer/codeGenerator.cpp:1203)"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("version", SHORT_OF_MEMORY)
def test_a_device_out_of_memory_is_named_with_what_to_do(make_builder, version):
    flavour, _ = make_builder(lambda config: (None, SHORT_OF_MEMORY[version]))
    with pytest.raises(EngineError, match=r"cannot build some\.onnx: .+ \(the device's memory ran "
                       r"out: end other programs.*--budget\)") as caught:  # fmt: skip
        built(flavour)
    assert "\n" not in str(caught.value)


def test_another_failure_is_not_taken_for_it(make_builder):
    said = [("WARNING", "a weight is subnormal"), ("ERROR", "Could not find any implementation")]
    flavour, _ = make_builder(lambda config: (None, said))
    with pytest.raises(EngineError, match=r"cannot build some\.onnx: Could not find any impl\w+$"):
        built(flavour)


def test_tensorrt_for_rtx_is_asked_for_engines_that_can_be_recorded(make_builder):
    flavour, module = make_builder(fine, rtx=True)
    assert built(flavour).flags == [OWN_MEMORY]
    assert module.BuilderFlag.REQUIRE_USER_ALLOCATION in module.configs[0].set
    assert len(module.configs) == 1


def test_a_graph_that_cannot_be_built_so_is_built_without(make_builder):
    def says(config):
        refused = any(flag.name == OWN_MEMORY for flag in config.set)
        return (None, [("ERROR", "it needs runtime allocation")]) if refused else fine(config)

    flavour, module = make_builder(says, rtx=True)
    made = built(flavour)
    assert made.flags == []
    assert "may not be recorded" in made.warnings[0]
    assert module.BuilderFlag.TF32 not in module.configs[1].set


def test_what_fails_both_ways_says_the_plain_ones_reason(make_builder):
    def says(config):
        with_it = any(flag.name == OWN_MEMORY for flag in config.set)
        return None, [("ERROR", "of the flag" if with_it else "of the graph")]

    flavour, _ = make_builder(says, rtx=True)
    with pytest.raises(EngineError, match="of the graph"):
        built(flavour)


@pytest.mark.parametrize("sizes", [(30,), (30, 10, 20), (30, 1, 2, 3)])
def test_any_number_of_memory_lines_ends_in_an_engine(make_builder, sizes):
    flavour, _ = make_builder(lambda config: (b"plan", [*activations(*sizes), WEIGHTS]))
    memory = built(flavour).memory
    assert (memory.weights, memory.activations) == (100, [30, 30])


@pytest.mark.parametrize("lines", [[], [WEIGHTS], activations(1, 2)])
def test_a_builder_that_says_too_little_leaves_memory_unknown(make_builder, lines):
    flavour, _ = make_builder(lambda config: (b"plan", lines))
    assert built(flavour).memory is None


def test_an_engine_that_loads_says_itself_what_its_profiles_take(make_builder):
    flavour, _ = make_builder(fine, engine=[11, 22])
    assert built(flavour).memory.activations == [11, 22]
