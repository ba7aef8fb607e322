"""Engines built by TensorRT for RTX, which needs no GPU; nothing here runs one."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap

import onnx
import pytest
from onnx import TensorProto, helper

from geomag_edge.errors import BundleError, EngineError, InputError
from geomag_edge.graphs import CHAIN
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.tensorrt.build import BuildOptions, build_engine
from geomag_edge.runtime.engines.tensorrt.bundle import _options_for, build_bundle
from geomag_edge.runtime.engines.tensorrt.flavour import Flavour, flavour_for, load_flavour
from geomag_edge.runtime.engines.tensorrt.log import builder_memory, first_error, tidy
from geomag_edge.runtime.engines.tensorrt.profiles import Profile, limits_of, profiles_of
from geomag_edge.runtime.engines.tensorrt.record import load_record, load_records
from geomag_edge.targets import find_target
from geomag_edge.targets.check import check_graph
from geomag_edge.targets.detect import Machine

pytest.importorskip("tensorrt_rtx")

HERE = Machine("linux-x86_64", versions={"tensorrt_rtx": "1.7"})
RTX = find_target("tensorrt-rtx")
ONE_SM = BuildOptions(sm=("8.6",))


def build(root, precision="fp16", target=RTX, options=ONE_SM, **others):
    bundle = Bundle.open(root)
    return build_bundle(bundle, bundle.manifest, target, precision, HERE, options, **others)


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    """A tiny fp16 bundle with every engine; read only."""
    root = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(exported(dtype="fp16").bundle, root)
    build(root)
    return root


@pytest.fixture
def fresh(built, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(built, tmp_path / "bundle")


def test_every_graph_is_built_with_all_its_profiles(built):
    bundle = Bundle.open(built)
    record = load_record(bundle, "tensorrt-rtx", "fp16")
    assert list(record.engines) == list(CHAIN)
    for graph, profiles in profiles_of(bundle.manifest).items():
        [file] = record.engines[graph]
        assert list(file.profiles) == profiles
        assert bundle.file(file.file).stat().st_size == file.bytes
        assert file.memory["weights_bytes"] > 0
        assert len(file.memory["activation_bytes"]) == len(profiles)
    assert record.limits == limits_of(bundle.manifest)
    assert set(record.engines["llm"][0].layer_precisions) <= {"HALF", "FLOAT", "FLOAT*HALF"}
    assert (record.flavour, record.built_on["gpu"]) == ("tensorrt_rtx", None)


def test_shapes_in_the_record_are_those_of_the_profiles(built):
    record = load_record(Bundle.open(built), "tensorrt-rtx", "fp16")
    [file] = record.engines["llm"]
    most = [shapes["attention_mask"][2] for shapes in file.shapes]
    assert most == [[1, p.axes["N+T"][2]] for p in file.profiles]
    assert all(shapes["past_key_values.0.key"][0][2] == 0 for shapes in file.shapes[1:])


def test_engines_are_checked_before_they_are_opened(fresh):
    bundle = Bundle.open(fresh)
    [file] = load_record(bundle, "tensorrt-rtx", "fp16").engines["embed"]
    path = fresh / file.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"embed\.engine is not what was exported"):
        Bundle.open(fresh).file(file.file)


def test_a_second_build_does_nothing(fresh):
    before = {p: p.stat().st_mtime_ns for p in fresh.rglob("*")}
    _, names = build(fresh)
    assert names == []
    assert {p: p.stat().st_mtime_ns for p in fresh.rglob("*")} == before


@pytest.mark.parametrize("why", ["the source changed", "the engine is gone", "asked for one graph"])
def test_only_what_changed_is_built_again(fresh, why):
    engine = fresh / "engines/tensorrt-rtx/fp16/embed.engine"
    if why == "the source changed":
        data = json.loads((fresh / "bundle.json").read_text())
        record = data["graphs"]["fp16"]["embed"]
        model = onnx.load(str(fresh / record["file"]), load_external_data=False)
        model.producer_version = "another"
        onnx.save(model, str(fresh / record["file"]))
        from geomag_edge.manifest import sha256_of

        data["files"][record["file"]] = sha256_of(fresh / record["file"])
        (fresh / "bundle.json").write_text(json.dumps(data))
    else:
        engine.unlink()
    graphs = ("embed",) if why == "asked for one graph" else CHAIN
    record, names = build(fresh, graphs=graphs)
    assert names == ["engines/tensorrt-rtx/fp16/embed.engine"]
    assert list(record.engines) == list(CHAIN)
    assert all(Bundle.open(fresh).file(f.file) for fs in record.engines.values() for f in fs)


def test_other_options_build_again(fresh):
    _, names = build(fresh, options=BuildOptions(sm=("8.9",)), graphs=("embed",))
    assert names == ["engines/tensorrt-rtx/fp16/embed.engine"]
    assert list(load_record(Bundle.open(fresh), "tensorrt-rtx", "fp16").engines) == ["embed"]


def test_a_target_of_single_profiles_gets_an_engine_a_profile(exported, tmp_path):
    root = shutil.copytree(exported(dtype="fp16").bundle, tmp_path / "bundle")
    single = dataclasses.replace(RTX, name="single", profiles="one")
    record, _ = build(root, target=single, graphs=("encoder", "embed"))
    assert [f.file for f in record.engines["encoder"]] == [
        "engines/single/fp16/encoder.whole.engine",
        "engines/single/fp16/encoder.crops.engine",
    ]
    assert record.pick("encoder", {"n": 1})[0].file.endswith("whole.engine")
    assert [r.target for r in load_records(Bundle.open(root))] == ["single"]


def test_float32_builds_too_though_no_fused_attention_has_it(bundle, tmp_path):
    root = shutil.copytree(bundle, tmp_path / "bundle")
    record, _ = build(root, precision="fp32", graphs=("encoder",))
    assert record.engines["encoder"][0].layer_precisions.keys() == {"FLOAT"}


def test_a_failure_leaves_the_bundle_as_it_was(fresh):
    def interrupt(step):
        raise KeyboardInterrupt

    before = sorted((p, p.stat().st_mtime_ns) for p in fresh.rglob("*") if p.is_file())
    with pytest.raises(KeyboardInterrupt):
        build(fresh, options=BuildOptions(sm=("8.9",)), progress=interrupt)
    assert sorted((p, p.stat().st_mtime_ns) for p in fresh.rglob("*") if p.is_file()) == before


def test_an_interrupt_inside_the_builder_stops_it(fresh):
    phases = []

    def interrupt(phase, done, total):
        phases.append(phase)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(fresh, options=BuildOptions(sm=("8.9",)), on_phase=interrupt)
    assert phases


def graph(tmp_path, node, dims=("n", 4), opset=20):
    kind = TensorProto.FLOAT16
    made = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", kind, list(dims))],
        [helper.make_tensor_value_info(node.output[0], TensorProto.INT64, None)],
    )  # fmt: skip
    path = tmp_path / "some.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)]), str(path))
    return path


def test_a_refusal_names_the_graph_the_node_and_the_reason(tmp_path):
    node = helper.make_node("ArgMax", ["x"], ["y"], name="best", axis=0)
    path = graph(tmp_path, node, dims=("n",))
    with pytest.raises(EngineError) as e:
        build_engine(
            load_flavour("tensorrt_rtx"), path, {"x": ["n"]}, [Profile("p", {"n": (1, 2, 3)})],
            ONE_SM,
        )  # fmt: skip
    text = str(e.value)
    assert "refuses some.onnx at node best (ArgMax): " in text
    assert "2 dimensions are required" in text
    assert "\n" not in text
    assert "/_src/" not in text


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path):
    path = tmp_path / "some.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"some\.onnx") as e:
        build_engine(load_flavour("tensorrt_rtx"), path, {}, [], ONE_SM)
    assert "\n" not in str(e.value)


def test_what_a_builder_lacks_is_said(exported, tmp_path):
    root = shutil.copytree(exported(dtype="fp16").bundle, tmp_path / "bundle")
    with pytest.raises(EngineError, match="has no engines to build"):
        build(root, target=find_target("portable"))
    with pytest.raises(BundleError, match="no int8 graphs"):
        build(root, precision="int8")
    with pytest.raises(EngineError, match="does not take int4-llm"):
        build(root, precision="int4-llm", target=dataclasses.replace(RTX, dtypes=("fp16",)))
    with pytest.raises(InputError, match="no graph 'psc' is built"):
        build(root, graphs=("psc",))
    with pytest.raises(EngineError, match="needs a GPU: build on the device"):
        build(root, options=BuildOptions(sm=("8.6",), stripped=True), graphs=("encoder",))


def test_a_flavour_of_another_version_is_refused():
    old = dataclasses.replace(RTX, versions=("1.0", "1.2"))
    with pytest.raises(EngineError, match=r"wants tensorrt_rtx from 1.0 and before 1.2, 1\.7"):
        flavour_for(old)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (Machine("linux", trouble="there is no driver's library libcuda.so.1"),
         "here there is no driver's library libcuda.so.1: run the same command there"),
        (Machine("linux", gpu="NVIDIA L4", sm="8.9", trouble="CUDA does not start (error 803)"),
         r"here CUDA does not start \(error 803\)"),
        (Machine("linux", gpu="Jetson"), "here nothing says its compute capability"),
    ],
)  # fmt: skip
def test_an_engine_for_no_known_gpu_is_not_begun(machine, says):
    """Nor is "None" written for what it loads on."""
    target, flavour = find_target("datacenter"), Flavour("tensorrt", None, "11.0")
    with pytest.raises(EngineError, match=says):
        _options_for(target, flavour, "fp16", BuildOptions(), machine, None)


def test_an_engine_is_begun_where_cuda_works_and_nvidia_smi_is_missing():
    machine = Machine("linux", gpu="NVIDIA L4", sm="8.9")
    target, flavour = find_target("datacenter"), Flavour("tensorrt", None, "11.0")
    options = BuildOptions(workspace_bytes=1 << 30)
    assert _options_for(target, flavour, "fp16", options, machine, None) == options


def test_a_full_tensorrt_target_says_what_is_missing_here():
    if load_flavour("tensorrt_rtx") and not _has_tensorrt():
        with pytest.raises(Exception, match=r"tensorrt cannot be imported.*JetPack"):
            flavour_for(find_target("jetpack6"))


def _has_tensorrt():
    try:
        load_flavour("tensorrt")
    except Exception:
        return False
    return True


LOG = [
    ("INFO", "Total Activation Memory: 398336 bytes"),
    ("INFO", "Total Activation Memory: 11174400 bytes"),
    ("INFO", "Total Weights Memory: 7377792 bytes"),
    ("ERROR", "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)"),
    (
        "ERROR",
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attach] "
        "CHECK(x) failed. Not supported. (See https://docs.nvidia.com/deeplearning/x.html for "
        "shapes.) Mark it. In compile at /_src/optimizer/x.cpp:2012)",
    ),
]


def test_the_builders_log_gives_memory_by_profile():
    memory = builder_memory(LOG, 2)
    assert (memory.weights, memory.activations) == (7377792, [398336, 11174400])
    assert builder_memory([], 2) is None


def test_the_builders_log_gives_the_cause_without_its_source_places():
    text = first_error(LOG)
    assert "Not supported" in text
    for noise in ("https", "_src", "myelin_graph.h", "cudaError"):
        assert noise not in text
    assert first_error([("WARNING", "w")]) is None


def test_tidying_keeps_what_is_plain():
    assert tidy("a plain  reason:\n with two lines") == "a plain reason: with two lines"


NO_TORCH = """
    import sys
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "transformers", "onnxscript", "safetensors"):
                raise ImportError(f"{name} is blocked by the test")
    sys.meta_path.insert(0, Blocked())
    from geomag_edge.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def test_a_bundle_alone_is_enough_to_build_without_torch(fresh):
    arguments = ["build", str(fresh), "--target", "tensorrt-rtx", "--graph", "embed", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NO_TORCH), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["built"] == ["engines/tensorrt-rtx/fp16/embed.engine"]
    assert report["fit"]["need_bytes"] > 0


def test_without_onnx_a_build_goes_on_and_says_what_it_left_out(fresh):
    code = """
        import sys
        sys.modules["onnx"] = None
        from geomag_edge.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    arguments = ["build", str(fresh), "--target", "tensorrt-rtx", "--graph", "embed"]
    for more, expected in (([], 0), (["--device", "l4"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *arguments, *more],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        assert "pip install onnx" in done.stderr


def test_the_package_imports_without_any_engine():
    code = """
        import sys
        for name in ("tensorrt", "tensorrt_rtx", "onnx", "torch"):
            sys.modules[name] = None
        import geomag_edge.runtime.engines.tensorrt.bundle, geomag_edge.runtime.planning.fit
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def with_int8(source, place):
    """A copy of a bundle with int8 graphs, calibrated on two scenes."""
    from geomag_edge.calibration.quantization.capture import capture
    from geomag_edge.calibration.quantization.scales import save_scales
    from geomag_edge.calibration.quantize import write_graphs
    from geomag_edge.calibration.sets.calibrating import open_calibration_set
    from geomag_edge.disk.amend import amended

    root = shutil.copytree(source, place)
    found = capture(Bundle.open(root), open_calibration_set("scenes:1:2:128"), threads=1)
    with amended(save_scales(Bundle.open(root), found.scales, "mse"), "onnx/int8") as change:
        write_graphs(change, "int8")
    return root


@pytest.mark.parametrize("target", ["jetpack6", "jetpack7"])
def test_int8_graphs_keep_the_rules_of_targets_without_fused_attention(exported, tmp_path, target):
    opened = Bundle.open(with_int8(exported(opset=20).bundle, tmp_path / "b"))
    for name in CHAIN:
        check_graph(opened.graph(name, "int8", "tensorrt"), find_target(target))


def test_int8_graphs_build_and_multiply_in_int8(bundle, tmp_path):
    record, _ = build(with_int8(bundle, tmp_path / "b"), precision="int8")
    assert list(record.engines) == list(CHAIN)
    for name in ("encoder", "llm", "mask_head"):
        assert record.engines[name][0].layer_precisions["INT8"] > 0
        assert record.engines[name][0].inputs[0]["dtype"] == "float16"


def test_options_are_recorded_and_tf32_builds_again(built, tmp_path):
    root = shutil.copytree(built, tmp_path / "bundle")
    options = load_record(Bundle.open(root), "tensorrt-rtx", "fp16").options
    assert (options["tf32"], options["workspace_bytes"]) == (False, 2 << 30)
    _, names = build(root, options=dataclasses.replace(ONE_SM, tf32=True), graphs=("embed",))
    assert names == ["engines/tensorrt-rtx/fp16/embed.engine"]


def test_less_free_memory_makes_no_engine_old(fresh, monkeypatch):
    from geomag_edge.runtime.engines.tensorrt import bundle as bundle_module

    monkeypatch.setattr(bundle_module, "workspace_for", lambda machine: 1 << 29)
    assert build(fresh)[1] == []
    _, names = build(
        fresh, options=dataclasses.replace(ONE_SM, workspace_bytes=1 << 29), graphs=("embed",)
    )
    assert names == ["engines/tensorrt-rtx/fp16/embed.engine"]
