"""The house: which room may import which, no circles, and no room or file that grew too large."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("model", "export", "runtime", "calibration", "cpp_ext", "benchmarks")

SPINE = "geomag_edge"
RUNTIME = ("images", "answers", "engines", "planning", "chain", "proof")
RUNTIME_ROOMS = tuple(f"runtime.{room}" for room in RUNTIME)
CALIBRATION_ROOMS = tuple(f"calibration.{room}" for room in ("sets", "evaluation", "quantization"))

# Each room and what it may import beside itself and the spine, as docs/ARCHITECTURE.md draws it.
# The longest name that fits is a module's room; `geomag_edge` alone is the spine.
MAY_IMPORT = {
    SPINE: (),
    "scenes": (),
    "targets": (),
    "cpp_ext": (),
    "model": ("cpp_ext", "scenes"),
    "model.train": ("model", "cpp_ext", "scenes", "runtime.answers"),
    "runtime.images": ("cpp_ext",),
    "runtime.answers": ("runtime.images",),
    "runtime.engines": ("cpp_ext", "targets"),
    "runtime.planning": ("runtime.engines", "targets"),
    "runtime.chain": ("runtime.engines", "runtime.answers", "runtime.images", "runtime.planning"),
    "runtime.proof": ("runtime.chain", "runtime.engines", "runtime.answers", "runtime.images"),
    "calibration.sets": ("runtime.images", "scenes"),
    "calibration.evaluation": ("calibration.sets", *RUNTIME_ROOMS),
    "calibration.quantization": ("calibration.sets", *RUNTIME_ROOMS, "cpp_ext"),
    "calibration.gate": (*CALIBRATION_ROOMS, *RUNTIME_ROOMS),
    "calibration": ("calibration.gate", *CALIBRATION_ROOMS, *RUNTIME_ROOMS),
    "export": ("model", *RUNTIME_ROOMS, "cpp_ext", "scenes", "targets"),
    "benchmarks": (
        "export", "model", "calibration", "calibration.gate", *CALIBRATION_ROOMS, *RUNTIME_ROOMS,
        "scenes", "targets", "cpp_ext",
    ),
}  # fmt: skip
EXCEPT = {"runtime.engines.torch_engine": ("model",)}
"""Modules that may import more than their room: the engine that runs the checkpoint itself."""
ABOVE_ALL = ("cli", "__main__")
FACE = ""
"""The package itself, which opens its public names when they are asked for."""

MOST_FILES = 16
MOST_LINES = 460
MOST_FUNCTION_LINES = 60
"""Of a function without its docstring."""


@cache
def modules():
    """Import name below geomag_edge -> file, of every module that a wheel holds."""
    found = {}
    for top in ("geomag_edge", *STAGES):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[1:] if parts[0] == "geomag_edge" else parts
            name = ".".join(parts[:-1] if parts[-1:] == ("__init__",) else parts)
            found[name] = path
    return found


@cache
def imports():
    """Module -> the modules that it imports, at its top or inside of functions, for types too."""
    found = defaultdict(set)
    for name, path in modules().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for wanted in _names(node, package):
                while wanted and wanted not in modules():
                    wanted = wanted.rpartition(".")[0]
                if wanted and wanted != name:
                    found[name].add(wanted)
    return found


def _names(node, package):
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = ["geomag_edge", *filter(None, package.split("."))]
            above = above[: len(above) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    else:
        names = []
    return [n.removeprefix("geomag_edge.") for n in names if n.startswith("geomag_edge.")]


def room_of(module):
    """The longest room's name that a module's begins with."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((n for n in names if n in MAY_IMPORT), SPINE)


def test_rooms_exist_and_every_folder_has_one():
    assert {room_of(m) for m in modules() if not m.startswith(ABOVE_ALL)} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_arrows_go_down(room):
    wrong = [
        f"{module} imports {other}"
        for module, others in sorted(imports().items())
        if room_of(module) == room and module != FACE and not module.startswith(ABOVE_ALL)
        for other in sorted(others)
        if room_of(other) not in (room, SPINE, *MAY_IMPORT[room])
        and room_of(other) not in EXCEPT.get(module, ())
    ]
    assert wrong == []


def test_nothing_below_imports_a_command():
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        if not module.startswith(ABOVE_ALL)
        for other in others
        if other.startswith(ABOVE_ALL)
    ]
    assert wrong == []


def test_the_table_has_no_circle():
    below = {room: set(others) for room, others in MAY_IMPORT.items()}
    while below:
        lowest = [room for room, others in below.items() if not others & below.keys()]
        assert lowest, f"rooms in a circle: {sorted(below)}"
        for room in lowest:
            del below[room]


def test_no_modules_import_each_other_in_a_circle():
    # A package's own file gathers names of its modules for others; what stands in it is theirs.
    below = {module: set(others) for module, others in imports().items()}
    below = {m: below.get(m, set()) for m in modules()}
    while below:
        free = [module for module, others in below.items() if not others & below.keys()]
        assert free, f"in circles: {sorted(below)}"
        for module in free:
            del below[module]


def test_no_folder_has_too_many_files():
    counts = defaultdict(int)
    for path in modules().values():
        counts[path.parent.relative_to(ROOT).as_posix()] += path.name != "__init__.py"
    assert {folder: n for folder, n in counts.items() if n > MOST_FILES} == {}


def test_no_file_is_too_long():
    lengths = {m: path.read_text().count("\n") for m, path in modules().items()}
    assert {m: n for m, n in lengths.items() if n > MOST_LINES} == {}


def test_every_function_fits_a_screen():
    long = set()
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                if node.end_lineno - first.lineno + 1 > MOST_FUNCTION_LINES:
                    long.add(f"{module}.{node.name}")
    assert long == set()


def test_the_page_on_architecture_names_every_room():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    folders = {path.parent.relative_to(ROOT).as_posix() for path in modules().values()}
    rooms = {room_of(m) for m in modules() if not m.startswith(ABOVE_ALL)} - {SPINE}
    for room in rooms:
        folder = room.replace(".", "/")
        folder = folder if folder in folders else f"geomag_edge/{folder}"
        assert f"`{folder}`" in page or room == "calibration", folder


def test_files_that_the_page_on_architecture_names_exist():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9.]+)`", page):
        assert (
            (ROOT / name).exists()
            or (ROOT / "geomag_edge" / name).exists()
            or (name.startswith(("images/", "quantization/")) and name.count("/") == 1)
        ), name
