"""geomag-edge: takes a GeoMag checkpoint to where the images are.

>>> from geomag_edge import Pipeline
>>> pipe = Pipeline.load("bundle", engine="ort-cpu")
>>> answer = pipe("scene.tif", "segment the ships near the pier")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__"]

if TYPE_CHECKING:
    from geomag_edge.runtime.pipeline import Pipeline


def __getattr__(name: str) -> Any:
    """Opens `Pipeline` lazily, so that importing the package costs nothing."""
    if name == "Pipeline":
        from geomag_edge.runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'geomag_edge' has no attribute {name!r}")
