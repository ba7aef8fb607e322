"""geomag-edge: takes a GeoMag checkpoint to where the images are.

>>> from geomag_edge import Pipeline
>>> pipe = Pipeline.load("bundle", engine="ort-cpu")
>>> answer = pipe("scene.tif", "segment the ships near the pier")
"""

from __future__ import annotations

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
__all__ = ["Pipeline", "__version__"]

if TYPE_CHECKING:
    from geomag_edge.runtime.chain.pipeline import Pipeline


def __getattr__(name: str) -> Any:
    """Opens `Pipeline` lazily, so that importing the package costs nothing."""
    if name == "Pipeline":
        from geomag_edge.runtime.chain.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'geomag_edge' has no attribute {name!r}")
