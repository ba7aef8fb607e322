"""What becomes of a step: right, wrong, or not possible on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geomag_edge.errors import BundleError, GeoMagError, MissingExtraError
from geomag_edge.printing import one_line

Result = dict[str, Any]


class NotHere(GeoMagError):
    """This machine is not made for it, and nothing is wrong with that."""


def ran(act: Callable[[], Result]) -> Result:
    """A step's result with `ran` and `ok`.

    What is not installed, not in the bundle, or not for this machine gives its `reason` instead;
    all else that is raised, our own errors too, is a wrong result with its `error`, and must not
    hide the other steps.
    """
    try:
        result = act()
    except (NotHere, MissingExtraError, BundleError, ImportError) as e:
        return {"ran": False, "reason": one_line(str(e) or type(e).__name__)}
    except GeoMagError as e:
        return {"ran": True, "ok": False, "error": str(e)}
    except Exception as e:
        told = one_line(str(e))
        return {"ran": True, "ok": False, "error": f"{type(e).__name__}: {told}".rstrip(": ")}
    return {"ran": True, "ok": bool(result.pop("ok", True)), **result}
