"""Writes tensorrt.json and cuda.json from wheels: `python collect.py DIR`.

DIR holds wheels as `pip download --no-deps` leaves them: `tensorrt-cu12-bindings`, one of each
line, `tensorrt-rtx-cu13-bindings`, `cuda-core`, and `cuda-bindings` 12 and 13. No GPU, driver or
TensorRT is needed: TensorRT's bindings are imported over empty libraries that gcc makes, and say
their names and signatures themselves. Every wheel is read in a process of its own.
"""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path

HERE = Path(__file__).parent

CLASSES = (
    "Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer",
    "IAttention", "IAttentionOutputLayer", "ILogger", "INetworkDefinition", "IOptimizationProfile",
    "IProgressMonitor", "IRuntimeCache", "IRuntimeConfig", "IStreamReader", "IStreamReaderV2",
    "ITensor", "ITimingCache", "OnnxParser", "ParserError", "Runtime",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DataType",
    "DynamicShapesKernelSpecializationStrategy", "ExecutionContextAllocationStrategy", "LayerType",
    "MemoryPoolType", "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TensorIOMode",
    "TensorLocation",
)  # fmt: skip
CORE = (
    "Buffer", "Device", "DeviceProperties", "Event", "EventOptions", "Kernel", "LaunchConfig",
    "ObjectCode", "Program", "ProgramOptions", "Stream", "StreamOptions",
)  # fmt: skip
DRIVER = re.compile(r"cu(Ctx|Device|Driver|Event|Func|Graph|Launch|Mem|Module|Pointer|Stream)")
DRIVER_ENUMS = (
    "CUdevice_attribute", "CUmemPool_attribute", "CUstreamCaptureMode", "CUstreamCaptureStatus",
)  # fmt: skip

UNDEFINED = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry",
    "initLibNvInferPlugins",
)  # fmt: skip
"""What the bindings look for in TensorRT's libraries when they are imported."""


def parameters(text):
    """`f(self: X, a: int = 3, *, b: str) -> Y` -> "a=, *, b"; None where it is no signature."""
    start = text.find("(")
    if start < 0:
        return None
    depth, parts, at = 0, [""], start
    while at < len(text):
        at += 1
        letter = text[at : at + 1]
        if letter in "([{<":
            depth += 1
        elif letter and letter in ")]}>":
            if depth == 0:
                break
            depth -= 1
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    names = []
    for part in parts:
        name = re.split(r"[:=]", part.strip())[0].strip().split(" ")[-1]
        has_default = re.search(r"=", re.sub(r"<[^>]*>|\[[^]]*\]", "", part))
        if name and name != "self":
            names.append(name + ("=" if has_default else ""))
    return ", ".join(names)


def spelled(value):
    """The signatures of something callable, "property" or "member"."""
    if isinstance(value, property) or inspect.isdatadescriptor(value):
        return ["property"]
    if not callable(value):
        return ["member"]
    doc = (value.__doc__ or "").strip()
    if "Overloaded function." in doc:
        lines = re.findall(r"^\d+\. (\w+\(.*)$", doc, re.M)
    else:
        lines = [doc.split("\n")[0]] if re.match(r"\w+\(", doc) else []
    if lines:
        return sorted({parameters(line) for line in lines})
    try:
        return [parameters(f"f{inspect.signature(value)}")]
    except (TypeError, ValueError):
        return ["*args"]


def of_class(cls, enum=False):
    """Public names of a class, and how it is made."""
    names = [n for n in dir(cls) if not n.startswith("_")]
    if enum:
        return {n: ["member"] for n in names if n.isupper() or n[0].isupper()}
    found = {n: spelled(inspect.getattr_static(cls, n)) for n in names}
    made = spelled(cls.__init__)
    if made == ["*args"] or not re.match(r"__init__\(", (cls.__init__.__doc__ or "").strip()):
        made = spelled(cls)
    return found | {"__init__": made}


def tensorrt(module):
    """class -> name -> signatures."""
    table = {c: of_class(getattr(module, c)) for c in CLASSES if hasattr(module, c)}
    return table | {e: of_class(getattr(module, e), True) for e in ENUMS if hasattr(module, e)}


def cuda():
    """The same of cuda.core, cuda.core.utils, and cuda.bindings' driver and nvrtc."""
    from cuda import core
    from cuda.bindings import driver, nvrtc
    from cuda.core.utils import StridedMemoryView

    table = {c: of_class(getattr(core, c)) for c in CORE if hasattr(core, c)}
    table["StridedMemoryView"] = of_class(StridedMemoryView)
    table["core"] = {"launch": spelled(core.launch)}
    table["nvrtc"] = {n: spelled(getattr(nvrtc, n)) for n in dir(nvrtc) if n.startswith("nvrtc")}
    table["driver"] = {n: spelled(getattr(driver, n)) for n in dir(driver) if DRIVER.match(n)}
    table["driver"] |= {n: ["member"] for n in dir(driver) if n.startswith("CU_MEMHOSTALLOC")}
    return table | {e: of_class(getattr(driver, e), True) for e in DRIVER_ENUMS}


def read(what, folder):
    """In a process of its own: prints one wheel's table."""
    if what == "cuda":
        sys.path.insert(0, folder)
        return cuda()
    [library] = Path(folder).glob(f"{what}_bindings/{what}.so")
    package = types.ModuleType(f"{what}_bindings")
    sys.modules[package.__name__] = package
    spec = importlib.util.spec_from_file_location(f"{what}_bindings.{what}", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tensorrt(module)


def empty_libraries(folder, binding):
    """TensorRT's libraries, with nothing in them."""
    needed = subprocess.run(
        ["readelf", "-d", str(binding)], capture_output=True, text=True, check=True
    ).stdout
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in UNDEFINED))
    for name in re.findall(r"\[(lib(?:nv|tensorrt)\S+)\]", needed):
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run(["gcc", *flags, str(source)], check=True)


def main(wheels):
    """Reads every wheel and writes both tables."""
    tables = {"tensorrt": {}, "cuda": {}}
    sources = {"tensorrt": {}, "cuda": {}}
    core = next(wheels.glob("cuda_core-*.whl"))
    for wheel in sorted([*wheels.glob("tensorrt_*bindings-*.whl"), *wheels.glob("cuda_b*.whl")]):
        package, version = wheel.name.split("-")[:2]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder)
            if package == "cuda_bindings":
                kind, what, line = "cuda", "cuda", version.split(".")[0]
                with zipfile.ZipFile(core) as packed:
                    packed.extractall(folder)
            else:
                kind, what = "tensorrt", "tensorrt_rtx" if "rtx" in package else "tensorrt"
                line = ".".join(version.split(".")[:2])
                line = f"rtx {line}" if "rtx" in package else line
                empty_libraries(folder, next(folder.glob("*_bindings/*.so")))
            done = subprocess.run(
                [sys.executable, __file__, "--one", what, name], capture_output=True, text=True,
                check=False, env={"LD_LIBRARY_PATH": name, "PATH": "/usr/bin"},
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{wheel.name}: {done.stderr}")
            tables[kind][line] = json.loads(done.stdout)
            sources[kind][line] = f"{package} {version}, introspected" + (
                f", with {'-'.join(core.name.split('-')[:2])}" if kind == "cuda" else ""
            )
    for kind, by_line in tables.items():
        (HERE / f"{kind}.json").write_text(_text(sources[kind], by_line), encoding="utf-8")


def _number(line):
    return [line.startswith("rtx"), *map(int, line.removeprefix("rtx ").split("."))]


def _text(sources, by_line):
    """JSON, a name a line: signature -> the lines that have it."""
    lines = sorted(by_line, key=_number)
    parts = []
    for cls in sorted({c for table in by_line.values() for c in table}):
        rows = []
        names = {n for table in by_line.values() for n in table.get(cls, {})}
        for name in sorted(names):
            found = {}
            for line in lines:
                if signatures := by_line[line].get(cls, {}).get(name):
                    found.setdefault(" | ".join(signatures), []).append(line)
            short = {k: "all" if v == lines else ", ".join(v) for k, v in found.items()}
            rows.append(f"   {json.dumps(name)}: {json.dumps(short)}")
        parts.append(f"  {json.dumps(cls)}: {{\n" + ",\n".join(rows) + "\n  }")
    head = json.dumps({line: sources[line] for line in lines}, indent=2).replace("\n", "\n ")
    return f'{{\n "lines": {head},\n "names": {{\n' + ",\n".join(parts) + "\n }\n}\n"


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(read(*sys.argv[2:])))
    else:
        main(Path(sys.argv[1]))
