"""Targets and devices as data, what a machine is taken for, and what a target refuses."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from geomag_edge.errors import InputError, TargetError
from geomag_edge.graphs import CHAIN
from geomag_edge.targets import find_target, known, load_catalog
from geomag_edge.targets.check import check_graph
from geomag_edge.targets.detect import choose_target, look_around

JETPACKS = ("jetpack6", "jetpack7", "jetpack7.2")
OLD_NAMES = ("portable", "older", "jetpack6", "jetpack7")


def test_the_known_targets_and_devices_are_there():
    catalog = known()
    assert {*OLD_NAMES, *JETPACKS, "datacenter", "tensorrt-rtx"} <= {*catalog.targets}
    assert {"orin-nano-8gb", "agx-orin-64", "thor-t5000", "t4", "h200", "l40s"} <= {
        *catalog.devices
    }


def test_a_device_runs_only_targets_of_its_compute_capability():
    for device in known().devices.values():
        for name in device.targets:
            assert device.sm in known().target(name).sm


@pytest.mark.parametrize(
    ("target", "inside", "outside"),
    [
        ("jetpack6", ["10.3.0", "10.3.0.30", "10.7.0"], ["10.13.0", "11.0.0", "8.6.1"]),
        ("jetpack7", ["10.13.3.9", "10.14.1"], ["10.3.0", "10.15.1"]),
        ("jetpack7.2", ["10.16.0", "11.4.1"], ["10.13.3", "12.0"]),
        ("tensorrt-rtx", ["1.7.1.116"], ["1.6.0", "10.3.0"]),
    ],
)
def test_versions_are_compared_as_numbers(target, inside, outside):
    target = find_target(target)
    assert all(target.takes_version(v) for v in inside)
    assert not any(target.takes_version(v) for v in outside)


def test_a_precision_of_several_types_needs_them_all():
    assert known().target("jetpack7").takes_precision("int8+int4-llm")
    assert known().target("jetpack6").takes_precision("int8")
    assert not known().target("jetpack6").takes_precision("int8+int4-llm")


def test_narrow_types_leave_out_the_gpus_that_lack_them():
    rtx = known().target("tensorrt-rtx")
    assert rtx.sm_for("fp16") == rtx.sm_for("int8") == rtx.sm
    for precision in ("fp32", "int8+int4-llm"):
        assert rtx.sm_for(precision) == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert rtx.sm_for("fp8") == ("8.9", "12.0", "12.1")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown target 'jetpack8': choose one of .*jetpack6"):
        find_target("jetpack8")
    with pytest.raises(InputError, match=r"unknown device 'orin': choose one of .*agx-orin-64"):
        known().device("orin")


TARGET = {"name": "mine", "note": "a board", "opset": 20, "opset_max": 20, "dtypes": ["fp16"],
          "attention": "decomposed"}  # fmt: skip
DEVICE = {"name": "board", "label": "Board", "targets": ["mine"], "sm": "8.7", "fp16_tflops": 5,
          "int8_tops": None, "gb_s": 50, "gb": 4, "shared_memory": True, "watts": [10]}  # fmt: skip


def write(path, **data):
    path.write_text(json.dumps(data))
    return path


def test_a_users_file_adds_to_what_is_known_and_may_replace_it(tmp_path):
    operators = {"few": "+tensorrt-10.3 Attention"}
    target = TARGET | {"operators": "few"}
    orin = DEVICE | {"name": "agx-orin-64", "gb": 32}
    path = write(tmp_path / "t.json", operators=operators, targets=[target], devices=[DEVICE, orin])
    catalog = load_catalog(path)
    assert {"MatMul", "Attention"} <= catalog.target("mine").operators
    assert catalog.device("board").gb == 4
    assert catalog.device("agx-orin-64").gb == 32
    assert known().device("agx-orin-64").gb == 64
    assert "mine" not in known().targets


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"opset": 21}, "an opset above its opset_max"),
        ({"opset": "20"}, "whole numbers"),
        ({"attention": "flash"}, "attention 'flash': choose one of fused, decomposed"),
        ({"dtypes": ["fp12"]}, "dtypes 'fp12'"),
        ({"speed": 3}, "unknown field 'speed'"),
        ({"operators": "none"}, "unknown operator list 'none'"),
        ({"flavour": "tensorrt"}, "needs versions"),
        ({"flavour": "tvm"}, "flavour 'tvm'"),
    ],
)
def test_a_wrong_target_record_is_refused(tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        load_catalog(write(tmp_path / "t.json", targets=[TARGET | change]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"targets": ["nobody"]}, "names no target 'nobody'"),
        ({"gb": 0}, "needs gb above 0"),
        ({"watts": []}, "at least one of targets and watts"),
    ],
)
def test_a_wrong_device_record_is_refused(tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        load_catalog(write(tmp_path / "t.json", targets=[TARGET], devices=[DEVICE | change]))


def test_a_record_that_lacks_a_field_is_refused(tmp_path):
    short = {k: v for k, v in TARGET.items() if k != "dtypes"}
    with pytest.raises(InputError, match="target 'mine' lacks 'dtypes'"):
        load_catalog(write(tmp_path / "t.json", targets=[short]))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["targets", "devices", "name", "opset"]), x)))  # fmt: skip
def test_whatever_json_a_file_holds_it_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("targets") / "t.json"
    path.write_text(json.dumps(data))
    try:
        load_catalog(path)
    except InputError as e:
        said = str(e)
    else:
        return
    assert str(path) in said


# what a machine is taken for

ORIN = "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64"
THOR = "# R38 (release), REVISION: 2.0, GCID: 2, BOARD: generic, EABI: aarch64"


def machine(smi=None, release=None, model=None, mode=None, **versions):
    return look_around(
        run=lambda command: {"nvidia-smi": smi, "nvpmodel": mode}[command[0]],
        read=lambda path: release if path.name == "nv_tegra_release" else model,
        version=versions.get,
        cuda=lambda: "there is no driver",
    )


def test_a_jetson_is_read_from_its_own_files():
    seen = machine(
        release=ORIN, model="NVIDIA Jetson AGX Orin\0", mode="NV Power Mode: MAXN\n0\n",
        tensorrt="10.3.0",
    )  # fmt: skip
    assert (seen.jetpack, seen.power_mode, seen.sm) == ("6.1 or 6.2", "MAXN", "8.7")
    assert choose_target(seen, known(), engines=True) == "jetpack6"
    assert "JetPack 6.1 or 6.2" in str(seen)
    assert "power mode MAXN" in str(seen)


@pytest.mark.parametrize(
    ("version", "release", "target"),
    [
        ("10.13.3", THOR, "jetpack7"),
        ("10.16.1", THOR, "jetpack7.2"),
        ("11.4.1", ORIN, "jetpack7.2"),
    ],
)
def test_the_version_of_tensorrt_decides_between_jetpacks(version, release, target):
    model = "NVIDIA Jetson AGX Orin" if release is ORIN else "NVIDIA Jetson AGX Thor"
    seen = machine(release=release, model=model, tensorrt=version)
    assert choose_target(seen, known(), engines=True) == target


def test_a_datacenter_gpu_is_read_from_its_driver():
    seen = machine(smi="NVIDIA H200, 9.0, 143771, 570.1\n", tensorrt="10.16.0")
    assert (seen.gpu, seen.sm, seen.driver) == ("NVIDIA H200", "9.0", "570.1")
    assert 150 < seen.memory_gb < 152
    assert choose_target(seen, known(), engines=True) == "datacenter"


def test_without_a_gpu_engines_are_built_by_what_is_installed_and_export_is_portable():
    seen = machine(tensorrt_rtx="1.7.1.116")
    assert choose_target(seen, known(), engines=True) == "tensorrt-rtx"
    assert choose_target(seen, known(), engines=False) == "portable"
    assert str(seen) == "no GPU, tensorrt_rtx 1.7.1.116"
    assert choose_target(machine(), known(), engines=True) == "portable"


@given(st.text(), st.text(), st.text())
def test_strange_answers_of_a_machines_tools_stop_nothing(smi, release, mode):
    seen = machine(smi=smi, release=release, mode=mode)
    assert choose_target(seen, known(), engines=True) in known().targets


# what a target refuses


def model_of(tmp_path, nodes, inputs, outputs, weights=(), opset=20, domains=()):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs],
        [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs],
        [numpy_helper.from_array(a, n) for n, a in weights],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    path = tmp_path / "some.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets), str(path))
    return path


F16, U8, I8 = TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8
X = ("x", F16, ["n", 4, 8])


def attention(tmp_path, inputs=3, outputs=1):
    names = [f"x{i}" for i in range(inputs)]
    node = helper.make_node("Attention", names, [f"y{i}" for i in range(outputs)], name="attend")
    given = [(n, F16, [1, 2, 4, 8]) for n in names]
    return model_of(tmp_path, [node], given, [("y0", F16)], opset=23)


@pytest.mark.parametrize("target", ["older", "jetpack6", "jetpack7"])
def test_a_fused_attention_is_refused_by_name_where_there_is_none(tmp_path, target):
    with pytest.raises(TargetError, match=r"some.onnx: node 'attend' \(Attention\).*--target"):
        check_graph(attention(tmp_path), find_target(target))


def test_a_fused_attention_is_taken_where_there_is_one(tmp_path):
    for target in ("portable", "jetpack7.2", "datacenter", "tensorrt-rtx"):
        check_graph(attention(tmp_path), find_target(target))


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (6, 1)])
def test_an_attention_that_keeps_its_own_cache_is_refused(tmp_path, inputs, outputs):
    path = attention(tmp_path, inputs, outputs)
    with pytest.raises(TargetError, match=r"'attend'.*cache"):
        check_graph(path, find_target("tensorrt-rtx"))
    check_graph(path, find_target("portable"))


def test_an_opset_that_is_too_new_is_refused(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    path = model_of(tmp_path, [node], [X], [("y", F16)], opset=21)
    with pytest.raises(TargetError, match="opset 21, the newest that is read there is 20"):
        check_graph(path, find_target("jetpack6"))
    check_graph(path, find_target("jetpack7"))


def test_our_own_operator_is_refused_since_there_is_no_plugin(tmp_path):
    node = helper.make_node("PscCrop", ["x"], ["y"], name="crop", domain="geomag")
    path = model_of(tmp_path, [node], [X], [("y", F16)], domains=["geomag"])
    for target in ("tensorrt-rtx", "jetpack6", "jetpack7"):
        with pytest.raises(TargetError, match=r"'crop' \(PscCrop\).*no plugin"):
            check_graph(path, find_target(target))


def test_onnx_runtimes_own_operators_are_refused_for_engines(tmp_path):
    node = helper.make_node("MatMulNBits", ["x"], ["y"], name="narrow", domain="com.microsoft")
    path = model_of(tmp_path, [node], [X], [("y", F16)], domains=["com.microsoft"])
    with pytest.raises(TargetError, match=r"'narrow' \(MatMulNBits\)"):
        check_graph(path, find_target("jetpack7.2"))
    check_graph(path, find_target("portable"))


def test_a_layer_norm_in_pieces_is_refused_and_a_mean_alone_is_not(tmp_path):
    axes = [("axes", np.array([-1]))]
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["m"])
    centred = helper.make_node("Sub", ["x", "m"], ["c"])
    square = helper.make_node("Mul", ["c", "c"], ["s"])
    variance = helper.make_node("ReduceMean", ["s", "axes"], ["v"], name="variance")
    pieces = model_of(tmp_path, [mean, centred, square, variance], [X], [("v", F16)], axes)
    with pytest.raises(TargetError, match=r"'variance'.*LayerNormalization in pieces"):
        check_graph(pieces, find_target("jetpack6"))
    check_graph(pieces, find_target("older"))
    rms = [
        helper.make_node("Mul", ["x", "x"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axes"], ["v"]),
    ]
    check_graph(model_of(tmp_path, rms, [X], [("v", F16)], axes), find_target("jetpack6"))


@pytest.mark.parametrize(
    ("zero", "says"),
    [(np.array(3, np.int8), "a zero point other than 0"), (np.array(0, np.uint8), "unsigned")],
)
def test_asymmetric_quantisation_is_refused(tmp_path, zero, says):
    kind = U8 if zero.dtype == np.uint8 else I8
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], name="narrow")
    weights = [("scale", np.array(0.1, np.float16)), ("zero", zero)]
    path = model_of(tmp_path, [node], [X], [("y", kind)], weights)
    with pytest.raises(TargetError, match=f"'narrow'.*{says}"):
        check_graph(path, find_target("jetpack6"))


def test_an_argmax_over_an_only_axis_is_refused(tmp_path):
    for shape, refused in (([9], True), (["n", 9], False)):
        node = helper.make_node("ArgMax", ["v"], ["i"], name="best", axis=len(shape) - 1)
        path = model_of(tmp_path, [node], [("v", F16, shape)], [("i", TensorProto.INT64)])
        if refused:
            with pytest.raises(TargetError, match=r"'best'.*only axis"):
                check_graph(path, find_target("tensorrt-rtx"))
        else:
            check_graph(path, find_target("tensorrt-rtx"))


def test_weights_of_a_type_that_a_target_lacks_are_refused(tmp_path):
    weight = helper.make_tensor("w", TensorProto.INT4, [2], b"\x21", raw=True)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [
        helper.make_tensor_value_info("y", TensorProto.INT4, [2])], [weight])  # fmt: skip
    path = tmp_path / "some.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), str(path))
    with pytest.raises(TargetError, match="'w' is int4"):
        check_graph(path, find_target("jetpack6"))


@pytest.mark.parametrize(
    ("target", "opset"),
    [
        ("jetpack6", 20), ("jetpack7", 20), ("older", 20), ("portable", 23), ("jetpack7.2", 23),
        ("datacenter", 23), ("datacenter-10.13", 20), ("datacenter-10.8", 20),
        ("datacenter-10.0", 20), ("tensorrt-rtx", 23),
    ],
)  # fmt: skip
def test_every_graph_of_the_chain_passes_its_targets_rules(exported, target, opset):
    assert find_target(target).opset == opset
    made = exported(opset=opset, dtype="fp16")
    for graph in CHAIN:
        check_graph(made.graph(graph), find_target(target))


def test_export_refuses_what_the_target_cannot_take_and_writes_nothing(checkpoint_of, tmp_path):
    from geomag_edge.export.exporter import export_bundle

    with pytest.raises(TargetError, match=r"'jetpack6' cannot take encoder.onnx: node .*Attention"):
        export_bundle(
            checkpoint_of("llama-clip"), tmp_path / "b", opset=23, target=find_target("jetpack6")
        )
    assert not (tmp_path / "b").exists()
