"""Every name of TensorRT and cuda-python that the code uses is there, with that signature, in every
version that a target takes. `apis/*.json` hold the names by version (`apis/collect.py` made them
from the public wheels); the names in use are found by walking the code.
"""

import ast
import enum
import inspect
import json
import re
from pathlib import Path

import pytest

import geomag_edge.cpp_ext
import geomag_edge.runtime.engines
from geomag_edge.targets import load_catalog
from tests.runtime import tensorrt_stand_in as runtime_stand_in
from tests.runtime.engines import conftest as builder_stand_in

APIS = Path(__file__).parent / "apis"
ENGINES = Path(geomag_edge.runtime.engines.__path__[0])
CPP_EXT = Path(geomag_edge.cpp_ext.__file__).parent

FILES = {
    "tensorrt": sorted((ENGINES / "tensorrt").glob("*.py")),
    "cuda": [
        ENGINES / "cuda/driver.py", ENGINES / "cuda/owned.py",
        CPP_EXT / "cuda.py", CPP_EXT / "nvrtc.py",
    ],
}  # fmt: skip

MODULE = "the module"
RECEIVERS = {
    "tensorrt": {
        "module": MODULE, "flavour.module": MODULE, "owner.flavour.module": MODULE,
        "self.flavour.module": MODULE,
        "self.builder": "Builder", "network.builder": "Builder",
        "config": "IBuilderConfig", "self._config": "IRuntimeConfig",
        "config.get_timing_cache()": "ITimingCache", "self._cache": {"contexts": "IRuntimeCache"},
        "self.network": "INetworkDefinition", "network": {"network": "INetworkDefinition"},
        "network.network": "INetworkDefinition",
        "self._parser": "OnnxParser", "error": "ParserError",
        "layer": "ILayer", "layer.attention": "IAttention",
        "made": {"build": "IOptimizationProfile"},
        "verbosity": "ProfilingVerbosity", "kinds": "DynamicShapesKernelSpecializationStrategy",
        "self._strategy": "ExecutionContextAllocationStrategy",
        "runtime": "Runtime", "self.runtime": "Runtime", "owner.runtime": "Runtime",
        "engine": "ICudaEngine", "self._engine": "ICudaEngine",
        "self._context": "IExecutionContext",
    },
    "cuda": {
        "core": MODULE, "self._core": MODULE, "driver": "driver", "self._driver": "driver",
        "nvrtc": "nvrtc", "device": "Device", "self._device": "Device",
        "self._stream": "Stream", "self._recording": "Stream", "queue": "Stream",
        "buffer": "Buffer", "copied.buffer": "Buffer", "self._buffer": "Buffer",
        "program": {"driver": "Program"}, "view": "StridedMemoryView",
    },
}  # fmt: skip
"""What an expression of our code is, in one file alone where a dict says so."""

OURS = {
    "owner",
    "self",
    "self._device",
    "driver",
    "self._device.driver",
    "record",
    "plan",
    "limits",
}
"""Objects of our own with methods that have a name of TensorRT's."""

BECOMES = {"ILayer": "IAttentionOutputLayer"}
"""A layer is cast to its own class before that class's names are used."""

GUARDED = {
    ("IBuilderConfig", "num_compute_capabilities"): "ComputeCapability",
    ("IBuilderConfig", "set_compute_capability"): "ComputeCapability",
    ("ILayer", "attention"): "IAttentionOutputLayer",
    ("IRuntimeConfig", "set_execution_context_allocation_strategy"): "IRuntimeCache",
    ("IRuntimeConfig", "set_runtime_cache"): "IRuntimeCache",
    ("IRuntimeConfig", "create_runtime_cache"): "IRuntimeCache",
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"): "IRuntimeCache",
    ("DynamicShapesKernelSpecializationStrategy", "NONE"): "IRuntimeCache",
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"): "IRuntimeCache",
    ("IRuntimeCache", "deserialize"): "IRuntimeCache",
    ("IRuntimeCache", "serialize"): "IRuntimeCache",
    ("ICudaEngine", "create_runtime_config"): "IRuntimeCache",
    ("MODULE", "DynamicShapesKernelSpecializationStrategy"): "IRuntimeCache",
}
"""Names used only where a class is: then every version with the class has them."""


class Table:
    """One of the JSON files."""

    def __init__(self, kind):
        data = json.loads((APIS / f"{kind}.json").read_text())
        self.lines, self._names = list(data["lines"]), data["names"]
        self.members = {n for table in self._names.values() for n in table}

    def classes(self, line):
        return {c for c in self._names if any(self.signatures(c, n, line) for n in self._names[c])}

    def signatures(self, cls, name, line):
        """All overloads in one version, [] where it has no such name."""
        for spelled, lines in self._names.get(cls, {}).get(name, {}).items():
            if lines == "all" or line in lines.split(", "):
                return spelled.split(" | ")
        return []

    def lines_of(self, cls, name):
        return [line for line in self.lines if self.signatures(cls, name, line)]


TABLES = {kind: Table(kind) for kind in FILES}


class Use:
    """A name that the code uses; `call` where it is called, `optional` where it asks first."""

    def __init__(self, path, node, cls, name, call=None, optional=False):
        self.where, self.cls, self.name = f"{path.name}:{node.lineno}", cls, name
        self.call, self.optional = call, optional

    def __repr__(self):
        return f"{self.where} {self.cls}.{self.name}"


def class_of(kind, path, node):
    """What an expression is, by `RECEIVERS`; classes of the module by their name."""
    text = ast.unparse(node)
    known = RECEIVERS[kind].get(text)
    if isinstance(known, dict):
        known = known.get(path.stem)
    inside = known is None and isinstance(node, ast.Attribute)
    if inside and class_of(kind, path, node.value) in (MODULE, "driver"):
        return node.attr
    return known


def uses_in(kind, path):
    """Every use of a name of the other side in one file."""
    tree = ast.parse(path.read_text())
    calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            cls = class_of(kind, path, node.value)
            if cls and not node.attr.startswith("__"):
                found.append(Use(path, node, cls, node.attr, calls.get(id(node))))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            cls, asked = class_of(kind, path, node.args[0]), node.args[1]
            if cls and isinstance(asked, ast.Constant):
                sure = ast.unparse(node.func) == "getattr" and len(node.args) == 2
                found.append(Use(path, node, cls, asked.value, optional=not sure))
    asked = {(u.cls, u.name) for u in found if u.optional}
    for use in found:
        use.optional |= (use.cls, use.name) in asked
    return found


USES = {
    kind: [use for path in paths for use in uses_in(kind, path)] for kind, paths in FILES.items()
}


def lines_of_target(target):
    """The lines of the table that a target's range of versions holds."""
    lines = TABLES["tensorrt"].lines
    if target.flavour == "tensorrt_rtx":
        lines = [x for x in lines if x.startswith("rtx") and target.takes_version(x[4:])]
        return lines
    return [x for x in lines if not x.startswith("rtx") and target.takes_version(x)]


TARGETS = [t for t in load_catalog().targets.values() if t.flavour is not None]


def test_every_target_has_a_line_in_the_table():
    for target in TARGETS:
        assert lines_of_target(target), target.name


def missing(kind, use, line):
    """Whether a version lacks a name that is used without asking."""
    table = TABLES[kind]
    if use.cls == MODULE:  # functions of it stand beside its classes
        is_function = bool(table.signatures("core", use.name, line))
        return not is_function and use.name not in table.classes(line) | {"__version__"}
    if use.cls == "driver" and use.name in table.classes(line):
        return False
    return not any(table.signatures(c, use.name, line) for c in (use.cls, BECOMES.get(use.cls)))


def guarded(use, line):
    """Whether the name is used only where a class is that this version lacks."""
    guard = GUARDED.get(("MODULE" if use.cls == MODULE else use.cls, use.name))
    return guard is not None and guard not in TABLES["tensorrt"].classes(line)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_every_name_is_in_every_version_that_a_target_takes(target):
    for line in lines_of_target(target):
        for use in USES["tensorrt"]:
            if use.optional or guarded(use, line):
                continue
            assert not missing("tensorrt", use, line), f"{use} is not in {line}"


@pytest.mark.parametrize("kind", FILES)
def test_every_name_is_in_some_version(kind):
    table = TABLES[kind]
    for use in USES[kind]:
        assert not all(missing(kind, use, line) for line in table.lines), use


@pytest.mark.parametrize("line", TABLES["cuda"].lines)
def test_every_name_of_cuda_is_in_the_bindings_of_both_majors(line):
    for use in USES["cuda"]:
        assert not missing("cuda", use, line), f"{use} is not in cuda-bindings {line}"


def fits(call, signature):
    """Whether a call's arguments are those of a signature such as "a, b=, *, c"."""
    if any(isinstance(a, ast.Starred) for a in call.args) or any(
        k.arg is None for k in call.keywords
    ):
        return True  # as many as there are when it runs
    names = [n for n in signature.split(", ") if n]
    rest = any(n.startswith("*") and n != "*" for n in names)
    names = [n for n in names if not n.startswith("*") or n == "*"]
    places = names[: names.index("*")] if "*" in names else names
    names = [n for n in names if n != "*"]
    given = {n.rstrip("=") for n in places[: len(call.args)]} | {k.arg for k in call.keywords}
    needed = {n for n in names if not n.endswith("=")}
    known = {n.rstrip("=") for n in names}
    return (rest or len(call.args) <= len(places)) and needed <= given and given <= known


@pytest.mark.parametrize("kind", FILES)
def test_every_call_fits_a_signature_of_every_version_that_has_the_name(kind):
    table = TABLES[kind]
    for use in USES[kind]:
        if use.call is None:
            continue
        cls, name = (use.name, "__init__") if use.cls == MODULE else (use.cls, use.name)
        if (MODULE, use.name) == (use.cls, "launch"):
            cls, name = "core", "launch"
        for line in table.lines_of(cls, name):
            signatures = table.signatures(cls, name, line)
            assert any(fits(use.call, s) for s in signatures), f"{use}: {line} has {signatures}"


def test_constants_named_in_words_are_members_of_their_enum():
    """Flags that are chosen by their name: `getattr(module.BuilderFlag, name)`."""
    table, found = TABLES["tensorrt"], set()
    for path in FILES["tensorrt"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"[A-Z]+_[A-Z_]+", str(node.value)):
                found.add(node.value)
    assert {"VERSION_COMPATIBLE", "REQUIRE_USER_ALLOCATION", "STRONGLY_TYPED"} <= found
    environment = {"CUDA_SUCCESS"}
    for name in found - environment:
        assert name in table.members, name


def test_no_call_on_something_unknown_goes_unlooked_at():
    """A method with TensorRT's name on an expression that `RECEIVERS` does not list."""
    table, kind = TABLES["tensorrt"], "tensorrt"
    for path in FILES[kind]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or "_" not in node.attr.strip("_"):
                continue
            if node.attr in table.members and class_of(kind, path, node.value) is None:
                text = ast.unparse(node.value)
                assert text in OURS, f"{path.name}:{node.lineno} {text}.{node.attr}"


def test_the_walk_finds_what_it_should():
    names = {(u.cls, u.name) for u in USES["tensorrt"]}
    assert {
        ("IBuilderConfig", "clear_flag"), ("BuilderFlag", "TF32"), ("MemoryPoolType", "WORKSPACE"),
        ("ICudaEngine", "get_device_memory_size_for_profile_v2"), ("OnnxParser", "parse"),
        ("IExecutionContext", "execute_async_v3"), ("Runtime", "deserialize_cuda_engine"),
        ("IRuntimeConfig", "set_runtime_cache"), (MODULE, "Builder"),
    } <= names  # fmt: skip
    names = {(u.cls, u.name) for u in USES["cuda"]}
    assert {
        ("driver", "cuStreamBeginCapture"), ("Device", "allocate"), ("nvrtc", "nvrtcGetCUBIN"),
        ("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"), (MODULE, "LaunchConfig"),
    } <= names  # fmt: skip


def test_a_name_that_does_not_exist_would_be_found(tmp_path):
    path = tmp_path / "build.py"
    path.write_text("config.set_flags(1)\nconfig.set_flag()\nhasattr(config, 'later')\n")
    unknown, short, asked = sorted(uses_in("tensorrt", path), key=lambda u: u.where)
    assert missing("tensorrt", unknown, "10.3")
    assert not missing("tensorrt", short, "10.3")
    assert not fits(short.call, "flag")
    assert asked.optional
    assert fits(ast.parse("f(1, stream=2)").body[0].value, "size, *, stream")
    assert not fits(ast.parse("f(1, 2)").body[0].value, "size, *, stream")


STAND_INS = {
    runtime_stand_in.Engine: "ICudaEngine",
    runtime_stand_in.Context: "IExecutionContext",
    runtime_stand_in.CapturableContext: "IExecutionContext",
    runtime_stand_in.RuntimeConfig: "IRuntimeConfig",
    runtime_stand_in.RuntimeCache: "IRuntimeCache",
    **{
        getattr(builder_stand_in, name): name
        for name in (
            "IOptimizationProfile", "IBuilderConfig", "ITensor", "INetworkDefinition", "OnnxParser",
            "ICudaEngine", "BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType",
            "LayerType", "ProfilingVerbosity",
        )
    },
    builder_stand_in.RtxFlag: "BuilderFlag",
}  # fmt: skip

OWN = {"shapes_for", "all_shapes"}
"""What the stand-ins do for themselves."""


@pytest.mark.parametrize("stand_in", STAND_INS, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_the_stand_ins_have_no_method_that_tensorrt_lacks(stand_in):
    table, cls, line = TABLES["tensorrt"], STAND_INS[stand_in], "rtx 1.7"
    if issubclass(stand_in, enum.Enum):
        assert set(stand_in.__members__) <= {
            n for n in table.members if table.signatures(cls, n, line)
        }
        return
    for name, value in vars(stand_in).items():
        if name.startswith("_") or name in OWN:
            continue
        signatures = table.signatures(cls, name, line)
        assert signatures, f"{cls} has no {name}"
        if inspect.isfunction(value):
            count = len(inspect.signature(value).parameters) - 1
            assert count in {len([n for n in s.split(", ") if n]) for s in signatures}, (
                name,
                signatures,
            )


def test_the_nested_stand_ins_have_none_either():
    flavour = runtime_stand_in.TensorRtStandIn(None)
    for cls in (
        "TensorIOMode", "TensorLocation", "DataType", "ExecutionContextAllocationStrategy",
        "DynamicShapesKernelSpecializationStrategy",
    ):  # fmt: skip
        for name in getattr(flavour, cls).__members__:
            assert TABLES["tensorrt"].signatures(cls, name, "rtx 1.7"), (cls, name)
    builder = builder_stand_in.BuilderStandIn(lambda config: (None, []))
    for made, cls in (
        (runtime_stand_in.Runtime, "Runtime"),
        (builder.Runtime, "Runtime"),
        (builder.Builder, "Builder"),
    ):
        for name in vars(made):
            if not name.startswith("_"):
                assert TABLES["tensorrt"].signatures(cls, name, "rtx 1.7"), (cls, name)


def test_the_table_says_what_the_installed_tensorrt_says():
    module = pytest.importorskip("tensorrt_rtx")
    line = "rtx " + ".".join(module.__version__.split(".")[:2])
    table = TABLES["tensorrt"]
    if line not in table.lines:
        pytest.skip(f"the table has no {line}: make it again with apis/collect.py")
    for use in USES["tensorrt"]:
        if use.cls == MODULE or use.optional or use.cls in BECOMES:
            continue
        assert hasattr(getattr(module, use.cls), use.name) == bool(
            table.signatures(use.cls, use.name, line)
        ), use
