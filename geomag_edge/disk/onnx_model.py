"""A bundle's graph in the ONNX libraries, whose errors become one of ours here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomag_edge.errors import BundleError

if TYPE_CHECKING:
    import onnx_ir


def load_proto(path: Path) -> Any:
    """An `onnx.ModelProto`; its external weights stay where they are.

    Raises:
        BundleError: not a graph that the library can read.
    """
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as e:
        raise _unreadable(path, e) from e


def load_ir(path: Path) -> onnx_ir.Model:
    """A model to be changed.

    Raises:
        BundleError: not a graph that the library can read.
    """
    import onnx_ir

    try:
        return onnx_ir.load(path)
    except Exception as e:
        raise _unreadable(path, e) from e


def _unreadable(path: Path, e: Exception) -> BundleError:
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
    return BundleError(f"{path.name} is not a graph that can be read: {reason}; export it again")
