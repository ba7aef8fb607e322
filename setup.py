"""Build script: maps the root folders under `geomag_edge` and builds the CPU kernel if it can.

Metadata and tool settings live in pyproject.toml. The kernel is plain C++ behind a C ABI (no
Python headers needed); it is optional: without a compiler the install goes on and
`geomag_edge.cpp_ext` uses its numpy form.
"""

from glob import glob

from setuptools import Extension, setup

STAGES = ["model", "export", "runtime", "calibration", "cpp_ext", "benchmarks"]

setup(
    packages=[
        "geomag_edge",
        "geomag_edge.cli",
        "geomag_edge.scenes",
        "geomag_edge.model.train",
        *(f"geomag_edge.{stage}" for stage in STAGES),
    ],
    package_dir={
        "geomag_edge": "geomag_edge",
        **{f"geomag_edge.{stage}": stage for stage in STAGES},
    },
    package_data={
        "geomag_edge.model": ["checkpoints/nano/*"],
        "geomag_edge.model.train": ["*.json"],
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
