"""PscCrop: windows of a large uint8 image, resampled and normalised into square views.

One operator makes every view that the vision encoder sees. `psc_crop` runs the compiled CPU
kernel, or its numpy twin where no compiler was there at install time. The torch operator, the ONNX
node and the CUDA launcher are submodules, imported on demand: importing this package needs numpy
alone.
"""

from .crop import psc_crop

__all__ = ["psc_crop"]
