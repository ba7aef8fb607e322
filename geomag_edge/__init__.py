"""geomag-edge: takes a GeoMag checkpoint to where the images are.

>>> from geomag_edge import Pipeline
>>> pipe = Pipeline.load("bundle", engine="ort-cpu")
>>> answer = pipe("scene.tif", "segment the ships near the pier")
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from geomag_edge.version import VERSION

# Nothing phones home, so this comes before anything imports the engines. onnxruntime from 1.32 on
# writes a device id into the user's cache and reports to its maker's host, unless told so before it
# is imported. `import openvino` sends an event and writes a client id through openvino_telemetry;
# where that is not installed it does without, so it is not installed here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = VERSION
__all__ = [
    "GeoMagError", "Mask", "Pipeline", "Result", "SceneSession", "TokenBudget", "__version__",
]  # fmt: skip

if TYPE_CHECKING:
    from geomag_edge.budgets import TokenBudget
    from geomag_edge.errors import GeoMagError
    from geomag_edge.runtime.answers.masks import Mask
    from geomag_edge.runtime.chain.pipeline import Pipeline
    from geomag_edge.runtime.chain.result import Result
    from geomag_edge.runtime.chain.scene_session import SceneSession

_HOMES = {
    "GeoMagError": "errors", "Mask": "runtime.answers.masks",
    "Pipeline": "runtime.chain.pipeline", "Result": "runtime.chain.result",
    "SceneSession": "runtime.chain.scene_session", "TokenBudget": "budgets",
}  # fmt: skip


if not TYPE_CHECKING:  # a type checker would take any name for one that opens

    def __getattr__(name: str) -> Any:
        """Opens public names lazily, so that importing the package costs nothing."""
        if name in _HOMES:
            return getattr(importlib.import_module(f"geomag_edge.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'geomag_edge' has no attribute {name!r}")
