"""Build script: maps the root folders under `geomag_edge` and builds PscCrop's kernels if it can.

Metadata and tool settings live in pyproject.toml. The CPU kernel is plain C++ behind a C ABI (no
Python headers needed); it is optional: without a compiler the install goes on and
`geomag_edge.cpp_ext` uses its numpy form. The CUDA kernel is compiled where nvcc is, on PATH or in
the toolkit's folder, and by NVRTC at first use elsewhere.
"""

import sys
from glob import glob
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class BuildKernels(build_ext):
    """Builds the extension, then the CUDA fat binary beside it."""

    def run(self):
        """As `build_ext.run`; a CUDA toolkit that fails costs a warning, not the install."""
        super().run()
        root = Path(__file__).parent
        sys.path.insert(0, str(root))  # for the package's errors; the package itself needs numpy
        try:
            spec = spec_from_file_location("cuda_image", root / "cpp_ext" / "cuda_image.py")
            cuda_image = module_from_spec(spec)
            spec.loader.exec_module(cuda_image)
            if cuda_image.find_tool("nvcc") is None:
                return
            folder = Path(self.get_ext_fullpath(self.extensions[0].name)).parent
            folder.mkdir(parents=True, exist_ok=True)
            cuda_image.build_fatbin(folder)
        except Exception as e:
            self.warn(f"the CUDA kernel will be compiled at first use: {e}")
        finally:
            sys.path.pop(0)


STAGES = ["model", "export", "runtime", "calibration", "cpp_ext", "benchmarks"]


def packages():
    """Import names of all folders that hold modules."""
    folders = [
        init.parent for top in ("geomag_edge", *STAGES) for init in Path(top).rglob("__init__.py")
    ]
    names = (".".join(folder.parts) for folder in folders)
    return [n if n.startswith("geomag_edge") else f"geomag_edge.{n}" for n in names]


setup(
    cmdclass={"build_ext": BuildKernels},
    packages=packages(),
    package_dir={
        "geomag_edge": "geomag_edge",
        **{f"geomag_edge.{stage}": stage for stage in STAGES},
    },
    package_data={
        "geomag_edge": ["py.typed"],
        "geomag_edge.targets": ["*.json"],
        "geomag_edge.model": ["checkpoints/nano/*"],
        "geomag_edge.model.train": ["*.json"],
        "geomag_edge.runtime.engines": ["*.onnx"],
        "geomag_edge.cpp_ext": ["csrc/*.h", "csrc/*.cpp", "csrc/*.cu"],
    },
    ext_modules=[
        Extension(
            "geomag_edge.cpp_ext._psc_cpu",
            sources=["cpp_ext/csrc/psc_cpu.cpp"],
            depends=sorted(glob("cpp_ext/csrc/*.h")),
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-fno-math-errno", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
