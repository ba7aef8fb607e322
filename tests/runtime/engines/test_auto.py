"""Engine auto: the fastest right answer wins, is remembered, and nothing is left out silently."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomag_edge import Pipeline
from geomag_edge.cli import main
from geomag_edge.errors import BundleError, EngineError, MissingExtraError
from geomag_edge.graphs import CHAIN, TOLERANCES
from geomag_edge.manifest import Bundle
from geomag_edge.runtime.engines.auto import auto, choice, remembered
from geomag_edge.runtime.engines.auto.auto import AutoEngine
from geomag_edge.runtime.engines.auto.choice import (
    ANSWER_TOKENS,
    Choice,
    Measured,
    choose,
    fastest_of,
    left_out_notes,
)
from geomag_edge.runtime.engines.reference import Call

FP32 = TOLERANCES["fp32"]
X = np.arange(1.0, 5.0, dtype=np.float32)
CALLS = [Call("encoder", {"x": X}, {"y": 2 * X})] * 2


class Clock:
    """Time that passes only when a fake session says so, in seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Fake:
    """A graph that doubles its input, `ms` a run (then the next of them), with an `error` on top.

    `raises` is what it does instead of an answer.
    """

    opened = 0

    def __init__(self, clock, ms, error=0.0, raises=None):
        assert Fake.opened == 0, "two candidates were open at once"
        Fake.opened += 1
        self.clock, self.ms, self.error, self.raises = clock, list(ms), error, raises
        self.provider = "fake"

    def run(self, feeds, keep=frozenset()):
        if self.raises:
            raise self.raises
        self.clock.now += self.ms[0] / 1e3
        self.ms = self.ms[1:] or self.ms
        return {"y": 2 * feeds["x"] * (1 + self.error)}

    def close(self):
        Fake.opened -= 1


@pytest.fixture(autouse=True)
def none_open():
    Fake.opened = 0
    yield
    assert Fake.opened == 0, "a session was left open"


def chosen(**candidates):
    clock = Clock()
    openers = {
        name.replace("_", "-"): (lambda kw=kw: Fake(clock, **kw)) for name, kw in candidates.items()
    }
    return choose("encoder", openers, CALLS, FP32, 0, clock)


@given(ms=st.lists(st.floats(0.5, 1e4), min_size=1, max_size=5, unique=True))
@settings(max_examples=30)
def test_the_fastest_of_any_candidates_is_chosen_and_all_are_told(ms):
    choice = chosen(**{f"e{i}": {"ms": [x]} for i, x in enumerate(ms)})
    assert choice.engine == f"e{ms.index(min(ms))}"
    assert [m.engine for m in choice.measured] == [f"e{i}" for i in range(len(ms))]
    assert [m.ms for m in choice.measured] == pytest.approx([2 * x for x in ms])
    assert choice.left_out == {}


def test_a_slow_moment_of_a_fast_engine_does_not_count():
    busy = [5.0, 5.0, 900.0, 900.0, 5.0]
    assert chosen(steady={"ms": [20.0]}, disturbed={"ms": busy}).engine == "disturbed"


def test_a_fast_engine_with_wrong_answers_is_left_out_with_its_error():
    choice = chosen(right={"ms": [50.0]}, wrong={"ms": [1.0], "error": 0.01})
    assert choice.engine == "right"
    assert "output y is 1.0e-02 of its scale off, 1e-04 is allowed" in choice.left_out["wrong"]


def test_engines_that_fail_are_left_out_with_their_reason():
    clock = Clock()

    def missing():
        raise MissingExtraError("pip install it")

    openers = {
        "missing": missing,
        "broken": lambda: Fake(clock, [1.0], raises=EngineError("cannot run a graph")),
        "good": lambda: Fake(clock, [9.0]),
    }
    choice = choose("encoder", openers, CALLS, FP32, 0, clock)
    assert choice.engine == "good"
    assert choice.left_out == {"missing": "pip install it", "broken": "cannot run a graph"}


def test_no_engine_at_all_is_one_error_with_every_reason():
    with pytest.raises(EngineError, match=r"can run the graph encoder: a: .*off.*; b: ") as e:
        chosen(a={"ms": [1.0], "error": 1.0}, b={"ms": [1.0], "error": float("nan")})
    assert "\n" not in str(e.value)


def test_a_bug_in_an_engine_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        chosen(a={"ms": [1.0], "raises": ZeroDivisionError()}, b={"ms": [2.0]})


def test_a_graph_that_the_reference_never_runs_cannot_be_timed():
    with pytest.raises(EngineError, match="reference never runs the graph encoder"):
        choose("encoder", {}, [], FP32, 0)


class FakeLlm:
    """A decoder of one layer whose cache is its own objects and may come from nobody else."""

    provider = "fake"

    def __init__(self, clock, prefill_ms, step_ms):
        self.clock, self.ms = clock, {True: prefill_ms, False: step_ms}
        self.lengths = []

    def run(self, feeds, keep=frozenset()):
        past = feeds["past_key_values.0.key"]
        first = isinstance(past, np.ndarray)
        assert first or past[0] is self, "a cache came from another engine"
        length = feeds["attention_mask"].shape[1]
        assert feeds["position_ids"][0, -1] == length - 1
        assert first or length == past[1] + 1
        self.clock.now += self.ms[first] / 1e3
        self.lengths.append(length)
        out = dict.fromkeys(("present.0.key", "present.0.value"), X)
        out = {name: (self, length) if name in keep else v for name, v in out.items()}
        return out | {"logits": X}

    def close(self):
        pass


def test_an_llm_is_timed_as_a_prefill_and_a_typical_answer():
    """Quick at prefill, slow at decoding: which wins depends on the weights of both."""
    clock = Clock()
    feeds = {
        "inputs_embeds": np.zeros((1, 6, 4), np.float32),
        "attention_mask": np.ones((1, 6), np.int64),
        "position_ids": np.arange(6)[None],
        "past_key_values.0.key": np.zeros((1, 1, 0, 2), np.float32),
        "past_key_values.0.value": np.zeros((1, 1, 0, 2), np.float32),
    }
    short = {k: v[:, :3] if k != "past_key_values.0.key" else v for k, v in feeds.items()}
    calls = [Call("llm", f, {"logits": X}) for f in (short, feeds)]
    engines = {
        "prefills": lambda: FakeLlm(clock, 100.0, 11.0),
        "decodes": lambda: FakeLlm(clock, 180.0, 5.0),
    }
    choice = choose("llm", engines, calls, FP32, 1, clock)
    assert choice.engine == "decodes"
    assert [m.ms for m in choice.measured] == pytest.approx(
        [100 + 11 * ANSWER_TOKENS, 180 + 5 * ANSWER_TOKENS]
    )
    assert choice.work == f"prefill of 6 tokens, {ANSWER_TOKENS} decode steps"


def measurement(name, *parts):
    return Measured(name, "fake", sum(parts), 0.0, parts)


def test_an_engine_that_ran_nothing_is_named_once_and_a_form_by_its_graphs():
    def choice(graph, measured, left_out):
        return Choice(graph, measured, "work", (measurement(measured, 1.0),), left_out)

    notes = left_out_notes(
        [
            choice("encoder", "ort-cpu/fp32", {"tpu/fp32": "no fp32", "tpu/int8": "no int8"}),
            choice("llm", "openvino/int8", {"tpu/int8": "no int8", "ort-cpu/int8": "broken"}),
            choice("embed", "openvino/int8", {"ort-cpu/int8": "broken"}),
        ]
    )
    assert notes == [
        "auto chose without tpu (no fp32)",
        "auto left ort-cpu/int8 out for llm, embed: broken",
    ]


def llm_choice(*measured, left_out=None):
    best = min(measured, key=lambda m: m.ms)
    return Choice("llm", best.engine, "work", measured, left_out or {})


def test_among_precisions_the_fastest_form_wins_and_all_are_told():
    choices = [
        llm_choice(measurement("ort-cpu/fp32", 9.0)),
        llm_choice(measurement("ort-cpu/int8", 5.0), left_out={"openvino/int8": "broken"}),
    ]
    found = fastest_of("llm", choices)
    assert (found.engine, found.decode) == ("ort-cpu/int8", None)
    assert [m.engine for m in found.measured] == ["ort-cpu/fp32", "ort-cpu/int8"]
    assert found.left_out == {"openvino/int8": "broken"}
    with pytest.raises(EngineError, match="openvino/int8: broken"):
        fastest_of("llm", [Choice("llm", "", "work", (), {"openvino/int8": "broken"})])


@pytest.mark.parametrize(
    ("one", "other", "engine", "decode"),
    [
        ((50, 160), (90, 70), "openvino/int8", "ort-cpu/int4-llm"),  # 120 against 160
        ((85, 160), (90, 70), "ort-cpu/int4-llm", None),  # 155 against 160: not worth two copies
        ((50, 60), (90, 70), "openvino/int8", None),
    ],
)
def test_the_llm_is_split_where_that_is_worth_two_copies(one, other, engine, decode):
    forms = [measurement("openvino/int8", *one), measurement("ort-cpu/int4-llm", *other)]
    found = fastest_of("llm", [llm_choice(*forms)])
    assert (found.engine, found.decode) == (engine, decode)


def test_a_cache_on_a_device_does_not_change_hands():
    forms = [measurement("tensorrt/int8", 50, 160), measurement("ort-cpu/int4-llm", 90, 70)]
    assert fastest_of("llm", [llm_choice(*forms)]).decode is None


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch):
    """Graphs that were measured, in order; the measurement itself is a made-up one."""
    graphs = []

    def fake(graph, candidates, calls, tolerance, layers):
        graphs.append(graph)
        assert calls
        assert {c.graph for c in calls} == {graph}
        engine = [*candidates][len(graphs) % 2]
        best = auto.Measured(engine, "fake", 1.5, 1e-6)
        return auto.Choice(graph, engine, "work", (best,), {"tpu": "there is none"})

    monkeypatch.setattr(auto, "choose", fake)
    return graphs


def opened(bundle, threads=None, **settings):
    return AutoEngine(Bundle.open(bundle), "fp32", threads, **settings)


def test_a_second_pipeline_measures_nothing_and_chooses_the_same(bundle, cache, measured):
    first = opened(bundle)
    assert measured == [*CHAIN]
    again = opened(bundle)
    assert measured == [*CHAIN]
    assert again.choices == first.choices
    assert again.notes == first.notes == ["auto chose without tpu (there is none)"]


def test_anew_measures_what_is_remembered(bundle, cache, measured):
    opened(bundle)
    opened(bundle, anew=True)
    assert measured == [*CHAIN] * 2


@pytest.mark.parametrize(
    "what", ["threads", "version", "cpu", "quota", "candidates", "graph", "build"]
)
def test_whatever_the_choice_depends_on_makes_it_be_measured_anew(
    bundle, cache, measured, monkeypatch, tmp_path, what
):
    opened(bundle)
    threads, settings, graphs = None, {}, [*CHAIN]
    if what == "threads":
        threads = 1
    elif what == "version":
        monkeypatch.setattr(remembered, "versions", lambda: {"openvino": "1999.1"})
    elif what in ("cpu", "quota"):
        found = remembered.machine()
        monkeypatch.setattr(remembered, "machine", lambda: found | {what: "another"})
    elif what == "build":  # engines that were built later compete, too
        bundle = shutil.copytree(bundle, tmp_path / "built")
        manifest = json.loads((bundle / "bundle.json").read_text())
        manifest["files"]["engines/orin/fp16/build.json"] = "0" * 64
        (bundle / "bundle.json").write_text(json.dumps(manifest))
    elif what == "candidates":
        settings["candidates"] = ("openvino", "ort-cpu")
    else:
        bundle = shutil.copytree(bundle, tmp_path / "changed")
        manifest = json.loads((bundle / "bundle.json").read_text())
        path = bundle / "onnx/fp32/embed.onnx"
        path.write_bytes(path.read_bytes() + b"\x9a\x01\x00")  # an unknown, empty field
        manifest["files"]["onnx/fp32/embed.onnx"] = remembered_sha(path)
        (bundle / "bundle.json").write_text(json.dumps(manifest))
        graphs = ["embed"]
    opened(bundle, threads, **settings)
    assert measured == [*CHAIN, *graphs]


def test_a_gpus_driver_power_mode_and_libraries_are_among_the_conditions(bundle, monkeypatch):
    monkeypatch.setattr(remembered, "version", lambda name: "1.0")
    found = remembered.conditions(Bundle.open(bundle), "llm", ["fp32"], ["tensorrt"], None)
    assert {
        "tensorrt", "tensorrt-rtx-cu13", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc",
        "nvidia-cuda-nvrtc-cu12",
    } <= found["versions"].keys()  # fmt: skip
    assert {"driver", "power_mode", "gpus"} <= found["machine"].keys()


def remembered_sha(path):
    from geomag_edge.manifest import sha256_of

    return sha256_of(path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "nonsense", "{}", '{"format": 1}', '{"format": 1, "graph": "llm", "engine": "x"}'],
)
def test_a_damaged_memory_is_measured_anew(bundle, cache, measured, content):
    opened(bundle)
    for path in remembered.cache_folder().glob("llm-*.json"):
        path.write_text(content)
    opened(bundle)
    assert measured == [*CHAIN, "llm"]


def test_a_cache_that_cannot_be_written_is_told_and_stops_nothing(bundle, cache, measured):
    cache.write_text("a file where the folder should be")
    engine = opened(bundle)
    assert [*engine.choices] == [*CHAIN]
    assert any("not remembered: cannot write" in note for note in engine.notes)


def test_a_damaged_bundle_is_no_candidates_fault(bundle, cache, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "onnx/fp32/encoder.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"encoder\.onnx is not what was exported"):
        opened(copy)


def test_a_precision_that_the_bundle_lacks_is_named(bundle, cache):
    with pytest.raises(BundleError, match="no fp16 graphs: it has fp32"):
        AutoEngine(Bundle.open(bundle), "fp16", None)


@pytest.fixture
def quick(monkeypatch):
    """One round of each timing: these tests look at answers, not at times."""
    monkeypatch.setattr(choice, "ROUNDS", (1, 1))


def test_auto_answers_as_the_embedded_engine_and_names_what_ran_each_graph(
    bundle, cache, quick, picture
):
    asked = ("segment the ships", "pixel", 6, "[SEG]")
    with Pipeline.load(bundle) as pipe:
        expected = pipe(picture, *asked)
    with Pipeline.load(bundle, engine="auto") as pipe:
        result = pipe(picture, *asked)
        choices = pipe.chain.engine.choices
    assert result.token_ids == expected.token_ids
    assert result.engine == "auto"
    assert {*result.providers} == {*CHAIN}
    for graph, provider in result.providers.items():
        assert provider.startswith(f"{choices[graph].engine}: ")


def test_graphs_of_different_engines_make_one_chain(bundle, cache, monkeypatch, picture):
    """Alternating engines, so that every value crosses from one to the other."""
    pytest.importorskip("openvino")
    pair = ("ort-cpu", "openvino")

    def alternate(graph, candidates, calls, tolerance, layers):
        engine = pair[CHAIN.index(graph) % 2]
        return auto.Choice(graph, engine, "work", (), {})

    monkeypatch.setattr(auto, "choose", alternate)
    with Pipeline.load(bundle) as pipe:
        expected = pipe(picture, "ships", "region", 6).token_ids
    with Pipeline.load(bundle, engine="auto") as pipe:
        result = pipe(picture, "ships", "region", 6)
    assert result.token_ids == expected
    assert {p.partition(":")[0] for p in result.providers.values()} == {*pair}


def test_an_engine_that_is_not_installed_is_told_with_every_answer(
    bundle, cache, quick, picture, monkeypatch
):
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with Pipeline.load(bundle, engine="auto") as pipe:
        result = pipe(picture, "ships", "image", 1)
    assert any(note.startswith("auto chose without openvino (") for note in result.notes)
    assert any('pip install "geomag-edge[openvino]"' in note for note in result.notes)


def test_doctor_shows_what_is_remembered(bundle, cache, measured, capsys):
    engine = opened(bundle)
    assert main(["doctor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["auto"]
    assert {r["graph"]: r["engine"] for r in shown} == {
        graph: choice.engine for graph, choice in engine.choices.items()
    }
    record = next(r for r in shown if r["graph"] == "llm")
    known = dataclasses.asdict(engine.choices["llm"].measured[0])
    assert record["measured"] == [json.loads(json.dumps(known))]
    assert record["under"]["graph_sha256"]["onnx/fp32/llm.onnx"]
    assert main(["doctor"]) == 0
    assert "engine auto remembers 6 measurements" in capsys.readouterr().out


def test_run_with_auto_measures_once_and_anew_when_asked(bundle, cache, measured, capsys, tmp_path):
    from PIL import Image

    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "a.png")
    words = ["run", str(bundle), str(tmp_path / "a.png"), "ships", "--engine", "auto", "--json",
             "--max-new-tokens", "1"]  # fmt: skip
    assert main(words) == 0
    assert main(words) == 0
    assert measured == [*CHAIN]
    assert main([*words, "--remeasure"]) == 0
    assert measured == [*CHAIN] * 2
    answer = json.loads("{" + capsys.readouterr().out.rpartition("\n{")[2])
    assert answer["engine"] == "auto"


def test_remeasure_without_auto_is_a_usage_error(bundle, capsys):
    assert main(["verify", str(bundle), "--remeasure"]) == 2
    assert "--remeasure is for --engine auto" in capsys.readouterr().err


def test_precision_auto_is_for_engine_auto(bundle):
    with pytest.raises(EngineError, match="precision auto is for engine auto"):
        Pipeline.load(bundle, "ort-cpu", "auto")


def test_with_precision_auto_every_precision_competes_and_the_llm_may_be_split(
    bundle, cache, monkeypatch, picture
):
    """The prompt in OpenVINO, the answer's tokens in ONNX Runtime: the answer is the plain one."""
    asked = []

    def fake(graph, candidates, calls, tolerance, layers):
        asked.extend(candidates)
        measured = tuple(
            measurement(form, *((1.0, 9.0) if form.startswith("openvino") else (9.0, 1.0)))
            for form in candidates
        )
        return Choice(graph, measured[0].engine, "work", measured, {})

    monkeypatch.setattr(auto, "choose", fake)
    settings = {"candidates": ("ort-cpu", "openvino")}
    engine = AutoEngine(Bundle.open(bundle), "auto", 1, **settings)
    assert set(asked) == {"ort-cpu/fp32", "openvino/fp32", "openvino/bf16"}
    choice = engine.choices["llm"]
    assert (choice.engine.partition("/")[0], choice.decode) == ("openvino", "ort-cpu/fp32")
    prompt, prefix = "where are the ships?", "[SEG]"
    with (
        Pipeline.load(bundle, AutoEngine(Bundle.open(bundle), "auto", 1, **settings)) as mixed,
        Pipeline.load(bundle, "ort-cpu", threads=1) as plain,
    ):
        got, expected = (p(picture, prompt, "4", 4, prefix) for p in (mixed, plain))
    assert got.precision == "auto"
    assert "; decode ort-cpu/fp32: CPUExecutionProvider" in got.providers["llm"]
    assert got.token_ids == expected.token_ids
    np.testing.assert_array_equal(got.crop_boxes, expected.crop_boxes)
    assert len(got.masks) == len(expected.masks) >= 1
    engine.close()


@pytest.fixture
def three_precisions(bundle, tmp_path):
    """(answers that each lost) -> a trained bundle: in int8 the encoder is another, in int4-llm the
    LLM, all else is as in fp32."""

    def make(lost):
        root = shutil.copytree(bundle, tmp_path / "three")
        manifest = json.loads((root / "bundle.json").read_text())
        manifest["untrained"] = []
        for precision, graph in (("int8", "encoder"), ("int4-llm", "llm")):
            name = f"onnx/{precision}/{graph}.onnx"
            (root / name).parent.mkdir()
            text = (root / f"onnx/fp32/{graph}.onnx").read_bytes() + b"\x9a\x01\x00"
            (root / name).write_bytes(text)
            shutil.copy(root / f"onnx/fp32/{graph}.onnx.data", root / f"{name}.data")
            for file in (name, f"{name}.data"):
                manifest["files"][file] = remembered_sha(root / file)
            records = json.loads(json.dumps(manifest["graphs"]["fp32"]))
            records[graph] |= {"file": name, "data": [f"{name}.data"]}
            manifest["graphs"][precision] = records
            manifest["accuracy"][precision] = {
                "gate": {
                    "ort-cpu": {
                        "ok": True, "agreement": 1 - lost / 288, "masks": {"points": 0.1},
                        "boxes": None, "judged": ["mIoU"],
                        "gate": {"min_agreement": 0.99, "max_miou_drop": 0.5},
                        "instruction_sets": [], "exact_integers": True,
                    }
                }
            }  # fmt: skip
        (root / "bundle.json").write_text(json.dumps(manifest))
        return root

    return make


@pytest.mark.parametrize("lost", [1, 2])
def test_precisions_are_mixed_only_where_their_losses_leave_room(
    three_precisions, cache, monkeypatch, lost
):
    pace = {("encoder", "int8"): 1.0, ("llm", "int4-llm"): 4.0}

    def fake(graph, candidates, calls, tolerance, layers):
        measured = tuple(
            measurement(form, pace.get((graph, form.partition("/")[2]), 9.0)) for form in candidates
        )
        return Choice(graph, measured[0].engine, "work", measured, {})

    monkeypatch.setattr(auto, "choose", fake)
    bundle = Bundle.open(three_precisions(lost))
    engine = AutoEngine(bundle, "auto", 1, candidates=("ort-cpu",))
    chosen = {graph: choice.engine for graph, choice in engine.choices.items()}
    assert chosen["encoder"] == "ort-cpu/int8"  # gains 8 ms where int4-llm gains 5
    assert chosen["mask_head"] == "ort-cpu/fp32"
    if lost == 1:
        assert chosen["llm"] == "ort-cpu/int4-llm"
        assert engine.notes == []
    else:
        assert chosen["llm"] == "ort-cpu/fp32"
        [note] = engine.notes
        assert note.startswith("auto passed int4-llm over for llm, where it is faster")
    again = AutoEngine(bundle, "auto", 1, candidates=("ort-cpu",))  # remembered, and weighed again
    assert {graph: choice.engine for graph, choice in again.choices.items()} == chosen
    assert again.notes == engine.notes


def test_bfloat16_which_no_gate_saw_is_left_out_of_a_trained_models_mixture(
    three_precisions, cache, monkeypatch
):
    def fake(graph, candidates, calls, tolerance, layers):
        measured = tuple(measurement(f, 1.0 if "bf16" in f else 5.0) for f in candidates)
        return Choice(graph, measured[0].engine, "work", measured, {})

    monkeypatch.setattr(auto, "choose", fake)
    bundle = Bundle.open(three_precisions(1))
    engine = AutoEngine(bundle, "auto", 1, candidates=("ort-cpu", "openvino"))
    assert not any("bf16" in choice.engine for choice in engine.choices.values())
    assert any(note.startswith("auto passed bf16 over") for note in engine.notes)


@pytest.mark.parametrize("own_file", [False, True])
def test_a_file_that_no_gate_asked_is_left_out_though_its_precision_passed(
    three_precisions, cache, monkeypatch, own_file
):
    """int8 was judged in ONNX Runtime; OpenVINO may run the same file, but none of its own."""

    def fake(graph, candidates, calls, tolerance, layers):
        measured = tuple(measurement(f, 1.0 if f == "openvino/int8" else 9.0) for f in candidates)
        return Choice(graph, measured[0].engine, "work", measured, {})

    monkeypatch.setattr(auto, "choose", fake)
    root = three_precisions(1)
    if own_file:
        manifest = json.loads((root / "bundle.json").read_text())
        record = manifest["graphs"]["int8"]["encoder"]
        record["forms"] = {"onnxruntime": manifest["graphs"]["fp32"]["encoder"]}
        (root / "bundle.json").write_text(json.dumps(manifest))
    engine = AutoEngine(Bundle.open(root), "auto", 1, candidates=("ort-cpu", "openvino"))
    taken = engine.choices["encoder"].engine
    assert taken == ("ort-cpu/fp32" if own_file else "openvino/int8")


@pytest.mark.parametrize(
    "change",
    [{"measured": []}, {"measured": None}, {"engine": 7}, {"decode": 3.5}, {"left_out": []},
     {"measured": [{"engine": "ort-cpu", "provider": "x", "ms": None, "relative": 0.0}]}],
)  # fmt: skip
def test_a_memory_of_odd_kinds_is_measured_anew(bundle, cache, measured, change):
    opened(bundle)
    for path in cache.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    opened(bundle)
    assert measured == [*CHAIN] * 2
