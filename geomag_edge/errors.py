"""Every error that geomag-edge raises for its users.

A message names the thing, the cause and the remedy, in one line. `exit_code` is what the command
line returns: 2 for bad input or usage, 1 for a failure of the work itself.

`explained` is the one place where what others raise (the operating system, Python, libraries in
Rust and C++) becomes such a line, if nothing nearer to the fault has made one of it.
"""

from __future__ import annotations

import errno
import os
import traceback

from geomag_edge.printing import one_line


class GeoMagError(Exception):
    """Base of all errors of this package; as text, always one printable line."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class GeoMagWarning(RuntimeWarning):
    """A remark of this package's own, which the command line shows; other packages' it does not."""


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


def explained(e: BaseException) -> tuple[str, int]:
    """What to tell a user of an exception, in one line, and the exit code.

    Only what nobody foresaw is called internal, is worth a report, and ends in 1.
    """
    if isinstance(e, GeoMagError):
        return str(e), e.exit_code
    if isinstance(e, MemoryError):
        return "out of memory: use a smaller budget, or a raster with overviews", 2
    if isinstance(e, RecursionError):
        return "the input is nested too deeply to be read: check where it comes from", 2
    if isinstance(e, OSError):
        return _of_system(e), 2
    if isinstance(e, ImportError):
        return f"{one_line(str(e), 160)}; install geomag-edge again (`geomag-edge doctor`)", 2
    if isinstance(e, RuntimeError) and "start new thread" in str(e):
        return f"no thread can be started: {_REMEDIES[errno.EAGAIN]}", 2
    if isinstance(e, ValueError) and "embedded null" in str(e):
        return "a name holds a null character, which no file's name can: check the names", 2
    if isinstance(e, UnicodeError):
        return "a name or a text is not valid in its encoding: give it in UTF-8", 2
    told = one_line(str(e), 160) or type(e).__name__
    return f"internal error{_place(e)}: {told} (run again with --debug and report it)", 1


def _of_system(e: OSError) -> str:
    """The operating system's complaint, with the file's name where it has one."""
    names = [str(name) for name in (e.filename, e.filename2) if name is not None]
    if not names and "temporary directory" in str(e.strerror):  # as Python's tempfile says it
        return "no folder for temporary files can be written: set TMPDIR to one, or free some space"
    cause = os.strerror(e.errno) if e.errno else str(e) or type(e).__name__
    remedy = _REMEDIES.get(e.errno or 0, "check the name and its permissions")
    return one_line(f"cannot use {' and '.join(names) or 'a file'}: {cause}; {remedy}")


_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EISDIR: "give a file",
    errno.EEXIST: "give another name, or remove it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "choose a folder that can be written",
    errno.EAGAIN: "allow more processes and threads (ulimit -u)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.ENOMEM: "free some memory",
}


def _place(e: BaseException) -> str:
    """Where in this package it happened, as ` in geomag_edge.runtime.answers.geojson, line 146`."""
    places = [
        f" in {frame.f_globals['__name__']}, line {line}"
        for frame, line in traceback.walk_tb(e.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("geomag_edge.")
    ]
    return places[-1] if places else ""
