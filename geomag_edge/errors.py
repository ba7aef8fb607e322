"""Every error that geomag-edge raises for its users.

A message names the thing, the cause and the remedy, in one line. `exit_code` is what the command
line returns: 2 for bad input or usage, 1 for a failure of the work itself.
"""


class GeoMagError(Exception):
    """Base of all errors of this package."""

    exit_code = 1


class InputError(GeoMagError, ValueError):
    """What the caller gave is wrong."""

    exit_code = 2


class BoxError(InputError):
    """Boxes are empty, inverted, not finite, or not f32[K,4]."""


class ImageError(InputError):
    """An image cannot be read or has no usable pixels."""


class PromptError(InputError):
    """A prompt is empty or does not fit."""


class BudgetError(InputError):
    """A token budget is malformed or larger than the model allows."""


class DatasetError(InputError):
    """An evaluation or calibration set, or its report, is empty, wrong or incomplete."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, not safetensors, or of an unsupported family."""


class BundleError(InputError):
    """A bundle is missing, changed, of an unknown version, or points outside itself."""


class EngineError(InputError):
    """An engine is unknown or cannot run here."""


class TargetError(InputError):
    """A graph holds what its target cannot take."""


class OutputError(InputError):
    """The place to write to cannot be written."""


class MissingExtraError(InputError):
    """An optional dependency is needed and not installed."""


class ExportError(GeoMagError):
    """A graph could not be made or is not valid ONNX."""


class ParityError(GeoMagError):
    """A graph or the chain drifted past its tolerance."""


class FitError(GeoMagError):
    """A model does not fit a device's memory."""


class KernelError(GeoMagError):
    """A compiled kernel failed or is missing where it is required."""


class CalibrationError(GeoMagError):
    """The float graphs gave values that no scale can be taken from."""
